"""Finds regions in photographs by classical segmentation, so that training sees masks on real texture.

In: an RGB photograph. Out: a map of labels, 0 where nothing is sure enough. Graph-based segmentation
(Felzenszwalb and Huttenlocher 2004), regions of similar colour merged, and of these only the compact ones
with a strong border. Nobody drew these masks: they are a second kind of truth, never used to evaluate.
"""

from __future__ import annotations

import numpy as np

LONGEST = 512  # px of a label map's longest side
AREA = (0.01, 0.40)  # share of the picture
COMPACT = 0.55  # area of a region over that of its convex hull
CONTRAST = 2.0  # gradient on a region's border over that inside it
STEP = 6.0  # Lab units: colour step across the border, over a band of a few pixels
PAD = 12  # px around a region in which its border is judged
MERGED = 9.0  # Lab units: neighbours closer than this in mean colour are one region


def label(rgb: np.ndarray) -> np.ndarray:
    """The regions of a photograph (H, W, 3) uint8 as labels (H, W) uint16: 1, 2, ... from large to small."""
    from skimage import color, filters, graph, measure, morphology, segmentation  # pyright: ignore[reportMissingImports]

    smooth = filters.gaussian(rgb, 1.0, channel_axis=2)
    lab = color.rgb2lab(smooth)
    pieces = segmentation.felzenszwalb(smooth, scale=250, sigma=0.5, min_size=int(0.002 * lab[..., 0].size))
    pieces = graph.cut_threshold(pieces, graph.rag_mean_color(lab, pieces), MERGED)
    gradient = np.sqrt(sum(filters.sobel(lab[..., channel]) ** 2 for channel in range(3)))

    found = []
    for region in measure.regionprops(measure.label(pieces + 1, connectivity=1)):
        if region.area_filled < AREA[0] * pieces.size:
            continue
        top, left, bottom, right = region.bbox
        window = np.s_[max(0, top - PAD) : bottom + PAD, max(0, left - PAD) : right + PAD]
        mask = np.zeros(pieces.shape, bool)
        mask[top:bottom, left:right] = region.image_filled
        near = _largest(morphology.opening(mask[window], morphology.disk(3)))
        mask[window] = near
        if _may_be_object(mask) and _has_border(near, lab[window], gradient[window]):
            found.append(mask)

    labels = np.zeros(pieces.shape, np.uint16)
    for number, mask in enumerate(sorted(found, key=np.sum, reverse=True), 1):
        labels[mask] = number  # the smaller one lies on the larger one that encloses it
    return labels


def _may_be_object(mask: np.ndarray) -> bool:
    """Whether a mask is of a middle size, compact, and no frame or strip along the picture's side."""
    from skimage import measure  # pyright: ignore[reportMissingImports]

    if not AREA[0] <= mask.mean() <= AREA[1]:
        return False
    edges = (mask[0].mean(), mask[-1].mean(), mask[:, 0].mean(), mask[:, -1].mean())
    if max(edges) > 0.6 or sum(edge > 0 for edge in edges) > 2:
        return False
    return measure.regionprops(mask.astype(np.uint8))[0].solidity >= COMPACT


def _has_border(mask: np.ndarray, lab: np.ndarray, gradient: np.ndarray) -> bool:
    """Whether a mask ends where the picture changes."""
    from skimage import morphology  # pyright: ignore[reportMissingImports]

    disk = morphology.disk(2)
    outer, inner = morphology.dilation(mask, disk), morphology.erosion(mask, disk)
    border, inside = outer & ~inner, morphology.erosion(inner, disk)
    if not inside.any() or gradient[border].mean() < CONTRAST * gradient[inside].mean():
        return False
    around = morphology.dilation(outer, morphology.disk(4)) & ~outer
    within = inner & ~morphology.erosion(inner, morphology.disk(4))
    if not around.any() or not within.any():
        return False
    return float(np.linalg.norm(lab[around].mean(0) - lab[within].mean(0))) > STEP


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    from skimage import measure  # pyright: ignore[reportMissingImports]

    pieces = measure.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (pieces == sizes.argmax()) & mask
