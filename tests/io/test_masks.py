from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masklet.errors import InputError, OutputError
from masklet.io.masks import (
    mask_to_bbox_xywh,
    mask_to_box_xyxy,
    read_mask,
    read_mask_input,
    write_mask,
)
from masklet.rle import area, decode_rle, encode_rle


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x - 0.6 * width) / (0.3 * width)) ** 2 + ((y - 0.45 * height) / (0.4 * height)) ** 2 < 1


def noise(height: int, width: int, density: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < density


def single(height: int, width: int, row: int, column: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[row, column] = True
    return mask


MASKS = {
    "random": noise(37, 53),
    "sparse": noise(61, 29, 0.02),
    "dense": noise(20, 90, 0.97),
    "empty": np.zeros((7, 9), bool),
    "full": np.ones((7, 9), bool),
    "one pixel, off": np.zeros((1, 1), bool),
    "one pixel, on": np.ones((1, 1), bool),
    "one column": noise(50, 1),
    "one row": noise(1, 50),
    "first pixel": single(5, 6, 0, 0),
    "last pixel": single(5, 6, 4, 5),
    "bottom and next top": single(5, 6, 4, 2) | single(5, 6, 0, 3),
    "ellipse": ellipse(90, 120),
    "tall": ellipse(700, 200),  # counts of three characters
    "thirty thousand": np.zeros((150, 200), bool),  # of four
    "not contiguous": noise(40, 40)[::2, ::-3],
    "Fortran order": np.asfortranarray(noise(12, 17)),
}
each_mask = pytest.mark.parametrize("mask", [pytest.param(mask, id=name) for name, mask in MASKS.items()])


# -------------------------------------------------------------------------------------------------------- RLE


def slow_counts(mask: np.ndarray) -> list[int]:
    """Run lengths by walking down the columns."""
    counts, value = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def slow_text(counts: list[int]) -> str:
    """pycocotools' text, number by number."""
    text = ""
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            low, number = number & 31, number >> 5
            more = number != -1 if low & 16 else number != 0
            text += chr(48 + low + (32 if more else 0))
    return text


@each_mask
def test_encoding_is_the_definition(mask: np.ndarray) -> None:
    encoded = encode_rle(mask)
    assert encoded == {"size": list(mask.shape), "counts": slow_text(slow_counts(mask))}
    assert json.loads(json.dumps(encoded)) == encoded


@each_mask
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_encoding_equals_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    expected = coco.encode(np.asfortranarray(mask, np.uint8))
    ours = encode_rle(mask)
    assert ours["size"] == expected["size"]
    assert ours["counts"] == expected["counts"].decode("ascii")
    np.testing.assert_array_equal(coco.decode(ours), mask)
    assert area(ours) == coco.area(ours)
    assert list(mask_to_bbox_xywh(mask)) == coco.toBbox(ours).tolist()


@each_mask
def test_decoding_gives_the_mask_back(mask: np.ndarray) -> None:
    encoded = encode_rle(mask)
    forms = [encoded["counts"], encoded["counts"].encode(), slow_counts(mask), np.array(slow_counts(mask))]
    forms += [tuple(slow_counts(mask)), [*slow_counts(mask), 0, 0]]
    for counts in forms:
        decoded = decode_rle({"size": mask.shape, "counts": counts})
        assert decoded.dtype == np.bool_
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, mask)
        assert area({"size": mask.shape, "counts": counts}) == mask.sum()


def test_many_random_masks() -> None:
    generator = np.random.default_rng(3)
    for _ in range(80):
        height, width = generator.integers(1, 40, 2)
        mask = generator.random((height, width)) < generator.random()
        encoded = encode_rle(mask)
        assert encoded["counts"] == slow_text(slow_counts(mask))
        np.testing.assert_array_equal(decode_rle(encoded), mask)


GOOD: dict[str, Any] = {"size": [2, 3], "counts": [1, 2, 3]}


@pytest.mark.parametrize(
    "rle",
    [
        None,
        "52203",
        [],
        {},
        {"size": [2, 3]},
        {"counts": "06"},
        {**GOOD, "size": [2]},
        {**GOOD, "size": [2, 3, 1]},
        {**GOOD, "size": "23"},
        {**GOOD, "size": None},
        {**GOOD, "size": [2.5, 3]},
        {**GOOD, "size": ["2", "3"]},
        {**GOOD, "size": [float("nan"), 3]},
        {**GOOD, "size": [float("inf"), 3]},
        {**GOOD, "size": [-2, -3]},
        {**GOOD, "size": [0, 0], "counts": [0]},
        {**GOOD, "size": [10**10, 10**10]},
        {"size": [2**16, 2**16], "counts": [2**32]},
        {**GOOD, "counts": []},
        {**GOOD, "counts": ""},
        {**GOOD, "counts": b""},
        {**GOOD, "counts": None},
        {**GOOD, "counts": 6},
        {**GOOD, "counts": [1, 2]},
        {**GOOD, "counts": [1, 2, 4]},
        {**GOOD, "counts": [7, -1]},
        {**GOOD, "counts": [5, -1, 2]},
        {**GOOD, "counts": np.array([2**64 - 1, 7], np.uint64)},
        {**GOOD, "counts": [1.0, 5.0]},
        {**GOOD, "counts": [True, False]},
        {**GOOD, "counts": ["1", "5"]},
        {**GOOD, "counts": [[1, 5]]},
        {**GOOD, "counts": [[1], 5]},
        {**GOOD, "counts": [2**63, 2**63, 6]},
        {**GOOD, "counts": [2**62, 2**62, 2**62, 2**62, 6]},  # wraps around to 6
        {**GOOD, "counts": [2**200]},
        {**GOOD, "counts": "0 6"},
        {**GOOD, "counts": "06\n"},
        {**GOOD, "counts": "0é"},
        {**GOOD, "counts": "0\ud800"},
        {**GOOD, "counts": "0p"},
        {**GOOD, "counts": "0P"},  # says that more follows, and nothing does
        {**GOOD, "counts": "0" + "o" * 40 + "0"},
        {**GOOD, "counts": "0V" + "P" * 12 + "0"},  # 6, and endless zeros
        {**GOOD, "counts": "0O"},  # negative
        {**GOOD, "counts": "07"},
    ],
)
def test_malformed_encodings(rle: Any) -> None:
    for function in (area, decode_rle):
        with pytest.raises(InputError):
            function(rle)


def test_damaged_text_gives_a_mask_of_the_size_or_our_error() -> None:
    generator = np.random.default_rng(0)
    whole, refused = encode_rle(ellipse(60, 80)), 0
    for _ in range(1000):
        text = bytearray(whole["counts"].encode())
        for _ in range(int(generator.integers(1, 4))):
            text[int(generator.integers(0, len(text)))] = int(generator.integers(0, 256))
        counts = bytes(
            text[: int(generator.integers(1, len(text) + 1))] if generator.random() < 0.3 else text
        )
        try:
            assert decode_rle({"size": [60, 80], "counts": counts}).shape == (60, 80)
        except InputError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 4), np.uint8), np.zeros((1, 3, 4), bool), np.zeros((0, 4), bool), np.zeros(3, bool), 1],
)
def test_what_is_no_mask(mask: Any, tmp_path: Path) -> None:
    for function in (encode_rle, mask_to_box_xyxy, lambda mask: write_mask(tmp_path / "a.png", mask)):
        with pytest.raises(InputError, match="bool"):
            function(mask)


# ------------------------------------------------------------------------------------------------------ boxes


def test_boxes() -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:5, 7:15] = True
    mask[3, 9] = False
    assert mask_to_box_xyxy(mask) == (7, 2, 15, 5)
    assert mask_to_bbox_xywh(mask) == (7, 2, 8, 3)
    assert mask_to_box_xyxy(~mask) == (0, 0, 20, 10)
    assert mask_to_box_xyxy(single(10, 20, 9, 19)) == (19, 9, 20, 10)
    empty = np.zeros((10, 20), bool)
    assert mask_to_box_xyxy(empty) == mask_to_bbox_xywh(empty) == (0, 0, 0, 0)
    json.dumps(mask_to_bbox_xywh(mask))  # plain ints, not numpy's


# ---------------------------------------------------------------------------------------------- mask pictures


@each_mask
def test_mask_files_come_back(tmp_path: Path, mask: np.ndarray) -> None:
    write_mask(tmp_path / "a.png", mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), np.where(mask, 255, 0))
    back = read_mask(tmp_path / "a.png")
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, mask)


def test_masks_are_written_as_png_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"may end in \.png"):
        write_mask(tmp_path / "a.jpg", MASKS["random"])
    with pytest.raises(OutputError, match="create it"):
        write_mask(tmp_path / "no" / "a.png", MASKS["random"])
    assert os.listdir(tmp_path) == []


def test_what_a_picture_means(tmp_path: Path) -> None:
    mask = MASKS["ellipse"]
    values = mask.astype(np.uint8)
    path = tmp_path / "a.png"

    for array in (
        values,
        values * 255,
        values * 200,
        values.astype(np.uint16) * 65535,
        np.dstack([values * 90] * 3),
    ):
        Image.fromarray(array).save(path)
        np.testing.assert_array_equal(read_mask(path), mask)
    Image.fromarray(values * 255).convert("1").save(path)
    np.testing.assert_array_equal(read_mask(path), mask)

    soft = np.array([[0, 100, 130, 250]], np.uint8)
    Image.fromarray(soft).save(path)
    np.testing.assert_array_equal(read_mask(path), [[False, False, True, True]])

    Image.fromarray(values * 255).save(tmp_path / "a.jpg", quality=80)
    assert (read_mask(tmp_path / "a.jpg") != mask).mean() < 1e-3


def test_palettes_of_annotations(tmp_path: Path) -> None:
    """Objects of different brightness on black, as DAVIS stores them; index 0 need not be black."""
    path = tmp_path / "a.png"
    image = Image.new("P", (4, 1))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 64, 0, 255, 255, 0])
    for x in range(4):
        image.putpixel((x, 0), x)
    image.save(path)
    np.testing.assert_array_equal(read_mask(path), [[False, True, True, True]])
    image.putpalette([255, 255, 255, 0, 0, 0, 20, 20, 20, 0, 0, 0])  # grey: a mask made small by its palette
    image.save(path)
    np.testing.assert_array_equal(read_mask(path), [[True, False, False, False]])


def test_cut_out_pictures(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [255, 0, 100]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[True, False, False]])
    rgba[0] = [
        [255, 255, 255, 255],
        [0, 0, 0, 255],
        [9, 9, 9, 255],
    ]  # nothing is transparent: brightness counts
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[True, False, False]])


# ------------------------------------------------------------------------------------------------ mask arrays


def test_stored_arrays(tmp_path: Path) -> None:
    logits = np.linspace(-9, 9, 12, dtype=np.float64).reshape(1, 1, 3, 4)
    np.save(tmp_path / "a.npy", logits)
    read = read_mask(tmp_path / "a.npy")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, logits[0, 0].astype(np.float32))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", logits)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.npz"), read)

    mask = logits[0, 0] > 0
    for array in (mask, mask.astype(np.uint8), mask[None] * 255, mask.astype(np.float32)):
        np.save(tmp_path / "a.npy", array)
        read = read_mask(tmp_path / "a.npy")
        assert read.dtype == np.bool_
        np.testing.assert_array_equal(read, mask)
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))  # logits: zero says nothing, neither on nor off
    assert read_mask(tmp_path / "a.npy").dtype == np.float32


def test_stored_arrays_that_are_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, word in (
        (np.zeros((3, 8, 8), np.float32), "several"),
        (np.zeros(8, np.float32), "height and width"),
        (np.float32(1), "height and width"),
        (np.zeros((0, 8), np.float32), "height and width"),
        (np.zeros((8, 8), complex), "complex"),
        (np.full((8, 8), "x"), "<U1"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=word):
            read_mask(path)
    np.savez(tmp_path / "two.npz", np.zeros((8, 8)), np.zeros((8, 8)))
    with pytest.raises(InputError, match="2 arrays"):
        read_mask(tmp_path / "two.npz")


class Marker:
    """Unpickling one would leave a folder behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def test_pickles_are_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("object.npy", np.array([[Marker()]], object), allow_pickle=True)
    Path("plain.npy").write_bytes(pickle.dumps(Marker()))
    with zipfile.ZipFile("object.npz", "w") as archive:
        archive.write("object.npy")
    for name in ("object.npy", "plain.npy", "object.npz"):
        with pytest.raises(InputError, match="not an array file"):
            read_mask(name)
    assert not Path("unpickled").exists()


def test_damaged_array_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    wholes = {}
    for suffix, save in ((".npy", np.save), (".npz", np.savez_compressed)):
        memory = io.BytesIO()
        save(memory, generator.standard_normal((8, 8)).astype(np.float32))
        wholes[suffix] = memory.getvalue()
    refused = 0
    for suffix, whole in wholes.items():
        path = tmp_path / f"a{suffix}"
        for round_number in range(120):
            data = bytearray(whole)
            for _ in range(int(generator.integers(1, 4))):
                data[int(generator.integers(0, min(len(data), 140)))] = int(generator.integers(0, 256))
            path.write_bytes(data[: len(data) // 2] if round_number % 10 == 0 else data)
            try:
                read_mask(path)
            except InputError:
                refused += 1
    assert refused > 120


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no.npy", "no.png"):
        with pytest.raises(InputError, match="There is no file"):
            read_mask(tmp_path / name)
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(InputError, match="not an array file"):
        read_mask(tmp_path / "empty.npy")


# ----------------------------------------------------------------------------------------------- mask prompts


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (1, 1, 16, 16)])
def test_logits_are_taken_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "a.npy", logits)
    read = read_mask_input(tmp_path / "a.npy", 16)
    assert read.shape == (1, 16, 16)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[0], logits.reshape(16, 16))


def test_logits_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((16, 15), 2, np.float32))
    with pytest.raises(InputError, match="16 x 15; this model takes 16 x 16"):
        read_mask_input(tmp_path / "a.npy", 16)
    np.save(tmp_path / "a.npy", np.full((16, 16), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        read_mask_input(tmp_path / "a.npy", 16)


def test_a_picture_becomes_logits(tmp_path: Path) -> None:
    mask = np.zeros((60, 100), bool)
    mask[:, 50:] = True  # the edge falls between two pixels of the small picture, and blurs over both
    write_mask(tmp_path / "a.png", mask)
    logits = read_mask_input(tmp_path / "a.png", 20)
    assert logits.shape == (1, 20, 20)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0, :, :9], -10, atol=1e-5)
    np.testing.assert_allclose(logits[0, :, 11:], 10, atol=1e-5)
    np.testing.assert_allclose(logits[0, :, 9], -logits[0, :, 10], atol=1e-5)
    assert (logits[0, :, 9] > -10).all()
    assert (logits[0, :, 9] < 0).all()
    right_half = np.broadcast_to(np.arange(40) >= 20, (1, 40, 40))
    np.testing.assert_array_equal(read_mask_input(tmp_path / "a.png", 40) > 0, right_half)


def test_a_small_mask_is_enlarged(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4, dtype=bool))
    logits = read_mask_input(tmp_path / "a.npy", 16)
    assert logits.shape == (1, 16, 16)
    assert (logits[0, :2, :2] == 10).all()
    assert (logits[0, -2:, :2] == -10).all()
