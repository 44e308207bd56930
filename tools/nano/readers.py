"""Reads the pictures of an unpacked package: emoji sets, folders of named files.

In: the folder of a package and the names of emoji. Out: its pictures as `Item`s: bytes, name and concept.
Knows nothing about splits and about what becomes of the pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import concepts
import qtresources

SKIPPED_GROUPS = ("Flags", "Symbols")  # rectangles, arrows, keycaps and letters: no objects
SKIPPED_NAMES = re.compile(
    r"^(keycap|regional indicator|family:|kiss:|couple with heart:)|o’clock|thirty\b|\b(button|arrow)s?\b"
)
NEUTRAL_OF_GENDERED = (
    0x1F9D1,
    0x1F9D4,
    *range(0x1F9CC, 0x1F9DE),
    0x1F3C3,
    0x1F6B4,
    0x1F6B5,
    0x1F6B6,
    0x1F477,
    0x1F46E,
)
DARK_TONE = 0x1F3FE  # the one skin tone that is kept beside the neutral yellow


@dataclass(frozen=True)
class Item:
    """One picture: a name that is unique in its source, its concept, and the file's bytes."""

    name: str
    concept: str
    data: bytes
    is_svg: bool = False


@dataclass(frozen=True)
class Names:
    """What the emoji list knows: code points without tones -> (name, group); words that are concepts."""

    emoji: dict[tuple[int, ...], tuple[str, str]]
    words: frozenset[str]


def emoji_names(folder: Path) -> Names:
    """The names of unicode-emoji-json, unpacked in `folder`."""
    listed = json.loads((folder / "package" / "data-by-emoji.json").read_text("utf-8"))
    table = {}
    for emoji, facts in listed.items():
        points = concepts.without_tones(point for point in map(ord, emoji) if point not in concepts.VARIATION)
        table[points] = (facts["name"], facts["group"])
    kept = (name for name, group in table.values() if group not in SKIPPED_GROUPS)
    return Names(emoji=table, words=concepts.vocabulary(kept))


def _emoji_concept(hexcode: str, names: Names) -> str | None:
    """The concept of an emoji, or None where it is not taken: signs, flags, all skin tones but one."""
    points = concepts.codepoints(hexcode)
    tones = concepts.skin_tones(points)
    facts = names.emoji.get(concepts.without_tones(points))
    if facts is None or len(tones) > 1 or (tones and tones[0] != DARK_TONE):
        return None
    name, group = facts
    if group in SKIPPED_GROUPS or SKIPPED_NAMES.search(name) or not _one_of_many(points, tones, name):
        return None
    return concepts.concept(name, names.words) or "thing"


def _one_of_many(points: tuple[int, ...], tones: tuple[int, ...], name: str) -> bool:
    """Of a person's variants two are taken: the yellow neutral one and the dark woman (or the dark one of
    what has no gender, a hand for example)."""
    man, woman, male, female = (point in points for point in (0x1F468, 0x1F469, 0x2642, 0x2640))
    if man or male:
        return False
    gendered = woman or female or points[0] in NEUTRAL_OF_GENDERED or "person" in name
    return not gendered or bool(tones) == (woman or female)


def emoji_files(pattern: str) -> Callable[[Path, Names], Iterator[Item]]:
    """Reads a folder of pictures named by hexadecimal code points."""

    def read(folder: Path, names: Names) -> Iterator[Item]:
        for path in sorted(folder.glob(pattern)):
            found = _emoji_concept(path.stem, names)
            if found:
                yield Item(path.stem, found, path.read_bytes(), path.suffix == ".svg")

    return read


def iconify_emoji(folder: Path, names: Names) -> Iterator[Item]:
    """Reads an emoji set of @iconify-json: SVG bodies by name, and a list from code points to names."""
    box = folder / "package"
    icons = json.loads((box / "icons.json").read_text("utf-8"))
    seen = set()
    for hexcode, name in sorted(json.loads((box / "chars.json").read_text("utf-8")).items()):
        found = _emoji_concept(hexcode, names)
        icon = icons["icons"].get(name)
        if found and icon and name not in seen:
            seen.add(name)
            yield Item(hexcode, found, _svg(icon, icons), True)


def _svg(icon: dict, icons: dict) -> bytes:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'.encode()


def named_files(
    base: str, suffixes: tuple[str, ...], skip: str = r"$^", only: str = ""
) -> Callable[[Path, Names], Iterator[Item]]:
    """Reads pictures below `base` whose names say what they show.

    `skip` and `only` are regular expressions for the path below `base`; a picture is named by that path.
    """

    def read(folder: Path, names: Names) -> Iterator[Item]:
        root = folder / base
        for resources in root.glob("*.rcc"):
            qtresources.unpack(resources)
        for path in sorted(root.rglob("*")):
            below = str(path.relative_to(root))
            if path.suffix.lower() not in suffixes or not path.is_file():
                continue
            if re.search(skip, below) or not re.search(only, below):
                continue
            name = re.sub(r"[^A-Za-z0-9]+", "_", below.rsplit(".", 1)[0]).strip("_")
            shown = concepts.concept(path.stem, names.words) or concepts.concept(
                path.parent.name, names.words
            )
            yield Item(name, shown or "thing", path.read_bytes(), path.suffix == ".svg")

    return read


def first_frames(base: str, only: str) -> Callable[[Path, Names], Iterator[Item]]:
    """Reads animated game pictures: of each folder of frames below `base` that matches `only` the first one.

    The concept is the name of the thing's folder, `as_brickyard0`, two above the frames.
    """

    def read(folder: Path, names: Names) -> Iterator[Item]:
        root = folder / base
        for frames in sorted(path for path in root.rglob("*") if path.is_dir()):
            below = str(frames.relative_to(root))
            pictures = sorted(frames.glob("*.png"))
            if pictures and re.search(only, below):
                thing = re.sub(r"^as_|\d+$", "", frames.parents[1].name)
                shown = concepts.concept(thing, names.words) or thing
                yield Item(re.sub(r"[^A-Za-z0-9]+", "_", below), shown, pictures[0].read_bytes())

    return read
