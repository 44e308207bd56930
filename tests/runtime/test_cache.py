"""Compiled graphs on disk: written once, shared, rebuilt when damaged, read without the graph-writing
packages.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from masklet import testing
from masklet.runtime import cache


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path / "cache"))
    return testing.tiny_config()


def entry():
    (only,) = cache.entries()
    return only


def test_second_use_reads_what_the_first_wrote(config, monkeypatch):
    first = cache.load_stage(config, "encode_points", 128, "fused")
    monkeypatch.setattr(cache, "write_stage", None)  # calling it would fail
    assert cache.load_stage(config, "encode_points", 128, "fused") == first
    assert entry().stage == "encode_points"
    assert entry().size > 500


def test_every_part_of_the_identity_counts(config):
    for stage, size, dialect in [
        ("encode_points", 128, "fused"),
        ("encode_points", 160, "fused"),
        ("encode_points", 128, "portable"),
        ("encode_mask", 128, "fused"),
    ]:
        cache.load_stage(config, stage, size, dialect)
    cache.load_stage(testing.tiny_config("2.0"), "encode_points", 128, "fused")
    assert len(cache.entries()) == 5


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "text"])
def test_a_damaged_entry_is_rebuilt_silently(config, damage):
    first = cache.load_stage(config, "encode_points", 128, "fused")
    path = entry().path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"empty": b"", "cut": bytes(data[:99]), "flip": bytes(data), "text": b"hello"}[damage])
    assert cache.load_stage(config, "encode_points", 128, "fused") == first
    assert cache._read(path) == first


def test_many_threads_at_once_leave_one_whole_entry(config):
    stages = []

    def work():
        stages.append(cache.load_stage(config, "encode_points", 128, "fused"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stages) == 8
    assert all(stage == stages[0] for stage in stages)
    assert len(list(cache.folder().iterdir())) == 1


def test_an_unwritable_folder_costs_only_the_cache(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path / "file" / "cache"))
    assert cache.load_stage(config, "encode_points", 128, "fused").name == "encode_points"


def test_clear_reports_the_bytes(config):
    cache.load_stage(config, "encode_points", 128, "fused")
    (cache.folder() / "left-over.partial").write_bytes(b"1234")
    size = entry().size
    assert cache.clear() == size + 4
    assert cache.entries() == []


def test_the_cached_path_imports_neither_onnx_nor_onnxscript(config, tmp_path):
    path = tmp_path / "model.safetensors"
    testing.write_stand_in(path, config)
    code = (
        "import sys, masklet, numpy as np\n"
        f"predictor = masklet.ImagePredictor(masklet.load({str(path)!r}))\n"
        "predictor.set_image(np.zeros((40, 60, 3), np.uint8))\n"
        "predictor.predict(point_coords=[[3, 4]], point_labels=[1])\n"
        "print([name for name in ('onnx', 'onnxscript', 'onnx_ir', 'torch') if name in sys.modules])\n"
    )
    for _ in range(2):  # the first run fills the cache
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
