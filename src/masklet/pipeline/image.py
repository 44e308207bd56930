"""Masks from prompts on still pictures, with the interface of Meta's `SAM2ImagePredictor` and `SamPredictor`.

In: pictures and prompts. Out: masks in the picture's own size, numpy throughout.
set_image: preprocess -> encode_image.   predict: prompts -> decode -> choose -> clean -> to original size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from masklet.errors import InputError
from masklet.io.image import read_image
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.model import Model
from masklet.pipeline.postprocess import clean_low_res, resize_and_threshold, resize_logits
from masklet.types import ImageFeatures

IMAGE_FORMATS = ("RGB", "BGR")


class ImagePredictor:
    """Encode a picture once, then ask for masks as often as needed.

    Names, arguments, defaults and shapes are those of `SAM2ImagePredictor`, for SAM those of `SamPredictor`;
    arrays are numpy. One predictor holds one picture's state and belongs to one thread; any number of
    predictors may share a `Model`.
    """

    def __init__(
        self,
        model: Model,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ) -> None:
        """`max_hole_area` and `max_sprinkle_area`: holes are filled and specks removed up to this many
        low-resolution pixels (0: not at all), on every device."""
        self.model = model
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self._conventions = conventions_of(model.config)
        self._features: list[ImageFeatures] = []
        self._is_batch = False

    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Encode a picture: a path, a PIL image, or an array (H, W, 3) uint8, whose channels `image_format`
        names: "RGB" or "BGR". Replaces what was set before.
        """
        self.reset_predictor()
        if image_format not in IMAGE_FORMATS:
            raise InputError(f"image_format is {image_format!r}; give one of {', '.join(IMAGE_FORMATS)}.")
        if image_format == "BGR":
            if not isinstance(image, np.ndarray):
                raise InputError(
                    f"image_format 'BGR' is for arrays, got {type(image).__name__}; files and PIL images say "
                    "themselves what their channels are: leave it out."
                )
            image = image[..., ::-1]
        self._features = [self._encode(image)]

    def set_image_batch(self, image_list: list[Any]) -> None:
        """Encode several pictures, each of any size, for `predict_batch`."""
        self.reset_predictor()
        if not isinstance(image_list, list) or not image_list:
            raise InputError(
                f"set_image_batch takes a list of at least one picture, got {type(image_list).__name__}."
            )
        self._features = [self._encode(image) for image in image_list]
        self._is_batch = True

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for prompts on the picture that was set.

        `point_coords` (N, 2) as (x, y) pixels of the picture with `point_labels` (N), 1 on the object and 0
        off it; `box` (4) xyxy; `mask_input` (1, h, w) logits of an earlier prediction. A leading B makes B
        objects at once. With `multimask_output` three candidates come back, else the one best.
        `normalize_coords=False` takes coordinates as fractions of the picture.

        Returns masks (M, H, W) bool (or float32 logits), predicted IoU (M) and low-resolution logits (M, h,
        w), each with a leading B when there are several objects. Raises InputError.
        """
        return self._predict(
            self._only_features(), point_coords, point_labels, box, mask_input,
            multimask_output, return_logits, normalize_coords,
        )  # fmt: skip

    def predict_batch(
        self,
        point_coords_batch: list[Any] | None = None,
        point_labels_batch: list[Any] | None = None,
        box_batch: list[Any] | None = None,
        mask_input_batch: list[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """`predict` for each picture of `set_image_batch`; prompts are lists with one entry per picture."""
        if not self._is_batch:
            raise InputError("No batch of pictures is set; call set_image_batch first, or use predict.")
        prompts: list[list[Any]] = []
        for name, given in (
            ("point_coords_batch", point_coords_batch),
            ("point_labels_batch", point_labels_batch),
            ("box_batch", box_batch),
            ("mask_input_batch", mask_input_batch),
        ):
            if given is not None and len(given) != len(self._features):
                raise InputError(
                    f"{name} has {len(given)} entries for {len(self._features)} pictures; give one each."
                )
            prompts.append(given if given is not None else [None] * len(self._features))
        results = [
            self._predict(
                features, points, labels, box, mask, multimask_output, return_logits, normalize_coords
            )
            for features, points, labels, box, mask in zip(self._features, *prompts, strict=True)
        ]
        masks, scores, low_res = zip(*results, strict=True)
        return list(masks), list(scores), list(low_res)

    def get_image_embedding(self) -> np.ndarray:
        """The image embedding(s), (1 or number of pictures, C, S / 16, S / 16) float32."""
        if not self._features:
            raise InputError("No picture is set; call set_image first.")
        order = self.model.orders[2]
        embeddings = []
        for features in self._features:
            tokens = features.values["embedding"].numpy()[0]  # T C
            grid = np.empty_like(tokens)
            grid[order.slots] = tokens
            embeddings.append(grid.T.reshape(-1, *order.grid_hw))
        return np.stack(embeddings)

    def reset_predictor(self) -> None:
        """Forget the picture(s)."""
        self._features = []
        self._is_batch = False

    def _encode(self, image: Any) -> ImageFeatures:
        pixels = read_image(image)
        size = self.model.image_size
        size_hw = (pixels.shape[0], pixels.shape[1])
        encoded = self.model.encode_image(self._conventions.picture(pixels, size), size_hw)
        return self.model.share(encoded)

    def _only_features(self) -> ImageFeatures:
        if not self._features:
            raise InputError("No picture is set; call set_image first.")
        return self._features[-1]

    def _predict(
        self,
        features: ImageFeatures,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_input: Any,
        multimask_output: bool,
        return_logits: bool,
        normalize_coords: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size_hw, image_size = features.size_hw, self.model.image_size
        prompts = self._conventions.prompts(
            point_coords,
            point_labels,
            box,
            mask_input,
            size_hw=size_hw,
            image_size=image_size,
            normalize_coords=normalize_coords,
        )
        candidates = self.model.decode(features, prompts)
        low_res, scores = self._conventions.choose(candidates, multimask_output)

        cleaned = clean_low_res(
            low_res,
            max_hole_area=self.max_hole_area,
            max_sprinkle_area=self.max_sprinkle_area,
            mask_threshold=self.mask_threshold,
        )
        cleaned = self._conventions.uncover(cleaned, size_hw, image_size)
        if return_logits:
            masks = resize_logits(cleaned, size_hw)
        else:
            masks = resize_and_threshold(cleaned, size_hw, self.mask_threshold)
        limit = self._conventions.logit_limit
        low_res = np.clip(low_res, -limit, limit)
        if len(masks) == 1:
            return masks[0], scores[0], low_res[0]
        return masks, scores, low_res
