"""SAM against `segment-anything` 1.0: files, every step, every kind of prompt.

Each published size at full size is marked `full`; by default ViT-B with all of its blocks runs at 256 pixels.
The bars (docs/decisions.md): image embedding max |difference| <= 1e-5 of its max, mask logits cosine >=
0.99999, scores within 1e-3, binary masks IoU >= 0.999.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import prompt_cases
import pytest
import reference
import reference_sam1
from measures import Bars, check_answer, relative

import masklet
from masklet.families import sam1
from masklet.families.keymaps import canonical
from masklet.families.table import preset_name, recognise
from masklet.io.checkpoints import open_checkpoint
from masklet.pipeline.dump import dump, step_names
from masklet.runtime.cache import load_stage

torch = pytest.importorskip("torch")

EMBEDDING_RELATIVE = 1e-5
STEP_RELATIVE = 2e-5  # of a step's largest value
BARS = Bars(logits_cosine=0.99999, mask_iou=0.999)

SIZES = [
    pytest.param(("sam_vit_b", 256), id="vit_b-256"),
    *(pytest.param((name, 1024), id=name, marks=pytest.mark.full) for name in reference_sam1.VARIANTS),
]


class Pair:
    """One model of the reference, and ours of the same file."""

    def __init__(self, variant: str, size: int, folder: Path) -> None:
        self.variant, self.size = variant, size
        self.model = reference_sam1.build(variant, size)
        self.path = folder / f"{variant}.pth"
        reference_sam1.save_pt(self.model, self.path)
        self.ours = masklet.load(self.path)
        self.encoded: dict[str, tuple[Any, masklet.ImagePredictor]] = {}

    def on(self, picture: str) -> tuple[Any, masklet.ImagePredictor]:
        """Both predictors with a picture set; its encoding is compared once."""
        if picture not in self.encoded:
            image = prompt_cases.picture(picture).image
            theirs, predictor = reference_sam1.predictor(self.model), masklet.ImagePredictor(self.ours)
            theirs.set_image(np.array(image))
            predictor.set_image(image)
            expected = theirs.get_image_embedding().numpy()
            assert relative(predictor.get_image_embedding(), expected) <= EMBEDDING_RELATIVE
            self.encoded[picture] = theirs, predictor
        return self.encoded[picture]


@pytest.fixture(scope="module", params=SIZES)
def pair(request, tmp_path_factory):
    variant, size = request.param
    pair = Pair(variant, size, tmp_path_factory.mktemp(variant))
    yield pair
    pair.path.unlink()


def check_prompt(pair: Pair, picture: str, case: str) -> None:
    arguments = {c.name: c.arguments for c in prompt_cases.cases_for(picture, pair.size)}[case]
    theirs, predictor = pair.on(picture)
    wanted = reference_sam1.dump_prompt(theirs, **arguments)
    check_answer(predictor.predict(**arguments), wanted, BARS)
    assert 0.005 < wanted["masks"].mean() < 0.995  # else the mask says nothing


CASES = [case.name for case in prompt_cases.cases_for("landscape")]


def test_the_file_is_recognised(pair):
    assert pair.ours.config.image_size == pair.size
    assert preset_name(pair.ours.config) == (pair.variant if pair.size == 1024 else None)


@pytest.mark.parametrize("case", CASES)
def test_prompts(pair, case):
    check_prompt(pair, "landscape", case)


@pytest.mark.parametrize("case", prompt_cases.PORTRAIT_CASES)
def test_portrait(pair, case):
    check_prompt(pair, "portrait", case)


def test_channels_in_another_order(pair):
    image = prompt_cases.picture("portrait").image
    theirs, predictor = reference_sam1.predictor(pair.model), masklet.ImagePredictor(pair.ours)
    theirs.set_image(np.array(image), image_format="BGR")
    predictor.set_image(image, image_format="BGR")
    assert relative(predictor.get_image_embedding(), theirs.get_image_embedding().numpy()) <= 1e-5
    turned = pair.on("portrait")[1].get_image_embedding()
    assert relative(predictor.get_image_embedding(), turned) > 1e-2


def test_logits_of_the_picture_size(pair):
    """They are enlarged in two steps, the padding cut off between them."""
    theirs, predictor = pair.on("portrait")
    arguments = {"point_coords": np.array([[300.0, 400.0]]), "point_labels": np.array([1])}
    expected, *_ = theirs.predict(**arguments, return_logits=True)
    got, *_ = predictor.predict(**arguments, return_logits=True)
    assert relative(got, expected) <= STEP_RELATIVE


def test_every_step(pair):
    """What a dump shows, relative positions included, under the reference's names."""
    scene = prompt_cases.picture("landscape")
    arguments = {"point_coords": scene.points_xy[:1], "point_labels": np.array([1])}
    theirs = reference_sam1.predictor(pair.model)
    expected = reference_sam1.dump_encoder(pair.model, scene.image, theirs)
    expected |= reference_sam1.dump_prompt(theirs, **arguments)
    names = step_names(pair.ours)
    ours_alone = {"sam_mask_decoder.mask_tokens", "sam_mask_decoder.stability"}
    assert set(expected) == {*names.image, *names.prompt} - ours_alone
    # One part at a time: at full size all steps together take several gigabytes.
    for part in (
        ["pixels", "image_encoder"],
        ["image_embed", "sam_prompt_encoder", "sam_mask_decoder", "masks"],
    ):
        for name, step in dump(pair.ours, scene.image, **arguments, stages=part).items():
            if name not in ours_alone:
                wanted = expected[name]
                assert relative(step.astype(np.float32), wanted.astype(np.float32)) <= STEP_RELATIVE, name


# ------------------------------------------------------------------------------------ transformers' files


def transformers_model(variant: str, size: int) -> Any:
    reference.prepare_torchvision()  # transformers imports torchvision
    import transformers

    chosen = reference_sam1.VARIANTS[variant]
    vision = transformers.SamVisionConfig(
        hidden_size=chosen.embed_dim,
        mlp_dim=4 * chosen.embed_dim,
        num_hidden_layers=chosen.depth,
        num_attention_heads=chosen.num_heads,
        global_attn_indexes=list(chosen.global_attn_indexes),
        image_size=size,
        layer_norm_eps=1e-6,
    )
    prompts = transformers.SamPromptEncoderConfig(image_size=size, image_embedding_size=size // 16)
    # Its own default is 1e-6, in the decoder as well, where Meta has torch's: masks differ by 7e-5.
    decoder = transformers.SamMaskDecoderConfig(layer_norm_eps=1e-5)
    settings = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    return transformers.SamModel(settings).eval()


@pytest.mark.parametrize("name", reference_sam1.VARIANTS)
def test_names_and_shapes_of_transformers(name: str) -> None:
    with torch.device("meta"):  # names only, no values
        theirs = transformers_model(name, 1024)
    meta = {key: SimpleNamespace(shape=tuple(x.shape), dtype="f32") for key, x in theirs.state_dict().items()}
    checkpoint: Any = SimpleNamespace(
        format="torch",
        path=Path("model.safetensors"),
        tensors=meta,
        array=lambda key: np.zeros(meta[key].shape, np.float32),
    )
    tensors = canonical(checkpoint)
    assert tensors.layout == "transformers"
    assert preset_name(recognise(tensors.shapes, {})) == name
    expected = [load_stage(sam1.PRESETS[name], s, 1024, "fused") for s in sam1.IMAGE_STAGES]
    assert {key: shape for stage in expected for key, shape in stage.tensors.items()} == tensors.shapes


def test_a_file_of_transformers_answers_as_transformers(tmp_path: Path) -> None:
    """Its own model, filled with seeded weights and saved, against ours of that file."""
    from masklet.testing import lively_weights

    theirs = transformers_model("sam_vit_b", 256)
    state = theirs.state_dict()
    fourier = "shared_image_embedding.positional_embedding"
    roles = {name: name for name in state}
    roles |= {
        name: "positional_encoding_gaussian_matrix" for name in state if name.endswith("positional_embedding")
    }
    roles |= {
        name: name.replace("point_embed.", "point_embeddings.") for name in state if "point_embed." in name
    }
    weights = {}
    for name, tensor in state.items():
        weights[name] = lively_weights({roles[name]: tuple(tensor.shape)})[roles[name]]
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    theirs.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert fourier in checkpoint.tensors

    ours = masklet.load(tmp_path / "model.safetensors")
    predictor = masklet.ImagePredictor(ours)
    scene = prompt_cases.picture("landscape")
    predictor.set_image(scene.image)
    pixels = dump(ours, scene.image, stages=["pixels"])["pixels"]
    point = scene.points_xy[0]
    scaled = point * 256 / max(scene.image.shape)
    with torch.no_grad():
        output = theirs(
            pixel_values=torch.from_numpy(pixels),
            input_points=torch.tensor([[[scaled.tolist()]]]),
            input_labels=torch.tensor([[[1]]]),
        )
        embedding = theirs.get_image_embeddings(torch.from_numpy(pixels))
    assert relative(predictor.get_image_embedding(), embedding.numpy()) <= STEP_RELATIVE
    _, scores, low_res = predictor.predict(point[None], [1])
    assert relative(low_res, output.pred_masks[0, 0].numpy()) <= STEP_RELATIVE
    assert np.abs(scores - output.iou_scores[0, 0].numpy()).max() <= BARS.score_difference
