from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from masklet.pipeline import postprocess
from masklet.pipeline.postprocess import clean_low_res, component_areas, resize_and_threshold, resize_logits


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return (8 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# --------------------------------------------------------------------------------------------------- resizing


def slow_resize(plane: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear from its definition, one pixel at a time in float64."""
    height, width = plane.shape

    def value(row: int, column: int) -> float:
        return float(plane[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])

    out = np.empty(size_hw)
    for i in range(size_hw[0]):
        for j in range(size_hw[1]):
            y = (i + 0.5) * height / size_hw[0] - 0.5
            x = (j + 0.5) * width / size_hw[1] - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            v, u = y - top, x - left
            upper = (1 - u) * value(top, left) + u * value(top, left + 1)
            lower = (1 - u) * value(top + 1, left) + u * value(top + 1, left + 1)
            out[i, j] = (1 - v) * upper + v * lower
    return out


SIZES = [
    ((7, 5), (31, 44)),
    ((16, 16), (16, 16)),
    ((16, 12), (9, 25)),  # smaller one way, larger the other: no antialiasing
    ((12, 10), (5, 3)),
    ((1, 1), (4, 3)),
    ((6, 1), (1, 6)),
]


@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_resize_is_bilinear_interpolation(size_in: tuple[int, int], size_out: tuple[int, int]) -> None:
    logits = random_logits(*size_in)
    resized = resize_logits(logits, size_out)
    assert resized.shape == size_out
    assert resized.dtype == np.float32
    # Positions in float32 are exact to 1e-7 of the side; logits differ by some 10 from pixel to pixel.
    np.testing.assert_allclose(resized, slow_resize(logits, size_out), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("size_in", "size_out"), [*SIZES, ((256, 256), (720, 1280)), ((64, 64), (100, 3001))]
)
def test_resize_equals_torch(size_in: tuple[int, int], size_out: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    logits = random_logits(1, 2, *size_in)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size_out, mode="bilinear", align_corners=False
    ).numpy()
    # The weights are torch's bit for bit; what remains is one rounding, fused or not.
    np.testing.assert_allclose(
        resize_logits(logits, size_out), expected, rtol=0, atol=3e-7 * abs(logits).max()
    )


def test_same_size_is_the_identity() -> None:
    logits = random_logits(2, 33, 21)
    np.testing.assert_array_equal(resize_logits(logits, (33, 21)), logits)


def test_resize_keeps_leading_dimensions_and_planes_apart() -> None:
    logits = random_logits(2, 3, 8, 6)
    resized = resize_logits(logits, (20, 15))
    assert resized.shape == (2, 3, 20, 15)
    np.testing.assert_array_equal(resized[1, 2], resize_logits(logits[1, 2], (20, 15)))
    assert resize_logits(logits[:0], (20, 15)).shape == (0, 3, 20, 15)


def test_blocks_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(1, 9, 7)
    whole = resize_logits(logits, (41, 13))
    monkeypatch.setattr(postprocess, "_BLOCK_ELEMENTS", 3 * 13)
    np.testing.assert_array_equal(resize_logits(logits, (41, 13)), whole)
    monkeypatch.setattr(postprocess, "_BLOCK_ELEMENTS", 1)  # less than a row
    np.testing.assert_array_equal(resize_logits(logits, (41, 13)), whole)


def test_resize_takes_views() -> None:
    logits = random_logits(10, 12)
    np.testing.assert_array_equal(
        resize_logits(logits[::2, ::3].T, (9, 9)), resize_logits(logits[::2, ::3].T.copy(), (9, 9))
    )


@pytest.mark.parametrize("threshold", [0.0, 1.5, -3.0])
def test_thresholding_on_the_way_changes_nothing(threshold: float) -> None:
    logits = random_logits(2, 1, 64, 48)
    masks = resize_and_threshold(logits, (333, 500), threshold)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, resize_logits(logits, (333, 500)) > threshold)


def planes_of_all_kinds(height: int, width: int) -> Iterator[np.ndarray]:
    """Smooth and noisy, on one side of zero, exactly at zero, tiny, huge, not finite."""
    row, column = np.mgrid[:height, :width].astype(np.float32)
    generator = np.random.default_rng(height * width)
    noise = random_logits(height, width)
    yield noise
    yield np.hypot(row - height / 2, column - width / 3) - np.float32(min(height, width) / 4)
    yield column - np.float32(width // 2)  # an edge at exactly zero
    yield abs(noise)
    yield -abs(noise)
    yield np.zeros_like(noise)
    yield np.full_like(noise, -1024)
    yield np.where(generator.random(noise.shape) < 0.3, np.float32(0), noise)
    yield np.round(noise)
    yield noise * np.float32(1e-44)
    yield np.where(generator.random(noise.shape) < 0.01, np.float32(3e38), noise)
    yield np.where(generator.random(noise.shape) < 0.05, np.float32(np.inf), noise)
    yield np.where(generator.random(noise.shape) < 0.05, np.float32(np.nan), noise)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity times a weight of zero
@pytest.mark.parametrize("threshold", [0.0, 1.0, -2.5])
@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [*SIZES, ((1, 9), (40, 40)), ((9, 1), (40, 40)), ((24, 20), (67, 100)), ((20, 24), (20, 97))],
)
def test_masks_drawn_along_outlines_are_the_same(
    size_in: tuple[int, int],
    size_out: tuple[int, int],
    threshold: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postprocess, "_OUTLINE", 1)  # however many cells there are
    monkeypatch.setattr(postprocess, "_CELL", 1)
    for plane in planes_of_all_kinds(*size_in):
        expected = resize_logits(plane, size_out) > threshold
        np.testing.assert_array_equal(resize_and_threshold(plane, size_out, threshold), expected)


def test_smooth_masks_are_drawn_and_noisy_ones_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, smooth, *_ = planes_of_all_kinds(256, 256)
    planes = np.stack([random_logits(256, 256), smooth, random_logits(256, 256, seed=1)])
    expected = resize_logits(planes, (720, 1280)) > 0
    computed = []
    blocks = postprocess.Resizing.blocks

    def counted(self: postprocess.Resizing, plane: np.ndarray, window: tuple) -> Iterator:
        computed.append(plane)
        return blocks(self, plane, window)

    monkeypatch.setattr(postprocess.Resizing, "blocks", counted)
    np.testing.assert_array_equal(resize_and_threshold(planes, (720, 1280)), expected)
    assert len(computed) == 2
    assert all(plane is not smooth and not np.array_equal(plane, smooth) for plane in computed)


# ------------------------------------------------------------------------------------------------- components


def flood_fill_areas(binary: np.ndarray) -> np.ndarray:
    """The obvious way: spread from each pixel that was not reached yet."""
    height, width = binary.shape
    areas = np.zeros(binary.shape, int)
    for start in zip(*np.nonzero(binary), strict=True):
        if areas[start]:
            continue
        component, waiting = {start}, [start]
        while waiting:
            row, column = waiting.pop()
            for i in range(max(row - 1, 0), min(row + 2, height)):
                for j in range(max(column - 1, 0), min(column + 2, width)):
                    if binary[i, j] and (i, j) not in component:
                        component.add((i, j))
                        waiting.append((i, j))
        for pixel in component:
            areas[pixel] = len(component)
    return areas


def shapes() -> Iterator[tuple[str, np.ndarray]]:
    row, column = np.mgrid[:24, :31]
    yield "empty", np.zeros((24, 31), bool)
    yield "full", np.ones((24, 31), bool)
    yield "checkerboard: one component through corners", (row + column) % 2 == 0
    yield "dots", (row % 2 == 0) & (column % 2 == 0)
    yield "columns", column % 2 == 0
    yield "rows", row % 2 == 0
    yield "comb, joined below", (column % 2 == 0) | (row == 23)
    yield "comb, joined above", (column % 2 == 0) | (row == 0)
    snake = row % 2 == 0
    snake[1::4, -1] = snake[3::4, 0] = True
    yield "snake", snake
    yield "rings", np.minimum.reduce([row, column, 23 - row, 30 - column]) % 2 == 0
    yield "both diagonals", (row == column) | (row + column == 23)
    ends = np.zeros((24, 31), bool)
    ends[5, -1] = ends[6, 0] = True  # adjoining in memory, far apart in the picture
    yield "ends of rows", ends
    yield "one pixel", np.ones((1, 1), bool)
    yield "one row", np.array([[1, 1, 0, 1, 0, 0, 1]], bool)
    yield "one column", np.array([[1], [1], [0], [1]], bool)


@pytest.mark.parametrize(("binary"), [pytest.param(binary, id=name) for name, binary in shapes()])
def test_areas_of_shapes(binary: np.ndarray) -> None:
    for turned in (binary, binary.T, binary[::-1], binary[:, ::-1], ~binary):
        np.testing.assert_array_equal(component_areas(turned), flood_fill_areas(turned))


@pytest.mark.parametrize("density", [0.05, 0.2, 0.35, 0.45, 0.6, 0.9])
def test_areas_of_noise(density: float) -> None:
    generator = np.random.default_rng(int(100 * density))
    for height, width in ((40, 40), (3, 70), (70, 2), (1, 50), (17, 23)):
        binary = generator.random((height, width)) < density
        np.testing.assert_array_equal(component_areas(binary), flood_fill_areas(binary))


def test_areas_equal_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    binary = np.random.default_rng(5).random((256, 256)) < 0.4
    labels, count = ndimage.label(binary, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    np.testing.assert_array_equal(component_areas(binary), areas[labels])


def test_planes_of_a_batch_do_not_touch() -> None:
    binary = np.random.default_rng(1).random((2, 3, 15, 11)) < 0.5
    areas = component_areas(binary)
    assert areas.shape == binary.shape
    assert areas.dtype == np.int32
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(areas[i, j], flood_fill_areas(binary[i, j]))
    assert component_areas(np.ones((3, 4, 5), bool)).max() == 20
    assert component_areas(np.zeros((0, 4, 5), bool)).shape == (0, 4, 5)


@pytest.mark.parametrize("name", ["comb below", "steps", "noise", "tree"])
def test_rounds_stay_logarithmic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes on which hooking in one direction only would take as many rounds as there are teeth."""
    row, column = np.mgrid[:256, :512]
    binary = {
        "comb below": (column % 2 == 0) | (row == 255),
        "steps": (column % 2 == 0) & (row >= column // 2) & ((column > 0) | (row > 253)) | (row == 255),
        "noise": np.random.default_rng(0).random((256, 512)) < 0.38,
        "tree": (column % 2 == 0) & (row <= 40)
        | (column % 2 ** np.minimum(row // 6, 8) == 0) & (row % 6 == 5),
    }[name]
    rounds = []
    flatten = postprocess._flattened
    monkeypatch.setattr(postprocess, "_flattened", lambda parent: rounds.append(1) or flatten(parent))
    component_areas(binary)
    assert len(rounds) <= 8


# --------------------------------------------------------------------------------------------------- cleaning


def logits_of(*lines: str) -> np.ndarray:
    """`#` foreground (+3), `.` background (-2)."""
    return np.array([[3 if mark == "#" else -2 for mark in line] for line in lines], np.float32)


def clean(logits: np.ndarray, holes: float = 0, sprinkles: float = 0, threshold: float = 0.0) -> np.ndarray:
    return clean_low_res(
        logits, max_hole_area=holes, max_sprinkle_area=sprinkles, mask_threshold=threshold
    )  # fmt: skip


def test_holes_up_to_the_area_are_filled() -> None:
    logits = logits_of("#######", "#.#..##", "#######", "####.##", "#####.#", "######.")
    filled = clean(logits, holes=2)
    expected = logits.copy()
    expected[1, 1] = expected[1, 3] = expected[1, 4] = 10  # the diagonal has three pixels and stays
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(clean(logits, holes=3), np.where(logits > 0, logits, np.float32(10)))


def test_a_hole_at_the_border_is_filled_too() -> None:
    logits = logits_of(".##", "###", "###")
    assert clean(logits, holes=1)[0, 0] == 10


def test_sprinkles_up_to_the_area_are_removed() -> None:
    logits = logits_of("#......", "...##..", ".......", "..#....", "...#...", "....#..")
    cleaned = clean(logits, sprinkles=2)
    expected = logits.copy()
    expected[0, 0] = expected[1, 3] = expected[1, 4] = -10
    np.testing.assert_array_equal(cleaned, expected)


def test_both_are_found_in_the_mask_as_it_came() -> None:
    """Filling a hole would join the speck in it to the object; the reference removes the speck even so."""
    logits = logits_of("#######", "#.....#", "#..#..#", "#.....#", "#######")
    cleaned = clean(logits, holes=14, sprinkles=1)
    assert cleaned[2, 3] == -10
    assert (cleaned[1, 1:6] == 10).all()


def test_the_threshold_moves_classes_and_values() -> None:
    logits = np.full((5, 5), 2.0, np.float32)
    logits[2, 2] = 1.0  # at the threshold: background
    assert clean(logits, holes=1, threshold=1.0)[2, 2] == 11
    logits[2, 2] = 5.0
    assert clean(logits, sprinkles=1, threshold=2.5)[2, 2] == -7.5


def test_cleaning_leaves_the_input_and_other_planes_alone() -> None:
    logits = random_logits(2, 3, 32, 32)
    before = logits.copy()
    cleaned = clean(logits, holes=4, sprinkles=4)
    np.testing.assert_array_equal(logits, before)
    assert (cleaned != logits).any()
    assert cleaned.dtype == np.float32
    np.testing.assert_array_equal(cleaned[1, 2], clean(logits[1, 2], holes=4, sprinkles=4))


def test_zero_areas_change_nothing() -> None:
    logits = random_logits(1, 1, 16, 16)
    np.testing.assert_array_equal(clean(logits), logits)


def test_cleaning_equals_the_definition_on_noise() -> None:
    logits = random_logits(40, 40)
    background, foreground = flood_fill_areas(logits <= 0.5), flood_fill_areas(logits > 0.5)
    expected = np.where((background > 0) & (background <= 5), np.float32(10.5), logits)
    expected = np.where((foreground > 0) & (foreground <= 7), np.float32(-9.5), expected)
    np.testing.assert_array_equal(clean(logits, holes=5.0, sprinkles=7.0, threshold=0.5), expected)
