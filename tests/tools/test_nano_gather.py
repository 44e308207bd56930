"""What gathers masklet-nano's pictures: concepts and their split, cropping, refusals, the manifest."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")
TOOLS = Path(__file__).parents[2] / "tools" / "nano"
PINNED = [5, 9, 10, 14, 31, 32, 34, 41, 43, 52, 64, 68, 77, 97, 98]  # of "concept 0" to "concept 99"
WORDS = frozenset({"apple", "dog", "horse", "cat"})


@pytest.fixture(autouse=True)
def nano_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(TOOLS)):
            del sys.modules[name]


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def disc(size: int, radius: float, colour: tuple[int, int, int] = (200, 40, 40)):
    """An RGBA picture with a disc in its middle; what is empty has the hidden colour green."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = x**2 + y**2 <= radius**2
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[..., :3] = np.where(inside[..., None], colour, (0, 255, 0))
    rgba[..., 3] = np.where(inside, 255, 0)
    return Image.fromarray(rgba)


def png(picture) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("red apple", "apple"),
        ("green_apples_photo-02", "apple"),
        ("dog face", "dog"),
        ("guide dog", "dog"),
        ("cat with wry smile", "cat"),
        ("littleHorse", "horse"),
        ("grinning face", "face"),
        ("face with tears of joy", "face"),
        ("woman firefighter", "firefighter"),
        ("man firefighter", "firefighter"),
        ("tape_measure_open", "tape-measure"),
        ("woman", "person"),
        ("two", ""),
    ],
)
def test_the_same_thing_has_one_concept(name: str, concept: str) -> None:
    assert load("concepts").concept(name, WORDS) == concept


def test_skin_tones_and_variation_selectors_do_not_name_another_emoji() -> None:
    concepts = load("concepts")
    plain = concepts.codepoints("1f469-200d-1f692")
    dark = concepts.codepoints("1F469_1F3FE_200D_1F692_FE0F")
    assert concepts.skin_tones(dark) == (0x1F3FE,)
    assert concepts.without_tones(dark) == concepts.without_tones(plain) == plain


def test_vocabulary_is_what_one_word_names() -> None:
    words = load("concepts").vocabulary(["red apple", "guide dog", "dog face", "woman", "roller coaster"])
    assert words == {"apple"} | {"face"} & words
    assert "coaster" not in words


def test_split_is_a_fixed_hash_that_holds_out_about_fifteen_percent() -> None:
    split_of = load("concepts").split_of
    splits = [split_of(f"concept {number}") for number in range(2000)]
    assert 0.13 < splits.count("held") / 2000 < 0.17
    assert set(splits) == {"train", "held"}
    assert [number for number in range(100) if split_of(f"concept {number}") == "held"] == PINNED


def test_pictures_that_show_the_model_are_held_out() -> None:
    gather = load("gather")
    assert {gather.photo_split(name) for name in ("astronaut", "coffee", "chelsea")} == {"held"}


def test_crop_leaves_the_object_and_no_hidden_colour() -> None:
    cutouts = load("cutouts")
    sprite = cutouts.crop(disc(900, 400))
    assert sprite.size == (320, 320)
    pixels = np.asarray(sprite).astype(int)
    opaque = pixels[pixels[..., 3] > 128]
    assert opaque[:, 1].max() < 60  # the disc is red: none of the empty pixels' green bled in
    assert cutouts.crop(disc(100, 30)).size == (60, 60)  # never scaled up
    assert cutouts.crop(Image.new("RGBA", (50, 50))).size == (0, 0)


def refused(picture) -> str | None:
    cutouts = load("cutouts")
    return cutouts.refusal(cutouts.crop(picture))


def test_refusals() -> None:
    assert refused(disc(200, 90)) is None
    assert refused(disc(200, 20)) == "small"
    assert refused(Image.new("RGBA", (200, 200), (9, 9, 9, 255))) == "rectangle"
    assert refused(Image.new("RGBA", (50, 50))) == "small"
    ghost = disc(200, 90)
    ghost.putalpha(ghost.getchannel("A").point(lambda value: value * 150 // 255))
    assert refused(ghost) == "see-through"
    ring = np.asarray(disc(200, 90)).copy()
    ring[..., 3] -= np.asarray(disc(200, 86))[..., 3]
    assert refused(Image.fromarray(ring)) in ("thin strokes", "little cover")
    dots = np.zeros((200, 200, 4), np.uint8)
    for corner in (0, 150):
        for other in (0, 75, 150):
            dots[corner : corner + 50, other : other + 50] = 255
    assert refused(Image.fromarray(dots)) == "many pieces"


@pytest.mark.parametrize(
    ("head", "size", "wide"),
    [
        ('<svg width="30.00pt" height="60pt">', ('width="40.0000"', 'height="80.0000"'), False),
        ('<svg width="100%" height="100%" viewBox="0 0 20 10">', ("viewBox",), True),
        ("<svg viewBox='0 0 10 20'>", ("viewBox",), False),
    ],
)
def test_svg_sizes_are_pixels(head: str, size: tuple[str, ...], wide: bool) -> None:
    made, is_wide = load("cutouts").plain_size(f"<?xml version='1.0'?>{head}<g/></svg>")
    assert is_wide == wide
    assert all(part in made for part in size)
    assert "%" not in made
    assert "pt" not in made


def test_a_sprite_is_a_cropped_png_or_a_reason() -> None:
    gather, readers = load("gather"), load("readers")
    made, reason = gather.make_sprite(readers.Item("disc", "disc", png(disc(200, 90))))
    assert reason == ""
    assert Image.open(io.BytesIO(made)).size == (180, 180)
    junk = gather.make_sprite(readers.Item("junk", "junk", b"no picture"))
    assert junk == (b"", "unreadable (UnidentifiedImageError)")


def test_two_sets_never_have_a_concept_on_both_sides(tmp_path: Path) -> None:
    """The lists of a small folder made by the tool's own functions, and its manifest."""
    gather, concepts, readers = (load(name) for name in ("gather", "concepts", "readers"))
    things = [f"{kind} thing{letter}" for letter in "abcdefghijklmnopqrst" for kind in ("red", "old", "")]
    for number, source in enumerate(("one", "two")):
        for name in things[number:]:
            item = readers.Item(name.replace(" ", "_"), concepts.concept(name, WORDS), b"")
            path = tmp_path / gather.place("sprites", source, item)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    gather.write_manifest(tmp_path, {"one": {"items": {"train": 1}}})

    sides = {
        split: {path.name.split("--")[0] for path in tmp_path.glob(f"sprites/{split}/*/*.png")}
        for split in concepts.SPLITS
    }
    assert min(map(len, sides.values())) > 0
    assert not sides["train"] & sides["held"]
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert manifest["files"] == 2 * len(things) - 1
    first = manifest["sha256_of_file_list"]
    next(tmp_path.glob("sprites/*/*/*.png")).unlink()
    gather.write_manifest(tmp_path, {})
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8"))["sha256_of_file_list"] != first


def test_every_source_states_its_licence() -> None:
    rows = load("sources").SOURCES
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.licence
        assert row.project
        assert row.kind in ("sprites", "photos")
        assert row.registry in ("npm", "debian", "pypi")
