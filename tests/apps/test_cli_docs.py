"""`docs/cli.md` says what the program says: its list of commands is made from the program and compared.

REWRITE_DOCS=1 in the environment writes the list anew instead.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from masklet.apps.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
VIDEO_PAGE = PAGE.with_name("video.md")
AUTOMATIC_PAGE = PAGE.with_name("automatic.md")
MARK = "<!-- The rest is made from the program: REWRITE_DOCS=1 pytest tests/apps/test_cli_docs.py -->\n"


def commands() -> dict[str, Any]:
    return get_command(app).commands  # type: ignore[attr-defined]


def documented() -> str:
    """Everything behind the mark: each command's usage, text and options."""
    return "".join(section(name, command) for name, command in commands().items())


def section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    names = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
    usage = " ".join(["masklet", name, *names, "[OPTIONS]"])
    paragraphs = [" ".join(paragraph.split()) for paragraph in command.help.split("\n\n")]
    lines = [f"\n### {name}\n\n`{usage}`\n", *(f"\n{paragraph}\n" for paragraph in paragraphs), "\n"]
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
    for panel, parameters in panels.items():
        lines += [f"\n{panel}:\n\n"] if panel else []
        lines += [entry(parameter) for parameter in parameters]
    return "".join(lines)


def entry(parameter: Any) -> str:
    """One argument or option: how it is written, what it means, its default."""
    if parameter.param_type_name == "argument":
        return f"- `{parameter.metavar}`: {parameter.help}\n"
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    written = ", ".join(f"`{option}{value}`" for option in sorted(parameter.opts, reverse=True))
    default = parameter.default if parameter.show_default is True else parameter.show_default
    shown = f" Default: {default}." if default and not parameter.is_flag else ""
    return f"- {written}: {parameter.help}{shown}\n"


def test_the_page_has_what_the_program_has() -> None:
    before, mark, after = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark, "the page has lost its mark"
    if os.environ.get("REWRITE_DOCS"):
        PAGE.write_text(before + mark + documented(), encoding="utf-8")
        pytest.skip("rewritten")
    assert after == documented()


def test_every_option_has_a_metavar_and_a_help_text() -> None:
    for name, command in commands().items():
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
            assert parameter.help.endswith((".", "...")), (name, parameter.name)
            if not getattr(parameter, "is_flag", False):
                assert parameter.metavar, (name, parameter.name)


def test_help_texts_fit_80_columns() -> None:
    """Behind the first paragraph, line breaks in a docstring are line breaks on the screen."""
    for name, command in commands().items():
        first, *others = command.help.split("\n\n")
        for line in [" ".join(first.split()), *"\n".join(others).splitlines()]:
            assert len(line) <= 78, (name, line)


def examples(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("masklet ")]


def help_examples() -> list[str]:
    """Those behind a command's options."""
    texts = [command.epilog or "" for command in commands().values()]
    return [line for text in texts for line in text.splitlines() if line.startswith("masklet ")]


def test_there_are_examples() -> None:
    assert len(examples(PAGE)) >= 5
    assert len(examples(VIDEO_PAGE)) >= 5
    assert len(examples(AUTOMATIC_PAGE)) >= 3
    assert len(help_examples()) >= 3


@pytest.mark.parametrize(
    "example", [*examples(PAGE), *examples(VIDEO_PAGE), *examples(AUTOMATIC_PAGE), *help_examples()]
)
def test_examples_are_understood(example: str) -> None:
    """Parsed as typed, not run."""
    name, *arguments = shlex.split(example, comments=True)[1:]
    with commands()[name].make_context(name, arguments) as context:
        if name == "track":
            assert context.params["video"] in ("clip.mp4", "frames", "frames/*.jpg", "0")
        else:
            assert context.params["image"] == Path("photo.jpg")
