"""Where settings come from: arguments, a profile, defaults; and what a profile may not say."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import masklet
from masklet import testing
from masklet.errors import DeviceError, InputError, MaskletError
from masklet.pipeline.profile import KEYS, PROFILE, Settings, read_profile, settings_of
from masklet.runtime import cache
from masklet.runtime.devices import find_device, provider_arguments

FULL = """
device = "cpu"
threads = 3
precision = "f16"
image_size = 96
dialect = "portable"
cache = false
[provider_options]
arena_extend_strategy = "kSameAsRequested"
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config())
    return path


def test_the_keys_are_the_arguments_of_load() -> None:
    arguments = set(inspect.signature(masklet.load).parameters) - {"path_or_name", "profile"}
    assert set(KEYS) == arguments
    assert arguments < set(inspect.signature(masklet.Model).parameters)


def test_a_profile_beside_the_weights_is_used_whole(weights: Path) -> None:
    weights.with_name(PROFILE).write_text(FULL.replace("[provider_options]\narena", "#"))
    model = masklet.load(weights)
    assert (model.device.name, model.threads, model.precision) == ("cpu", 3, "f16")
    assert (model.image_size, model.dialect) == (96, "portable")


def test_arguments_win_over_the_profile(weights: Path) -> None:
    weights.with_name(PROFILE).write_text(FULL)
    settings, origin = settings_of(
        weights, weights.with_name(PROFILE), {"threads": 1, "image_size": None, "cache": True}
    )
    assert (settings.threads, settings.image_size, settings.cache) == (1, 96, True)
    assert origin == weights.with_name(PROFILE)


def test_a_named_profile_takes_the_place_of_the_one_beside(weights: Path, tmp_path: Path) -> None:
    weights.with_name(PROFILE).write_text("threads = 3")
    other = tmp_path / "other.toml"
    other.write_text("image_size = 96")
    model = masklet.load(weights, profile=other)
    assert (model.threads, model.image_size) == (None, 96)
    assert settings_of(weights, os.devnull, {})[0] == Settings()


def test_a_profile_that_was_found_may_not_name_libraries(weights: Path) -> None:
    weights.with_name(PROFILE).write_text('device = "cpu"\n[provider_options]\nlibrary = "other.so"\n')
    with pytest.raises(InputError, match="provider_options count only in a profile that is named"):
        settings_of(weights, None, {})


def test_without_a_profile_the_defaults_hold(tmp_path: Path) -> None:
    for weights in (None, tmp_path / "tiny.pt"):
        assert settings_of(weights, None, {"threads": None}) == (Settings(), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 4", r"unknown key 'thread'\. Did you mean 'threads'\? Known are device, threads, "),
        ("[run]\nthreads = 4", r"unknown key 'run'\. Known are"),
        ('threads = "4"', r"threads is '4'; give a whole number of at least 1\."),
        ("threads = 0", "threads is 0; give a whole number"),
        ("threads = true", "threads is True; give a whole number"),
        ("threads = 2.0", r"threads is 2\.0; give a whole number"),
        ("device = 1", "device is 1; give a word such as"),
        ("precision = 8", "precision is 8; give a word such as"),
        ('image_size = "big"', "image_size is 'big'; give a whole number of pixels"),
        ('dialect = "plain"', "dialect is 'plain'; give fused or portable"),
        ("cache = 1", "cache is 1; give true or false"),
        ("provider_options = 5", "provider_options is 5; give a table"),
        ("provider_options = { a = [1] }", r"provider_options is \{'a': \[1\]\}; give a table"),
    ],
)
def test_what_a_profile_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"mine\.toml: {message}"):
        read_profile(path)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("image_size = 100", InputError, "image_size is 100; give a multiple of 32"),
        ('precision = "f99"', InputError, "precision is 'f99'; allowed is"),
        ('device = "cudo"', DeviceError, "Did you mean 'cuda'"),
    ],
)
def test_what_the_model_refuses_names_the_profile(
    weights: Path, text: str, error: type[MaskletError], message: str
) -> None:
    weights.with_name(PROFILE).write_text(text)
    with pytest.raises(error, match=rf"{message}.*The profile .*{PROFILE} is in use"):
        masklet.load(weights)


def test_an_argument_that_is_no_dialect(weights: Path) -> None:
    with pytest.raises(InputError, match="dialect is 'plain'; allowed is fused, portable"):
        masklet.load(weights, dialect="plain")


def test_provider_options_reach_the_engine(weights: Path) -> None:
    device = find_device("cpu", {"use_arena": 1, "word": "x"})
    assert provider_arguments(device) == {
        "providers": ["CPUExecutionProvider"],
        "provider_options": [{"use_arena": "1", "word": "x"}],
    }
    model = masklet.load(weights, provider_options={"use_arena": 1})
    assert model.device.options == {"use_arena": 1}


def test_provider_options_go_with_their_device(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('device = "openvino"\nthreads = 2\n[provider_options]\ndevice_type = "GPU"\n')

    def options(**given: Any) -> Any:
        return settings_of(None, path, given)[0].provider_options

    assert options() == options(device="openvino") == {"device_type": "GPU"}
    assert options(device="cpu") is None


def test_without_the_cache_nothing_is_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path / "cache"))
    masklet.load(weights, cache=False)
    assert cache.entries() == []
    masklet.load(weights)
    assert len(cache.entries()) == 4
