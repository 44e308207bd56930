"""All families, and the one that a checkpoint or a configuration belongs to.

In: tensor names and shapes, metadata, or a configuration. Out: a configuration, or a `Family`. A new family
adds its line to `FAMILIES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from masklet.errors import UnknownFormatError
from masklet.families import edgetam, sam1, sam2
from masklet.families.family import CONFIG_KEY, Config, Family, Shapes

FAMILIES: dict[str, Family] = {family.name: family for family in (sam2.FAMILY, sam1.FAMILY, edgetam.FAMILY)}


def family_of(config: Config) -> Family:
    """The family of a configuration."""
    return FAMILIES[config.family]


def preset_name(config: Config) -> str | None:
    """The published name of a configuration, None for one of your own."""
    return family_of(config).preset_name(config)


def recognise(shapes: Shapes, metadata: Mapping[str, str]) -> Config:
    """The configuration of a checkpoint: from metadata that masklet wrote, else from canonical names and
    shapes. Raises UnknownFormatError."""
    if CONFIG_KEY in metadata:
        return from_metadata(metadata[CONFIG_KEY])
    for family in FAMILIES.values():
        if family.matches(shapes):
            return family.recognise(shapes)
    some = ", ".join(sorted(shapes)[:3]) or "no tensors"
    titles = ", ".join(family.title for family in FAMILIES.values())
    raise UnknownFormatError(
        f"not of a family that this version knows ({titles}). Its tensors start with {some}."
    )


def from_metadata(text: str) -> Config:
    """Parse what a configuration's `to_json` wrote. Raises UnknownFormatError for anything else."""
    try:
        values: dict[str, Any] = json.loads(text)
        family = values.pop("family")
        if family not in FAMILIES:
            raise ValueError(f"family {family!r}")
        return FAMILIES[family].parse(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownFormatError(
            f"The file's metadata {CONFIG_KEY!r} is not a configuration that this version knows: {error}"
        ) from error
