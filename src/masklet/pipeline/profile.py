"""How a model runs: the settings, and where they come from.

In: arguments, the place of the weights, perhaps the name of a profile. Out: `Settings`. An argument that is
given wins over the profile, the profile over the defaults. A profile is a TOML file: one that is named, else
`masklet.toml` beside the weights, but for those in the package: settings don't belong into an installation.
Knows nothing about networks; whether a device or a size exists is for those to say who make it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from masklet import registry
from masklet.errors import InputError
from masklet.io.toml import read_toml

PROFILE = "masklet.toml"  # the name beside the weights
AUTO = "auto"  # the precision that loses nothing of the file
DIALECTS = ("fused", "portable")  # with ONNX Runtime's own operators, or with the standard ones only


def _key(check: Callable[[Any], bool], allowed: str, default: Any) -> Any:
    """A field whose values are checked; `allowed` is for messages."""
    return field(default=default, metadata={"check": check, "allowed": allowed})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dialect(value: Any) -> bool:
    return value in DIALECTS


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(one, str | int | float) for name, one in value.items()
    )


@dataclass(frozen=True)
class Settings:
    """The arguments of `masklet.load`, which are the keys of a profile; None stands for what the model or the
    machine has."""

    device: str = _key(_is_text, 'a word such as "cpu" or "cuda"', "cpu")
    threads: int | None = _key(_is_count, "a whole number of at least 1", None)
    precision: str = _key(_is_text, 'a word such as "f32"', AUTO)
    image_size: int | None = _key(_is_count, "a whole number of pixels, such as 1024", None)
    dialect: str | None = _key(_is_dialect, " or ".join(DIALECTS), None)
    cache: bool = _key(_is_switch, "true or false", True)
    provider_options: Mapping[str, str | int | float] | None = _key(
        _is_table, 'a table of text and numbers, such as { device_type = "GPU" }', None
    )


KEYS = {one.name: one for one in fields(Settings)}


def settings_of(
    weights: Path | None, profile: str | os.PathLike[str] | None, given: Mapping[str, Any]
) -> tuple[Settings, Path | None]:
    """The settings for a file of weights, and the profile in use. In `given` are arguments, None for those
    that are left to the profile. An empty profile (`os.devnull`) says nothing. Raises InputError."""
    chosen = {name: value for name, value in given.items() if value is not None}
    path = Path(profile) if profile is not None else profile_beside(weights)
    if path is None:
        return Settings(**chosen), None
    values = read_profile(path)
    if profile is None and "provider_options" in values:  # some load libraries: not by a file that came along
        raise InputError(
            f"{path}: provider_options count only in a profile that is named, since they can make a provider "
            f"load libraries. Name this one (--profile {path}, or profile= in Python) or take them out."
        )
    if "device" in chosen and chosen["device"] != values.get("device", "cpu"):
        values.pop("provider_options", None)  # they are those of the profile's device
    return Settings(**{**values, **chosen}), path


def read_profile(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a profile says, checked. Raises InputError that names file, key, what was got and what is
    allowed."""
    values = read_toml(path)
    for name, value in values.items():
        if name not in KEYS:
            close = difflib.get_close_matches(name, KEYS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{os.fspath(path)}: unknown key {name!r}.{hint} Known are {', '.join(KEYS)}.")
        meant = KEYS[name].metadata
        if not meant["check"](value):
            raise InputError(f"{os.fspath(path)}: {name} is {value!r}; give {meant['allowed']}.")
    return values


def profile_beside(weights: Path | None) -> Path | None:
    """The profile in the folder of the weights, if there is one; None for those in the package."""
    if weights is None or weights == registry.BUNDLED.path:
        return None
    path = weights.parent / PROFILE
    return path if path.is_file() else None
