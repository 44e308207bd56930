"""TOML files: read whole, and written with comments.

In: a path, or values and comments. Out: a dictionary as the standard library's parser makes it, or text.
Knows nothing about what the keys mean.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from masklet.errors import InputError

MAX_BYTES = 1 << 20  # a file of settings takes a few hundred


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file says. Raises InputError for one that is not there or no TOML."""
    parser = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    name = os.fspath(path)
    try:
        with open(Path(name).expanduser(), "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {name!r}: {reason}. Give a TOML file.") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES} bytes: not a file of settings.")
    try:
        return parser.loads(text.decode())
    except (ValueError, RecursionError) as error:  # of the text or of its encoding
        raise InputError(f"{name} is not a TOML file: {error}. A line looks like: threads = 4") from error


def toml_text(values: Mapping[str, str | int | bool], comments: Iterable[str] = ()) -> str:
    """A file of these values, the comments above them."""
    lines = [f"# {comment}".rstrip() for comment in comments]
    lines += [f"{name} = {_literal(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _literal(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # TOML's basic strings escape as JSON's do, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
