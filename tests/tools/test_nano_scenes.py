"""The scenes that masklet-nano learns from: exact, deterministic masks, and nothing held out in training."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("cv2", reason="tools/nano composes with opencv-python-headless")

TOOLS = Path(__file__).parents[2] / "tools" / "nano"
SIZE = 96


@pytest.fixture(scope="module")
def scenes() -> Iterator[ModuleType]:
    """tools/nano/scenes.py, imported as its own scripts import it."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import scenes  # pyright: ignore[reportMissingImports]

        yield scenes
        for name in set(sys.modules) - before:
            if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sprites and two photographs a split; the first photograph of training comes with regions."""
    root = tmp_path_factory.mktemp("nano")
    rng = np.random.default_rng(0)
    for split in ("train", "held"):
        (root / "sprites" / split / "drawn").mkdir(parents=True)
        (root / "photos" / split).mkdir(parents=True)
        for number in range(3):
            sprite = Image.new("RGBA", (120, 80))
            ImageDraw.Draw(sprite).ellipse((10, 10, 110 - 20 * number, 70), fill=(250, 80 * number, 30, 255))
            sprite.save(root / "sprites" / split / "drawn" / f"{split}{number}.png")
        for number in range(2):
            photo = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((240, 180))
            photo.save(root / "photos" / split / f"{split}{number}.jpg")
    (root / "regions" / "train").mkdir(parents=True)
    labels = np.zeros((360, 480), np.uint16)  # a label map has its own resolution
    labels[80:280, 40:240], labels[80:280, 240:320] = 300, 7
    Image.fromarray(labels).save(root / "regions" / "train" / "train0.png")
    photo = np.select([labels == 300, labels == 7], [250, 10], 128).astype(np.uint8)
    Image.fromarray(photo[::2, ::2]).convert("RGB").save(root / "photos" / "train" / "train0.jpg")
    return root


def areas(masks: np.ndarray) -> np.ndarray:
    return masks.mean((-2, -1))


def test_a_still_depends_on_its_index_alone(scenes: ModuleType, data: Path) -> None:
    first, second = scenes.Scenes(data, size=SIZE), scenes.Scenes(data, size=SIZE)
    for index in (3, 2000, 3):
        second.still(index + 1)
        one, other = first.still(index), second.still(index)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)
    assert not np.array_equal(first.still(3).image, first.still(4).image)
    assert not np.array_equal(first.still(3).image, scenes.Scenes(data, size=SIZE, seed=1).still(3).image)


def test_a_copy_for_a_worker_is_small_and_draws_the_same(scenes: ModuleType, data: Path) -> None:
    original = scenes.Scenes(data, size=SIZE)
    still = original.still(11)
    packed = pickle.dumps(original)
    assert len(packed) < 10_000, "what was decoded travels along"
    assert np.array_equal(pickle.loads(packed).still(11).image, still.image)


@pytest.mark.parametrize("split", ["train", "held"])
def test_stills_have_one_to_eight_masks_of_what_is_seen(scenes: ModuleType, data: Path, split: str) -> None:
    source = scenes.Scenes(data, split, size=SIZE)
    counts = set()
    for index in range(60):
        still = source.still(index)
        assert still.image.shape == (SIZE, SIZE, 3)
        assert still.image.dtype == np.uint8
        assert still.masks.shape[1:] == (SIZE, SIZE)
        assert still.masks.dtype == bool
        assert 1 <= len(still.masks) <= 8
        assert areas(still.masks).min() >= 0.0015
        for i, one in enumerate(still.masks):
            for other in still.masks[:i]:  # no pixel has two owners, unless one mask is a part of the other
                assert (one & other).sum() in (0, min(one.sum(), other.sum()))
        counts.add(len(still.masks))
    assert len(counts) > 2


def test_a_mask_lies_where_the_object_is_painted(scenes: ModuleType) -> None:
    """A canvas is painted back to front: the last layer owns its pixels, and its pixels have its colour."""
    from canvas import Canvas, Layer, placed  # pyright: ignore[reportMissingImports]

    canvas = Canvas(np.zeros((64, 64, 3), np.uint8))
    red, green = (np.full((20, 20, 4), (*colour, 255), np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))
    canvas.paint(Layer(red), placed(Layer(red), np.array([20.0, 30.0]), 0.4), owner=1)
    canvas.paint(Layer(green), placed(Layer(green), np.array([30.0, 30.0]), -0.2), owner=2)
    brightest = canvas.image.max(-1)
    sure = (brightest == 0) | (brightest > 200)  # a pixel on two edges at once is of no clear colour
    assert sure.mean() > 0.95
    assert np.array_equal((canvas.owner == 1)[sure], (canvas.image[..., 0] >= 128)[sure])
    assert np.array_equal((canvas.owner == 2)[sure], (canvas.image[..., 1] >= 128)[sure])
    assert 200 < (canvas.owner == 1).sum() < 330
    rows, columns = np.nonzero(canvas.owner == 2)
    assert len(rows) == pytest.approx(400, abs=20)
    assert (columns.mean(), rows.mean()) == pytest.approx((30, 30), abs=0.3)


def test_what_cannot_be_clicked_on_is_no_mask(scenes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import stills  # pyright: ignore[reportMissingImports]

    mask = np.zeros((100, 100), bool)
    mask[10:14, 10:14] = True  # 16 of 10,000 pixels; 15 are enough
    assert stills.one_piece(mask)
    assert not stills.one_piece(mask, least=0.002)
    mask[50:54, 50:54] = True
    assert not stills.one_piece(mask), "two pieces of the same size"
    assert not stills.one_piece(~mask), "all of the picture"

    picture = np.zeros((100, 100, 3), np.uint8)
    drawn = iter([(picture, []), (picture, [mask])])
    monkeypatch.setattr(stills, "_composite", lambda *_: next(drawn))
    stock = scenes.Scenes("nowhere", size=100)._stock_for(0)
    assert len(stills.compose_still(np.random.default_rng(0), stock, 100).masks) == 1


def test_a_clip_follows_one_to_three_objects_seen_at_first(scenes: ModuleType, data: Path) -> None:
    source, again = scenes.Scenes(data, size=SIZE), scenes.Scenes(data, size=SIZE)
    clips = [source.clip(index, frames=6) for index in range(25)]
    for clip in clips:
        assert clip.images.shape == (6, SIZE, SIZE, 3)
        assert clip.images.dtype == np.uint8
        assert clip.masks.shape[0] == 6
        assert clip.masks.shape[2:] == (SIZE, SIZE)
        assert clip.masks.dtype == bool
        assert 1 <= clip.masks.shape[1] <= 3
        assert areas(clip.masks[0]).min() >= 0.003
        assert clip.masks.sum(1).max() == 1, "a pixel with two owners"
    assert any((areas(clip.masks) == 0).any() for clip in clips), "no object is ever hidden or gone"
    assert np.array_equal(again.clip(24, frames=6).images, clips[24].images)


def test_regions_of_a_photograph_become_masks(scenes: ModuleType, data: Path) -> None:
    """Whatever the crop and the flip, a region is a rectangle as drawn, of one colour in the photograph."""
    from layers import Stock  # pyright: ignore[reportMissingImports]
    from stills import _photograph  # pyright: ignore[reportMissingImports]

    assets = scenes.Scenes(data, size=SIZE).assets
    stock = Stock(assets, [], ["train0.jpg", "train1.jpg"])
    assert stock.mapped == ["train0.jpg"]
    rng = np.random.default_rng(0)
    for _ in range(10):
        image, masks = _photograph(rng, stock, SIZE)
        assert image.shape == (SIZE, SIZE, 3)
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert mask.sum() == len(rows) * len(columns)
            inside = (
                image[rows[0] + 4 : rows[-1] - 3, columns[0] + 4 : columns[-1] - 3].reshape(-1, 3).astype(int)
            )
            assert (np.abs(inside - np.median(inside, 0)).max(1) < 40).mean() > 0.98


def test_no_item_is_in_both_splits(scenes: ModuleType, data: Path) -> None:
    train, held = (scenes.Scenes(data, split, size=SIZE).items() for split in ("train", "held"))
    assert not set(train) & set(held)
    for items in (train, held):
        assert {item.split(":")[0] for item in items} == {"sprite", "photo", "shape", "texture"}
        assert len(items) == len(set(items))
    assert "sprite:drawn/train0.png" in train
    assert "photo:held1.jpg" in held


def test_scenes_need_no_data(scenes: ModuleType, tmp_path: Path) -> None:
    assert areas(scenes.Scenes(tmp_path, size=SIZE).still(0).masks).min() > 0


def test_errors_say_what_to_do(scenes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train, held"):
        scenes.Scenes(tmp_path, "test")
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.jpg.*gather"):
        scenes.Scenes(tmp_path).assets.photo("a.jpg")


def test_the_preview_is_a_picture(
    scenes: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scenes.py", str(data), "--preview", str(tmp_path / "sheet.png")])
    scenes.main()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 6 * 256
