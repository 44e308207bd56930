from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masklet.errors import InputError
from masklet.io.label_map import davis_palette, label_map, read_label_map, write_label_map

# The first colours of PASCAL VOC's table, as its development kit lists them.
VOC = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128),
    (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip


def square(top: int, left: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((8, 12), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_palette_is_the_published_one() -> None:
    palette = np.frombuffer(davis_palette(), np.uint8).reshape(256, 3)
    assert [tuple(colour) for colour in palette[: len(VOC)].tolist()] == VOC
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_the_higher_score_wins_where_masks_overlap() -> None:
    masks = [(1, 0.5, square(0, 0)), (2, 0.9, square(2, 2)), (3, 0.7, square(3, 3))]
    for order in (masks, masks[::-1]):
        labels = label_map(order, (8, 12))
        assert labels.dtype == np.uint8
        assert labels[1, 1] == 1
        assert labels[2, 2] == 2  # 1 and 2
        assert labels[4, 4] == 2  # 2 and 3
        assert labels[6, 6] == 3
        assert labels[7, 11] == 0


def test_of_equal_scores_the_lower_id_wins() -> None:
    labels = label_map([(2, 0.5, square(0, 0)), (1, 0.5, square(0, 0))], (8, 12))
    assert labels[0, 0] == 1


@pytest.mark.parametrize("object_id", [0, 256, -1])
def test_an_id_that_no_index_holds(object_id: int) -> None:
    with pytest.raises(InputError, match="1 to 255"):
        label_map([(object_id, 0.5, square(0, 0))], (8, 12))


def test_written_and_read(tmp_path: Path) -> None:
    labels = label_map([(1, 0.5, square(0, 0)), (255, 0.5, square(4, 6))], (8, 12))
    write_label_map(tmp_path / "map.png", labels)
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert image.convert("RGB").getpixel((0, 0)) == (128, 0, 0)
    read = read_label_map(tmp_path / "map.png")
    assert list(read) == [1, 255]
    assert np.array_equal(read[1], square(0, 0))
    assert np.array_equal(read[255], square(4, 6))


def test_grey_values_are_ids(tmp_path: Path) -> None:
    Image.fromarray(square(0, 0) * np.uint8(3) + square(4, 6) * np.uint8(7)).save(tmp_path / "grey.png")
    assert list(read_label_map(tmp_path / "grey.png")) == [3, 7]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((8, 12), np.uint8), "holds no object"),
        (square(0, 0) * np.uint8(255), "black and white"),
        (np.zeros((8, 12, 3), np.uint8), "no palette"),
    ],
)
def test_pictures_that_name_no_object(tmp_path: Path, pixels: np.ndarray, words: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with pytest.raises(InputError, match=words):
        read_label_map(tmp_path / "picture.png")
