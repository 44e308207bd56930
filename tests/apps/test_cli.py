"""The command as a whole: exit codes, streams, and what is imported on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import masklet as library
from masklet.apps import cli, manage, terminal
from masklet.errors import EngineError

Command = Callable[..., Any]
COMMANDS = ("segment", "track", "models", "pull", "info", "cache", "bench", "export", "dump", "compare")


def process(*arguments: object, stdout: Any = subprocess.PIPE, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, its streams buffered as usual."""
    command = [sys.executable, "-m", "masklet", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


# ------------------------------------------------------------------------------------------- help and version


def test_version(masklet: Command) -> None:
    result = masklet("--version")
    assert (result.exit_code, result.stdout) == (0, f"masklet {library.__version__}\n")


def test_help_names_every_command_and_fits_one_screen(masklet: Command, plain: Any) -> None:
    result = masklet("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in plain(result.stdout)
    assert len(result.stdout.splitlines()) <= 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(masklet: Command, plain: Any, command: str) -> None:
    for option in ("--help", "-h"):
        result = masklet(command, option)
        assert result.exit_code == 0
        assert f"Usage: masklet {command}" in plain(result.stdout)


@pytest.mark.parametrize("command", ["segment", "auto", "track", "bench", "dump"])
def test_commands_that_run_a_model_have_its_options(masklet: Command, plain: Any, command: str) -> None:
    text = plain(masklet(command, "--help").stdout)
    for option in ("--device", "--threads", "--precision", "--image-size", "--profile"):
        assert option in text


@pytest.mark.parametrize("arguments", [("frobnicate",), ("--frobnicate",), ("segment",), ("info", "a", "b")])
def test_what_is_not_understood_is_exit_code_2(masklet: Command, arguments: tuple[str, ...]) -> None:
    result = masklet(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_module_is_the_command() -> None:
    run = process("--version")
    assert run.communicate(timeout=60) == (f"masklet {library.__version__}\n", "")
    assert run.returncode == 0


# ------------------------------------------------------------------------------------------------- exceptions


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `masklet models` raise something."""

    def raise_in_models(error: BaseException) -> None:
        def models() -> None:
            raise error

        monkeypatch.setattr("masklet.registry.models", models)

    return raise_in_models


def test_our_errors_are_one_line(masklet: Command, failing: Any) -> None:
    failing(EngineError("the engine stopped. Try again."))
    result = masklet("models")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the engine stopped. Try again.\n"


@pytest.mark.parametrize("arguments", [("--debug", "models"), ("models", "--debug")])
def test_debug_shows_the_traceback(masklet: Command, failing: Any, arguments: tuple[str, ...]) -> None:
    failing(EngineError("the engine stopped."))
    result = masklet(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("error: the engine stopped.\n")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_variable(
    masklet: Command, failing: Any, monkeypatch: pytest.MonkeyPatch, value: str, shown: bool
) -> None:
    failing(EngineError("the engine stopped."))
    monkeypatch.setenv(cli.DEBUG, value)
    assert ("Traceback" in masklet("models").stderr) is shown


def test_too_little_memory_is_no_bug(masklet: Command, failing: Any) -> None:
    failing(MemoryError())
    result = masklet("models")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: not enough memory")


def test_debug_after_two_dashes_is_a_name(masklet: Command) -> None:
    result = masklet("info", "--", "--debug")
    assert result.exit_code == 1
    assert "'--debug'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_says_how_to_report_it(
    failing: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ZeroDivisionError("oops"))
    monkeypatch.setattr(sys, "argv", ["masklet", "models"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    stdout, stderr = capsys.readouterr()
    assert (exit_.value.code, stdout) == (1, "")
    assert "ZeroDivisionError: oops" in stderr
    assert f"this is a bug in masklet {library.__version__}" in stderr.splitlines()[-1]


def test_main_ends_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["masklet", "models"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert "sam2.1_hiera_tiny" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- Ctrl-C and streams


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c_is_130_without_a_traceback(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    os.mkfifo(picture)
    # Where the tests run in the background, SIGINT is ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = process("segment", picture, "--point", "1,1", cwd=tmp_path)
    writer = None
    while writer is None and run.poll() is None:  # until the command has opened the picture
        with contextlib.suppress(OSError):
            writer = os.open(picture, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)  # now it waits for the picture's content
    stdout, stderr = run.communicate(timeout=60)
    if writer is not None:
        os.close(writer)
    assert (run.returncode, stdout, stderr) == (130, "", "Interrupted.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    run = process("models", "--json")
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()  # before the command has written anything
    assert run.stderr.read() == ""
    assert run.wait(timeout=60) == 1
    run.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("argument", ["models", "--version"])
def test_results_that_cannot_be_written_are_an_error(argument: str) -> None:
    with open("/dev/full", "w") as full:
        run = process(argument, stdout=full)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert stderr.startswith("error: cannot write the result to standard output: ")
    assert len(stderr.splitlines()) == 1


def test_progress_is_not_in_the_results(workplace: Path, tiny_checkpoint: Path) -> None:
    run = process("segment", "scene.png", "--point", "60,50", "--json", "--model", tiny_checkpoint)
    stdout, stderr = run.communicate(timeout=120)
    assert (run.returncode, stderr) == (0, "")
    assert json.loads(stdout)["image"] == "scene.png"


# ---------------------------------------------------------------------------------------------------- imports


def imported(arguments: list[str], folder: Path) -> set[str]:
    """The top-level modules that a command brings along, in an interpreter of its own."""
    program = f"""
import sys
from masklet.apps.cli import main
sys.argv = ["masklet", *{arguments!r}]
try:
    main()
finally:
    print(*{{name.partition(".")[0] for name in sys.modules}}, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_help_is_light(tmp_path: Path) -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "PIL", "huggingface_hub"}
    assert imported(["--help"], tmp_path) & heavy == set()


def test_a_cached_model_needs_no_graph_writer(workplace: Path, tiny_checkpoint: Path) -> None:
    arguments = ["segment", "scene.png", "--point", "60,50", "--model", str(tiny_checkpoint)]
    imported(arguments, workplace)  # the first run may have to write the graphs
    modules = imported(arguments, workplace)
    assert "onnxruntime" in modules
    assert modules & {"onnx", "onnx_ir", "onnxscript", "huggingface_hub", "torch"} == set()


# --------------------------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_960, "1.0 MB"),
        (156_008_466, "156.0 MB"), (2.5e12, "2.5 TB"), (2.5e15, "2500.0 TB"),
    ],
)  # fmt: skip
def test_human_size(count: float, text: str) -> None:
    assert terminal.human_size(count) == text


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_table(("name", "size", ""), [("a", "1", "x"), ("longer", "1000", "")], right=" r")
    assert capsys.readouterr().out == "name    size\na          1  x\nlonger  1000\n"


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_fields({"a": "1\n2", "long": "3"})
    assert capsys.readouterr().out == "a     1\n      2\nlong  3\n"


def test_a_terminal_gets_a_bar_and_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal.status("Working"), terminal.download_bar("model.pt") as progress:
        progress(50, 100)
        progress(100, 100)
    terminal.error("nothing")
    terminal.write_fields({"name": "value"})
    stdout, stderr = capsys.readouterr()
    assert "Working" in stderr
    assert "model.pt" in stderr
    assert "\x1b[1;31merror:\x1b[0m nothing" in stderr
    assert stdout == "\x1b[1mname\x1b[0m  value\n"


def test_long_messages_are_not_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal.error("word " * 100 + "[bold]")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_module_of_commands_is_registered() -> None:
    registered = {command.callback for command in cli.app.registered_commands}
    assert {manage.models, manage.pull, manage.info, manage.cache} <= registered
