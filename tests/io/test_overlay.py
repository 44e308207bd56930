from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.io.overlay import PALETTE, draw_overlay, palette_colour

GREY = np.full((120, 160, 3), 100, np.uint8)


def disc(radius: float, x: float = 80, y: float = 60, size_hw: tuple[int, int] = (120, 160)) -> np.ndarray:
    row, column = np.mgrid[: size_hw[0], : size_hw[1]]
    return (column - x) ** 2 + (row - y) ** 2 < radius**2


def distances(radius: float) -> np.ndarray:
    """Distance of each pixel from the edge of `disc(radius)`, negative outside."""
    row, column = np.mgrid[:120, :160]
    return radius - np.hypot(column - 80, row - 60)


def test_the_fill_is_translucent_and_the_rest_untouched() -> None:
    before = GREY.copy()
    drawn = draw_overlay(GREY, disc(40), alpha=0.5)
    assert drawn.shape == GREY.shape
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(GREY, before)
    inside, outside = distances(40) > 8, distances(40) < -8
    np.testing.assert_allclose(
        drawn[inside], np.broadcast_to((100 + np.array(PALETTE[0])) / 2, drawn[inside].shape), atol=1
    )
    np.testing.assert_array_equal(drawn[outside], GREY[outside])


def test_alpha_says_how_much_is_hidden() -> None:
    centre = [draw_overlay(GREY, disc(40), alpha=alpha)[60, 80].tolist() for alpha in (0, 0.25, 1)]
    assert centre[0] == [100, 100, 100]
    np.testing.assert_allclose(centre[1], 75 + np.array(PALETTE[0]) / 4, atol=1)
    assert centre[2] == list(PALETTE[0])


def test_the_outline_is_full_colour_with_white_outside() -> None:
    drawn = draw_overlay(GREY, disc(40), alpha=0).astype(int)
    at_edge = np.abs(distances(40)) < 0.4
    assert (np.abs(drawn[at_edge] - PALETTE[0]).max(axis=1) < 40).mean() > 0.95
    ring = drawn[(distances(40) < -1.3) & (distances(40) > -2.2)]
    assert ring.min(axis=1).mean() > 130  # lighter than the grey of 100 in every channel


def test_the_outline_grows_with_the_picture() -> None:
    def painted(scale: int) -> int:
        size_hw = (120 * scale, 160 * scale)
        mask = disc(40 * scale, 80 * scale, 60 * scale, size_hw)
        picture = np.full((*size_hw, 3), 100, np.uint8)
        return int((draw_overlay(picture, mask, alpha=0) != picture).any(axis=2).sum())

    # Twelve times the length, and from some scale on also wider.
    assert painted(12) > 1.5 * 12 * painted(1)


def test_specks_are_not_lost_in_a_large_picture() -> None:
    picture = np.full((1500, 2000, 3), 100, np.uint8)
    mask = np.zeros((1500, 2000), bool)
    mask[700, 900] = mask[200:1200, 300] = True  # a pixel, and a line as thin
    drawn = draw_overlay(picture, mask)
    assert (drawn[mask] != 100).any(axis=1).all()


def test_no_outline_along_the_frame() -> None:
    mask = np.zeros((120, 160), bool)
    mask[:, :80] = True
    drawn = draw_overlay(GREY, mask, alpha=0)
    assert (drawn[60, 78:82] != 100).any()
    np.testing.assert_array_equal(drawn[:, :70], GREY[:, :70])


def test_masks_have_their_own_colours_and_small_ones_lie_on_top() -> None:
    small, large, aside = disc(15), disc(50), disc(12, 145, 15)
    drawn = draw_overlay(GREY, [small, large, aside], alpha=1)
    assert drawn[60, 80].tolist() == list(PALETTE[0])
    assert drawn[60, 110].tolist() == list(PALETTE[1])
    assert drawn[15, 145].tolist() == list(PALETTE[2])


def test_colours_stay_apart() -> None:
    colours = np.array([palette_colour(index) for index in range(40)])
    assert colours.min() >= 0
    assert colours.max() <= 255
    assert len({tuple(colour) for colour in colours.tolist()}) == 40
    first = colours[: len(PALETTE)].astype(int)
    apart = np.abs(first[:, None] - first[None]).sum(axis=2) + 1000 * np.eye(len(first), dtype=int)
    assert apart.min() > 100


@pytest.mark.parametrize(
    "masks",
    [
        disc(40),
        disc(40)[None],
        disc(40)[None, None],
        [disc(40)],
        disc(40).astype(np.float32),  # what the reference's `predict` returns
        np.where(disc(40), 7.5, -3.0)[None],
        disc(40).astype(np.uint8) * 255,
        disc(40).tolist(),
        (mask for mask in [disc(40)]),
    ],
)
def test_forms_of_masks(masks: Any) -> None:
    np.testing.assert_array_equal(draw_overlay(GREY, masks), draw_overlay(GREY, disc(40)))


@pytest.mark.parametrize("masks", [[], np.zeros((0, 120, 160), bool), np.zeros((120, 160), bool)])
def test_nothing_to_draw(masks: Any) -> None:
    drawn = draw_overlay(GREY, masks, points=[], labels=[], boxes=[])
    np.testing.assert_array_equal(drawn, GREY)
    assert drawn is not GREY


def test_points() -> None:
    drawn = draw_overlay(GREY, [], points=[[40, 30], [120, 90], [80, 60]], labels=[1, 0, -1]).astype(int)
    green, red = drawn[30 + 3, 40 + 3], drawn[90 + 3, 120 + 3]  # beside the white signs
    assert green[1] > green[0] + 60
    assert red[0] > red[1] + 60
    assert drawn[30, 40].tolist() == drawn[90, 120].tolist() == [255, 255, 255]
    assert drawn[30 + 2, 40].min() > drawn[90 + 2, 120].min() + 60  # plus has a vertical bar, minus has none
    np.testing.assert_array_equal(drawn[50:70, 70:90], GREY[50:70, 70:90])  # padding is no point
    np.testing.assert_array_equal(
        draw_overlay(GREY, [], points=[[40, 30]]), draw_overlay(GREY, [], points=[[[40, 30]]], labels=[[1]])
    )


def test_markers_are_cut_off_at_the_frame() -> None:
    drawn = draw_overlay(GREY, [], points=[[0, 0], [159, 119]])
    assert drawn[0, 0].tolist() == drawn[119, 159].tolist() == [255, 255, 255]
    far = draw_overlay(GREY, [], points=[[-1000, 5], [1e300, -1e300], [80, 1e9]])
    np.testing.assert_array_equal(far, GREY)


def test_boxes() -> None:
    drawn = draw_overlay(GREY, [], boxes=[[30, 20, 90, 70], [100, 80, 140, 110]])
    for x, y in ((30, 45), (90, 45), (60, 20), (60, 70)):
        assert drawn[y, x].tolist() == list(PALETTE[0])
    assert drawn[95, 100].tolist() == list(PALETTE[1])
    np.testing.assert_array_equal(drawn[30:60, 40:80], GREY[30:60, 40:80])
    np.testing.assert_array_equal(
        draw_overlay(GREY, [], boxes=[90, 70, 30, 20]), draw_overlay(GREY, [], boxes=[[30, 20, 90, 70]])
    )


def test_boxes_beyond_the_frame() -> None:
    drawn = draw_overlay(GREY, [], boxes=[[-1e12, 60, 1e12, 1e12]])
    assert drawn[60, 80].tolist() == list(PALETTE[0])
    assert (drawn[60] == PALETTE[0]).all()
    np.testing.assert_array_equal(drawn[70:], GREY[70:])


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_pictures(size_hw: tuple[int, int]) -> None:
    picture = np.zeros((*size_hw, 3), np.uint8)
    drawn = draw_overlay(picture, np.ones(size_hw, bool), points=[[0, 0]], boxes=[[0, 0, 1, 1]])
    assert drawn.shape == picture.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": np.zeros((4, 4), bool)}, r"picture's size \(120, 160\)"),
        ({"masks": np.zeros((2, 120, 1), bool)}, "picture's size"),
        ({"masks": [[[1, 2], [3]]]}, "picture's size"),
        ({"masks": [disc(40), disc(40)[:5]]}, "picture's size"),
        ({"masks": np.zeros((120, 160), "U1")}, "numbers"),
        ({"points": [1, 2, 3]}, "points"),
        ({"points": [[1, np.nan]]}, "points"),
        ({"points": "ab"}, "points"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "1 points to draw and 2 labels"),
        ({"boxes": [[1, 2, 3]]}, "boxes"),
        ({"boxes": [[1, 2, 3, np.inf]]}, "boxes"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_overlay(GREY, **{"masks": [], **arguments})


def test_refused_picture() -> None:
    with pytest.raises(InputError, match="uint8"):
        draw_overlay(GREY.astype(np.float32), disc(40))


def test_masks_in_given_colours() -> None:
    masks = [disc(20, 40), disc(20, 120)]
    drawn = draw_overlay(GREY, masks, colours=[(1, 2, 3), (200, 100, 50)], alpha=1)
    assert drawn[60, 40].tolist() == [1, 2, 3]
    assert drawn[60, 120].tolist() == [200, 100, 50]
    swapped = draw_overlay(GREY, masks[::-1], colours=[(200, 100, 50), (1, 2, 3)], alpha=1)
    np.testing.assert_array_equal(drawn, swapped)


def test_a_name_stands_on_its_mask_in_its_colour() -> None:
    without = draw_overlay(GREY, [disc(20, 80, 70)])
    drawn = draw_overlay(GREY, [disc(20, 80, 70)], names=["7"])
    rows, columns = np.nonzero((drawn != without).any(axis=2))
    assert rows.max() <= 51  # the mask begins in row 51
    assert rows.min() >= 30
    assert 70 <= columns.min() < 80 < columns.max() <= 90
    tag = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3)
    assert (tag == PALETTE[0]).all(axis=1).mean() > 0.3
    assert (tag == 255).all(axis=1).mean() > 0.05
    other = draw_overlay(GREY, [disc(20, 80, 70)], names=["8"])
    assert (other != drawn).any()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (159, 0), (0, 119), (159, 119)])
def test_names_stay_in_the_picture(x: int, y: int) -> None:
    mask = disc(6, x, y)
    rows, columns = np.nonzero(
        (draw_overlay(GREY, [mask], names=["123"]) != draw_overlay(GREY, [mask])).any(2)
    )
    assert columns.max() - columns.min() >= 15  # three digits, all of them
    assert rows.max() - rows.min() >= 8


def test_a_name_larger_than_the_picture() -> None:
    picture = np.full((4, 5, 3), 100, np.uint8)
    assert draw_overlay(picture, [np.ones((4, 5), bool)], names=["123456"]).shape == (4, 5, 3)


def test_a_mask_that_is_empty_has_no_name() -> None:
    empty = np.zeros((120, 160), bool)
    np.testing.assert_array_equal(draw_overlay(GREY, [empty], names=["7"]), GREY)


@pytest.mark.parametrize("given", [{"names": ["1"]}, {"colours": [(1, 2, 3)]}, {"names": []}])
def test_one_name_and_colour_for_each_mask(given: Any) -> None:
    with pytest.raises(InputError, match="2 masks to draw"):
        draw_overlay(GREY, [disc(10), disc(20)], **given)
