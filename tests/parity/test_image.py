"""Every published variant at full size, from its `.pt` through our loader to masks, against the reference.

The bars (docs/decisions.md): encoder and neck cosine >= 0.999999, mask logits cosine >= 0.99999, scores
within 1e-3, binary masks IoU >= 0.999.
"""

from __future__ import annotations

import numpy as np
import prompt_cases
import pytest
import reference
from expected import Expected, kept
from measures import Bars, check_answer, cosine

import masklet

FEATURE_COSINE = 0.999999
BARS = Bars(logits_cosine=0.99999, mask_iou=0.999)


class Pair:
    """One variant: what the reference answers, and our model of the same file."""

    def __init__(self, variant: str, folder) -> None:
        self.expected = Expected(variant)
        self.path = folder / f"{variant}.pt"
        reference.save_pt(self.expected.model, self.path)
        self.model = masklet.load(self.path)
        self._predictors: dict[str, masklet.ImagePredictor] = {}

    def predictor(self, picture: str) -> masklet.ImagePredictor:
        if picture not in self._predictors:
            predictor = masklet.ImagePredictor(self.model)
            predictor.set_image(prompt_cases.picture(picture).image)
            self._predictors[picture] = predictor
        return self._predictors[picture]


@pytest.fixture(scope="module", params=list(reference.VARIANTS))
def pair(request, tmp_path_factory):
    pair = Pair(request.param, tmp_path_factory.mktemp(request.param))
    yield pair
    pair.path.unlink()


def check_prompt(pair: Pair, picture: str, case: prompt_cases.PromptCase) -> None:
    answer = pair.predictor(picture).predict(**case.arguments)
    check_answer(answer, pair.expected.prompt(case.name, picture), BARS)


def test_the_file_is_recognised(pair):
    from masklet.families.table import preset_name

    assert preset_name(pair.model.config) == pair.expected.variant


def test_features(pair):
    wanted = pair.expected.encoder("landscape")
    predictor = pair.predictor("landscape")
    assert cosine(predictor.get_image_embedding(), wanted["image_embed"]) >= FEATURE_COSINE

    values = predictor._features[0].values
    for level, name, upscaling in ((0, "stride4", 3), (1, "stride8", 0)):
        order = pair.model.orders[level]
        bias = pair.model.tensor(f"sam_mask_decoder.output_upscaling.{upscaling}.bias")
        tokens = values[name].numpy()[0] - bias  # ours carry it to the decoder
        grid = np.empty_like(tokens)
        grid[order.slots] = tokens
        ours = kept(f"sam_mask_decoder.conv_s{level}", grid.T.reshape(1, -1, *order.grid_hw))
        assert cosine(ours, wanted[f"sam_mask_decoder.conv_s{level}"]) >= FEATURE_COSINE


@pytest.mark.parametrize("case", prompt_cases.cases_for("landscape"), ids=lambda case: case.name)
def test_prompts(pair, case):
    check_prompt(pair, "landscape", case)


@pytest.mark.parametrize("case", prompt_cases.cases_for("portrait"), ids=lambda case: case.name)
def test_portrait(pair, case):
    check_prompt(pair, "portrait", case)
