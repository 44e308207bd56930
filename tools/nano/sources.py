"""The packages that parts are gathered from, and how each is read: one row a source, with its licence.

Knows nothing about splits and about what becomes of the pictures. DATA.md says why each is here and what was
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import renders
from readers import Item, Names, emoji_files, first_frames, iconify_emoji, named_files

EMOJI_NAMES = ("npm", "unicode-emoji-json", "0.9.0")  # MIT: the English names and groups of emoji


@dataclass(frozen=True)
class Source:
    """A package and how to read it. `kind` is `sprites` or `photos`; `project` says who made the pictures."""

    name: str
    kind: str
    registry: str
    package: str
    version: str
    licence: str
    project: str
    read: Callable[[Path, Names], Iterator[Item]]


TUXPAINT_SKIP = r"^symbols/(alphabets|math|money/00|music|shapes)|^town/flags|roadsigns|flags?/|mirror"
CLIPART_SKIP = (
    r"^computer/(buttons|icons|diagrams|folders|network)|^buttons|^shapes|^signs_and_symbols|^special|^geography/[^/]*$"
    r"|^logos|games/cards|aiga|roadsigns|^unsorted|stickmen|pantyhose|flag|logo|border|frame|background"
)
PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
PNG = (".png",)
SKY = "usr/share/games/endless-sky/images"
OF_GCOMPRIS = "by file: GPL-3+, CC-BY, CC-BY-SA, GFDL, public domain"
GCOMPRIS = "usr/share/gcompris-qt/rcc"
GCOMPRIS_PHOTOS = (
    r"^(erase|details|explore_monuments|explore_world_animals|explore_farm_animals|explore_world_music"
    r"|clickgame|categorization)/.*\.(webp|jpe?g)$"
)
PLASMA_PHOTOS = (
    r"^(BytheWater|ColdRipple|ColorfulCups|DarkestHour|EveningGlow|FallenLeaf|Grey|Kite|OneStandsOut|Path)/"
    r"contents/images/2560x1600\."
)
SCRATCH_DRAWN = (
    r"party-room|room[123]|spotlight-stage|forest\.|woods-and-bench|brick-wall1|graffiti|driveway|school2"
)
LOMIRI_DRAWN = "analogpattern|umang|Fossa|Painting-Colors|warty"
SKIMAGE_PHOTOS = r"^(astronaut|coffee|chelsea|rocket|grass|brick|gravel|hubble_deep_field|coins)\."

SOURCES = (
    Source("fluent3d", "sprites", "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft Fluent Emoji",
           emoji_files("package/assets/*.webp")),
    Source("tuxpaint", "sprites", "debian", "tuxpaint-stamps-default", "", "GPL-2", "Tux Paint stamps",
           named_files("usr/share/tuxpaint/stamps", PNG, TUXPAINT_SKIP)),
    Source("mate", "photos", "debian", "mate-backgrounds", "", "GPL-2+", "MATE Backgrounds",
           named_files("usr/share/backgrounds/mate/nature", PHOTOS)),
    Source("noto", "sprites", "npm", "@iconify-json/noto", "1.2.9", "Apache-2.0", "Google Noto Emoji",
           iconify_emoji),
    Source("land", "photos", "debian", "endless-sky-data", "", "public domain, CC-BY-SA-3.0, CC-BY-SA-4.0",
           "Endless Sky and photographers named there", named_files(f"{SKY}/land", PHOTOS)),
    Source("scratch", "photos", "debian", "scratch", "", "CC-BY-SA-3.0", "Scratch media, MIT",
           named_files("usr/share/scratch/Media/Backgrounds", PHOTOS, SCRATCH_DRAWN)),
    Source("lomiri16", "photos", "debian", "lomiri-wallpapers-16.04", "", "CC-BY-4.0, CC-BY-SA-4.0",
           "Lomiri wallpapers", named_files("usr/share/backgrounds", PHOTOS, LOMIRI_DRAWN)),
    Source("lomiri20", "photos", "debian", "lomiri-wallpapers-20.04", "", "CC-BY-SA-4.0",
           "Lomiri wallpapers",
           named_files("usr/share/backgrounds", PHOTOS, LOMIRI_DRAWN)),
    Source("plasma", "photos", "debian", "plasma-workspace-wallpapers", "", "GPL-2+",
           "KDE Visual Design Group",
           named_files("usr/share/wallpapers", PHOTOS, only=PLASMA_PHOTOS)),
    Source("lxqt", "photos", "debian", "lxqt-themes", "", "LGPL-2.1+", "LXQt themes",
           named_files("usr/share/lxqt/wallpapers", PHOTOS, only="after-the-rain|fog|Butterfly")),
    Source("skimage", "photos", "pypi", "scikit-image", "0.17.2",
           "public domain, CC0, no known restrictions", "scikit-image data",
           named_files("skimage/data", PHOTOS, only=SKIMAGE_PHOTOS)),
    Source("sklearn", "photos", "pypi", "scikit-learn", "1.0.2", "CC-BY-2.0", "scikit-learn datasets",
           named_files("sklearn/datasets/images", PHOTOS)),
    Source("gcompris", "photos", "debian", "gcompris-qt-data", "", OF_GCOMPRIS, "GCompris",
           named_files(GCOMPRIS, PHOTOS, only=GCOMPRIS_PHOTOS)),
    Source("palapeli", "photos", "debian", "palapeli-data", "", "public domain, GFDL", "Palapeli puzzles",
           named_files("usr/share/palapeli/collection", PHOTOS)),
    Source("horizons", "sprites", "debian", "unknown-horizons", "", "CC-BY-SA-3.0", "Unknown Horizons",
           first_frames("usr/share/unknown-horizons/content/gfx", r"^(buildings|units)/.*/idle/(45|225)$")),
    Source("lang", "sprites", "debian", "gcompris-qt-data", "", OF_GCOMPRIS, "GCompris",
           named_files(GCOMPRIS, PHOTOS, only=r"^lang/words|^leftright/(main|poing)")),
    Source("models3d", "sprites", "debian", "sweethome3d-furniture", "", "CC0, CC-BY-3.0",
           "Sweet Home 3D libraries: Blend Swap, Kator Legaz, Scopia, Reallusion", renders.read),
    Source("clipart", "sprites", "debian", "openclipart-svg", "", "public domain", "Open Clip Art Library",
           named_files("usr/share/openclipart/svg", (".svg",), CLIPART_SKIP)),
    Source("ships", "sprites", "debian", "endless-sky-data", "", "CC-BY-SA-4.0", "Endless Sky",
           named_files(SKY, PNG, only=r"^ship/", skip=r"void sprite.*-[1-9]|=[1-9]|-[1-9]\.")),
    Source("outfits", "sprites", "debian", "endless-sky-data", "", "CC-BY-SA-4.0", "Endless Sky",
           named_files(SKY, PNG, only=r"^outfit/")),
    Source("costumes", "sprites", "debian", "scratch", "", "CC-BY-SA-3.0", "Scratch media, MIT",
           named_files("usr/share/scratch/Media/Costumes", (".png", ".gif"), "Letters")),
    Source("fluentflat", "sprites", "npm", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
           "Microsoft Fluent Emoji", iconify_emoji),
    Source("twemoji", "sprites", "npm", "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twemoji",
           iconify_emoji),
)  # fmt: skip
