"""`masklet bench --tune`: what is tried, what is chosen and why, and the profile that is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

import masklet as library
from masklet.apps import tune
from masklet.apps.timing import Steps
from masklet.apps.tune import Candidate, choose
from masklet.io.toml import read_toml
from masklet.pipeline.profile import read_profile

Command = Callable[..., Any]
SPEEDS = {("f32", 8): 1.0, ("int8", 8): 0.5, ("int8", 4): 0.49, ("int8", 2): 0.9}


def steps_like(speeds: dict[tuple[str, int], float]) -> Callable[[Candidate], Steps]:
    """Steps that take no time and report it; the first of each lies far off, as a cold one does."""

    def steps(one: Candidate) -> Steps:
        encodings: Iterator[float] = iter([100.0])
        steady = cycle([speeds[one.precision, one.threads]])
        return Steps(lambda: next(encodings, None) or next(steady), lambda index: 0.01)

    return steps


def test_one_setting_after_the_other() -> None:
    precision, threads = choose(
        Candidate("f32", 8), precisions=True, threads=True, steps=steps_like(SPEEDS), repeats=2
    )
    tried = [[(one.precision, one.threads) for one in choice.candidates] for choice in (precision, threads)]
    assert tried == [[("f32", 8), ("int8", 8)], [("int8", 8), ("int8", 4), ("int8", 2)]]
    assert (precision.chosen.precision, precision.reason) == ("int8", "int8: 1.91 times as fast as f32")
    assert (threads.chosen.threads, threads.reason) == (8, "8: 4 is only 1.02 times as fast")
    assert [len(one.encodings) for one in precision.candidates] == [2, 2]
    assert precision.candidates[0].encoding == 1.0  # the cold one does not count


@pytest.mark.parametrize(
    ("precisions", "threads", "settings"),
    [(True, False, ["precision"]), (False, True, ["threads"]), (False, False, ["settings"])],
)
def test_what_is_given_is_not_tried(precisions: bool, threads: bool, settings: list[str]) -> None:
    speeds = dict.fromkeys([*SPEEDS, ("f32", 4), ("f32", 2)], 1.0)
    choices = choose(
        Candidate("f32", 8), precisions=precisions, threads=threads, steps=steps_like(speeds), repeats=1
    )
    assert [choice.setting for choice in choices] == settings
    assert all(choice.chosen is choice.candidates[0] for choice in choices)


def test_one_core_has_nothing_to_choose_among() -> None:
    steps = steps_like({("f32", 1): 1.0})
    (choice,) = choose(Candidate("f32", 1), precisions=False, threads=True, steps=steps, repeats=1)
    assert (choice.setting, len(choice.candidates)) == ("settings", 1)


@pytest.fixture
def model(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A model in a folder of its own."""
    path = tmp_path / "models" / "tiny.safetensors"
    path.parent.mkdir()
    path.write_bytes(tiny_checkpoint.read_bytes())
    return path


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit layers are twice as fast, on any machine."""
    monkeypatch.setattr(
        tune,
        "steps_of",
        lambda model: Steps(lambda: 0.5 if model.precision == "int8" else 1.0, lambda index: 0.01),
    )


def test_the_profile_is_written_and_used(masklet: Command, model: Path) -> None:
    arguments = ("bench", model, "--tune", "--repeats", "1", "--precision", "f32", "--image-size", "96")
    result = masklet(*arguments)
    assert result.exit_code == 0, result.stderr
    path = model.with_name("masklet.toml")
    assert result.stdout.splitlines()[0].split() == [
        "tried", "precision", "threads", "encode", "click", "x", "faster",
    ]  # fmt: skip
    assert result.stdout.endswith(f"profile {path}\n")
    values = read_profile(path)
    assert list(values) == ["device", "threads", "precision", "image_size", "cache"]
    assert "# masklet bench --tune: custom, " in path.read_text()
    loaded = library.load(model)
    assert (loaded.threads, loaded.precision, loaded.image_size) == (values["threads"], "f32", 96)
    told = masklet("bench", model, "--repeats", "1", "--json")
    assert told.stderr.startswith(f"Settings from {path}\n")
    assert json.loads(told.stdout)["threads"] == values["threads"]


@pytest.mark.usefixtures("imagined")
def test_json(masklet: Command, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "fast.toml"
    result = masklet("bench", model, "--tune", "--threads", "1", "--profile", target, "--json")
    document = json.loads(result.stdout)
    assert document["profile"] == str(target)
    assert document["settings"] == read_toml(target)
    assert document["settings"]["precision"] == "int8"
    assert "int8 computes approximately" in result.stderr
    (choice,) = document["choices"]
    assert choice["reason"].startswith("int8: 1.9")
    assert [one["chosen"] for one in choice["candidates"]] == [False, True]
    assert [len(one["encode_seconds"]) for one in choice["candidates"]] == [5, 5]


@pytest.mark.usefixtures("imagined")
def test_an_earlier_profile_is_kept_and_takes_no_part(masklet: Command, model: Path) -> None:
    path = model.with_name("masklet.toml")
    path.write_text("image_size = 100\nthreads = 64\n")  # which no model here can have
    command = ("bench", model, "--tune", "--precision", "f32", "--threads", "1")
    result = masklet(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is there already; give --overwrite" in result.stderr
    assert read_toml(path) == {"image_size": 100, "threads": 64}
    assert masklet(*command, "--overwrite").exit_code == 0
    assert read_toml(path) == {"device": "cpu", "threads": 1, "precision": "f32", "cache": True}


def test_what_cannot_be_written_is_said_before_the_work(
    masklet: Command, model: Path, tmp_path: Path
) -> None:
    result = masklet("bench", model, "--tune", "--profile", tmp_path / "nowhere" / "a.toml")
    assert result.exit_code == 1
    assert "nowhere' does not exist" in result.stderr
    assert "Timing" not in result.stderr
    assert masklet("bench", model, "--overwrite").exit_code == 2


def test_for_the_model_in_the_package_a_profile_must_be_named(masklet: Command, tmp_path: Path) -> None:
    result = masklet("bench", "masklet-nano", "--tune")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "give --profile FILE" in result.stderr
    arguments = ("--precision", "f16", "--threads", "1", "--repeats", "1", "--profile", tmp_path / "a.toml")
    assert masklet("bench", "masklet-nano", "--tune", *arguments).exit_code == 0
    assert read_toml(tmp_path / "a.toml")["precision"] == "f16"
