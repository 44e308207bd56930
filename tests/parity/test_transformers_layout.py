"""The key map of transformers' files, proved against transformers: its models, filled through the map with
Meta's tensors, answer as Meta's; what they save reads back as Meta's tensors, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference

from masklet.families import sam2
from masklet.families.keymaps import Tensors, canonical
from masklet.io.checkpoints import open_checkpoint
from masklet.testing import Scene, synthetic_scene

pytest.importorskip("sam2")
pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SIZE = 128  # pixels of the model input, which names and channels don't depend on
FRAMES = 3
TINY = ("sam2.1_hiera_tiny", "sam2_hiera_tiny")
KINDS = ("Sam2VideoModel", "Sam2Model")
SINGLE = "decoder.output_hypernetworks_mlps.0"  # of the single mask, which is not among the three returned

# Of the largest value, or of 1. Two programs for one network differ by their f32 rounding, 1e-6 to 1e-5.
# Weights are lively: with two tensors exchanged, not one digit agrees.
TOLERANCE = 1e-4
# Memories are rounded to bfloat16: next to a tie the two programs go different ways, one step of 2^-8 apart.
MEMORY_TOLERANCE = 2**-7
TRACKED_TOLERANCE = 1e-3


# ----------------------------------------------------------------------------------------------------- models


def transformers_model(variant: str, kind: str) -> Any:
    """`Sam2Model` or `Sam2VideoModel` of a published variant, its weights not yet filled."""
    reference.prepare_torchvision()  # transformers imports torchvision
    import transformers

    config = sam2.PRESETS[variant]
    trunk, newer = config.trunk, config.version == "2.1"
    widths = [trunk.embed_dim * 2**stage for stage in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=trunk.embed_dim,
        image_size=[SIZE, SIZE],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[trunk.num_heads * 2**stage for stage in range(4)],
        blocks_per_stage=list(trunk.stages),
        global_attention_blocks=list(trunk.global_att_blocks),
        window_size_per_stage=list(trunk.window_spec),
        window_positional_embedding_background_size=list(trunk.window_pos_embed_bkg_spatial_size),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[SIZE // stride] * 2 for stride in (4, 8, 16)],
    )
    if kind == "Sam2Model":
        prompts = transformers.Sam2PromptEncoderConfig(image_size=SIZE)
        settings = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts)
    else:
        settings = transformers.Sam2VideoConfig(
            vision_config=vision,
            prompt_encoder_config=transformers.Sam2VideoPromptEncoderConfig(image_size=SIZE),
            image_size=SIZE,
            memory_attention_rope_feat_sizes=[SIZE // 16] * 2,
            enable_temporal_pos_encoding_for_object_pointers=newer,
            enable_occlusion_spatial_embedding=newer,
        )
    return getattr(transformers, kind)(settings).eval()


def mapped(model: Any) -> Tensors:
    """What `canonical` makes of a file with this model's state; all values in it are equal."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint: Any = SimpleNamespace(
        format="torch",
        path=Path("model.safetensors"),
        tensors={name: SimpleNamespace(shape=shape, dtype="f32") for name, shape in shapes.items()},
        array=lambda name: np.zeros(shapes[name], np.float32),
    )
    return canonical(checkpoint)


def fill(model: Any, weights: Mapping[str, Any]) -> None:
    """Meta's tensors into a transformers model: the map read from right to left."""
    state = model.state_dict()  # its tensors are the model's own
    with torch.no_grad():
        for key, (name, _, row, _) in mapped(model)._sources.items():
            (state[name] if row is None else state[name][row : row + 1]).copy_(weights[key])
        for part in (
            model.shared_image_embedding,
            model.prompt_encoder.shared_embedding,
        ):  # one tensor, twice
            part.positional_embedding.copy_(
                weights["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
            )


@pytest.fixture(scope="module")
def twins() -> Callable[[str, str], tuple[Any, Any]]:
    """Meta's model and transformers' of a variant and kind, with the same weights."""

    @cache
    def meta(variant: str) -> Any:
        return reference.build(variant, image_size=SIZE)

    @cache
    def both(variant: str, kind: str) -> tuple[Any, Any]:
        theirs = transformers_model(variant, kind)
        fill(theirs, meta(variant).state_dict())
        return meta(variant), theirs

    return both


@pytest.fixture(scope="module")
def scene() -> Scene:
    return synthetic_scene(1, (SIZE, SIZE))


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    ours, theirs = (np.asarray(torch.as_tensor(x).detach().float()).squeeze() for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert ours.any()
    assert np.abs(ours - theirs).max() <= tolerance * max(1, np.abs(ours).max())


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_names_and_shapes_of_every_variant(size: str) -> None:
    """Both kinds of model, both versions; Meta's two differ in the tensors named here."""
    newer = reference.state_shapes(reference._compose(reference.VARIANTS[f"sam2.1_hiera_{size}"].config, []))
    only_newer = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
    older = {key: shape for key, shape in newer.items() if not key.startswith(only_newer)}
    for variant, shapes in ((f"sam2.1_hiera_{size}", newer), (f"sam2_hiera_{size}", older)):
        for kind in KINDS:
            with torch.device("meta"):  # names only, no values
                tensors = mapped(transformers_model(variant, kind))
            assert tensors.layout == "transformers"
            image_only = kind == "Sam2Model"
            expected = {
                key: shape
                for key, shape in shapes.items()
                if not (image_only and key.startswith(tuple(sam2.VIDEO_TENSORS)))
            }
            assert dict(tensors.shapes) == expected, (variant, kind)


# ------------------------------------------------------------------------------------------------ saved files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_saved_model_reads_back(name: str, kind: str, twins: Any, tmp_path: Path) -> None:
    meta, theirs = twins(name, kind)
    theirs.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        tensors = canonical(checkpoint)
        video_only = tuple(sam2.VIDEO_TENSORS) if kind == "Sam2Model" else ()
        expected = {
            k: v for k, v in meta.state_dict().items() if not video_only or not k.startswith(video_only)
        }
        assert tensors.shapes.keys() == expected.keys()
        for key, tensor in expected.items():
            np.testing.assert_array_equal(tensors.array(key), tensor.numpy(), key)
        if kind == "Sam2VideoModel":
            assert sam2.FAMILY.preset_name(sam2.recognise(tensors.shapes)) == name


# ------------------------------------------------------------------------------------------------------ image


def prompts(scene: Scene) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each prompt as the arguments of Meta's predictor and of transformers' model."""
    point, other = scene.points_xy[0].tolist(), scene.points_xy[1].tolist()
    box = scene.boxes_xyxy[0].tolist()
    logits = torch.linspace(-8, 8, (SIZE // 4) ** 2).reshape(1, SIZE // 4, SIZE // 4)
    return {
        "points": (
            {"point_coords": np.array([point, other]), "point_labels": np.array([1, 0])},
            {"input_points": torch.tensor([[[point, other]]]), "input_labels": torch.tensor([[[1, 0]]])},
        ),
        "box": ({"box": np.array(box)}, {"input_boxes": torch.tensor([[box]])}),
        "point_and_mask": (
            {
                "point_coords": np.array([point]),
                "point_labels": np.array([1]),
                "mask_input": logits.numpy(),
            },
            {
                "input_points": torch.tensor([[[point]]]),
                "input_labels": torch.tensor([[[1]]]),
                "input_masks": logits[None],
            },
        ),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY)
def test_image_path_agrees(name: str, kind: str, twins: Any, scene: Scene) -> None:
    meta, theirs = twins(name, kind)
    predictor = reference.predictor(meta)
    encoded = reference.dump_encoder(meta, scene.image, predictor)
    forward = theirs if kind == "Sam2Model" else theirs._single_frame_forward
    for case, (our_arguments, their_arguments) in prompts(scene).items():
        trace = reference.dump_prompt(predictor, multimask_output=True, **our_arguments)
        with torch.no_grad(), reference.watching(theirs, {f"mask_{SINGLE}": reference._output}) as seen:
            output = forward(
                pixel_values=torch.from_numpy(encoded["pixels"]), multimask_output=True, **their_arguments
            )
        decoder = "sam_mask_decoder"
        assert_close(encoded["image_embed"], output.image_embeddings[-1], TOLERANCE)
        assert_close(encoded[f"{decoder}.conv_s0"], output.image_embeddings[0], TOLERANCE)
        assert_close(encoded[f"{decoder}.conv_s1"], output.image_embeddings[1], TOLERANCE)
        assert_close(trace[f"{decoder}.object_score_logits"], output.object_score_logits, TOLERANCE)
        assert_close(trace["ious"], output.iou_scores, TOLERANCE)
        assert_close(trace[f"sam_mask_{SINGLE}"], seen[f"mask_{SINGLE}"], TOLERANCE)
        if kind == "Sam2Model":  # the other returns one mask, and none for an absent object
            assert_close(trace[f"{decoder}.all_masks"][:, 1:], output.pred_masks, TOLERANCE)
        assert np.ptp(trace["ious"]) > 1e-3, case


# ------------------------------------------------------------------------------------------------------ video


@pytest.mark.parametrize("score", [5.0, -5.0], ids=["present", "absent"])
@pytest.mark.parametrize("name", TINY)
def test_video_path_agrees(name: str, score: float, twins: Any, scene: Scene) -> None:
    """Memory encoder, memory attention, object pointers, and what stands for an absent object.

    Mask prompts are left out: transformers takes the pointer of the best mask's token there, Meta token 0's.
    """
    meta, theirs = twins(name, "Sam2VideoModel")
    points = {
        "point_coords": torch.from_numpy(scene.points_xy[:1])[None],
        "point_labels": torch.tensor([[1]], dtype=torch.int32),
    }
    with torch.no_grad(), forced_score(meta, theirs, score):
        ours = track_meta(meta, moving(scene), points)
        other = track_transformers(theirs, moving(scene), points)
        mask = torch.from_numpy(scene.masks[:1])[None].float()
        assert_close(meta.mask_downsample(mask), theirs.mask_downsample(mask), TOLERANCE)
    assert len(ours) == len(other) == FRAMES
    for expected, got in zip(ours, other, strict=True):
        assert_close(expected["object_score_logits"], got["object_score_logits"], TRACKED_TOLERANCE)
        assert_close(expected["obj_ptr"], got["object_pointer"], TRACKED_TOLERANCE)
        assert_close(expected["pred_masks"], got["pred_masks"], TRACKED_TOLERANCE)
        assert_close(expected["maskmem_features"], got["maskmem_features"], MEMORY_TOLERANCE)


@contextmanager
def forced_score(meta: Any, theirs: Any, score: float) -> Iterator[None]:
    """On every frame the object is present (score above 0) or absent."""
    head = theirs.mask_decoder.pred_obj_score_head
    biases = meta.sam_mask_decoder.pred_obj_score_head.layers[2].bias, head.proj_out.bias
    before = [bias.clone() for bias in biases]
    for bias in biases:
        bias.fill_(score)
    yield
    for bias, value in zip(biases, before, strict=True):
        bias.copy_(value)


def track_meta(model: Any, video: Any, points: dict[str, Any]) -> list[dict[str, Any]]:
    """The model's outputs on each frame, with `points` on the first; memories as Meta's video predictor makes
    and keeps them."""
    conditioning: dict[int, Any] = {}
    tracked: dict[int, Any] = {}
    model.binarize_mask_from_pts_for_mem_enc = True  # as Meta's video predictor is built
    for index, frame in enumerate(video):
        _, features, positions, sizes = model._prepare_backbone_features(model.forward_image(frame[None]))
        prompted = index == 0
        output = model.track_step(
            frame_idx=index,
            is_init_cond_frame=prompted,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=points if prompted else None,
            mask_inputs=None,
            output_dict={"cond_frame_outputs": conditioning, "non_cond_frame_outputs": tracked},
            num_frames=len(video),
        )
        output["maskmem_features"] = output["maskmem_features"].bfloat16()
        (conditioning if prompted else tracked)[index] = output
    return [*conditioning.values(), *tracked.values()]


def track_transformers(model: Any, video: Any, points: dict[str, Any]) -> list[dict[str, Any]]:
    """The same, with the memories back in Meta's layout (1, C, h, w)."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    session = Sam2VideoInferenceSession(video, SIZE, SIZE, dtype=torch.float32)
    item = session.obj_id_to_idx(1)
    session.add_point_inputs(item, 0, {name: value[None] for name, value in points.items()})
    session.obj_with_new_inputs = [1]
    for index in range(len(video)):
        model(session, frame_idx=index)
    outputs = session.output_dict_per_obj[item]
    frames = [*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()]
    for frame in frames:
        memory = frame["maskmem_features"].permute(1, 2, 0)
        frame["maskmem_features"] = memory.reshape(*memory.shape[:2], SIZE // 16, SIZE // 16)
    return frames


def moving(scene: Scene) -> Any:
    """(F, 3, S, S), normalised: the scene moves a little from frame to frame."""
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 64 - 2
    return torch.stack([pixels.roll((3 * step, 5 * step), (1, 2)) for step in range(FRAMES)])
