"""The measuring instrument itself: what the harness reports is what the reference computes, and it is worth
comparing with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import expected as kept_answers
import numpy as np
import prompt_cases
import pytest
import reference

from masklet.testing import lively_weights, synthetic_scene

pytest.importorskip("sam2")
torch = pytest.importorskip("torch")

TINY = tuple(reference.TINY_CONFIGS)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make_golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", ROOT / "tools" / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=TINY)
def encoded(request: pytest.FixtureRequest, make_golden: ModuleType) -> tuple:
    """A tiny model with the golden recipe: predictor with its image set, encoder's trace, scene."""
    seed, bias, (scene_seed, size_hw) = make_golden.RECIPES[request.param]
    model = reference.build_tiny(reference.TINY_CONFIGS[request.param], seed, object_score_bias=bias)
    scene = synthetic_scene(scene_seed, size_hw)
    predictor = reference.predictor(model)
    return predictor, reference.dump_encoder(model, scene.image, predictor), scene


# ---------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_every_tensor_of_every_size_is_filled(size: str) -> None:
    """Version 2.1 has all tensors of 2.0 and three more: one table covers both."""
    old = reference._compose(reference.VARIANTS[f"sam2_hiera_{size}"].config, [])
    new = reference._compose(reference.VARIANTS[f"sam2.1_hiera_{size}"].config, [])
    shapes = reference.state_shapes(new)
    assert reference.state_shapes(old).items() <= shapes.items()
    assert len(shapes) == len(old.state_dict()) + 3
    for name, array in lively_weights(shapes).items():
        assert array.dtype == np.float32, name
        assert array.shape == shapes[name], name
        assert array.size == 1 or array.std() > 0.005, name


def test_activations_stay_sane(encoded: tuple) -> None:
    _, trace, _ = encoded
    for name, array in trace.items():
        assert 0.3 < array.std() < 10, name


# ------------------------------------------------------------------------------------------------------ hooks


def test_dump_leaves_the_model_as_it_was(encoded: tuple) -> None:
    predictor, _, scene = encoded
    reference.dump_prompt(predictor, point_coords=scene.points_xy[:1], point_labels=np.array([1]))
    assert "predict_masks" not in vars(predictor.model.sam_mask_decoder)
    assert not any(module._forward_hooks for module in predictor.model.modules())


def test_encoder_trace_is_complete_and_consistent(encoded: tuple) -> None:
    """Each captured tensor follows from another one: none was overwritten after its hook ran."""
    predictor, trace, _ = encoded
    model = predictor.model
    side, blocks = model.image_size, len(model.image_encoder.trunk.blocks)
    assert trace["pixels"].shape == (1, 3, side, side)
    assert trace["image_encoder.trunk.patch_embed"].shape[1:3] == (side // 4, side // 4)
    assert {f"image_encoder.trunk.blocks.{index}" for index in range(blocks)} <= trace.keys()

    def weights(name: str) -> np.ndarray:
        return model.state_dict()[name].numpy()

    ends = model.image_encoder.trunk.stage_ends
    coarsest = trace[f"image_encoder.trunk.blocks.{ends[3]}"]  # (1, H, W, C)
    lateral = coarsest @ weights("image_encoder.neck.convs.0.conv.weight")[:, :, 0, 0].T
    lateral += weights("image_encoder.neck.convs.0.conv.bias")
    np.testing.assert_allclose(trace["image_encoder.neck.3"], np.moveaxis(lateral, 3, 1), atol=1e-4)
    for level, name in ((0, "conv_s0"), (1, "conv_s1")):
        kernel, bias = (weights(f"sam_mask_decoder.{name}.{part}") for part in ("weight", "bias"))
        projected = np.einsum("oc,bchw->bohw", kernel[:, :, 0, 0], trace[f"image_encoder.neck.{level}"])
        np.testing.assert_allclose(
            trace[f"sam_mask_decoder.{name}"], projected + bias[:, None, None], atol=1e-4
        )
    no_memory = weights("no_mem_embed").reshape(1, -1, 1, 1)
    np.testing.assert_allclose(trace["image_embed"], trace["image_encoder.neck.2"] + no_memory, atol=1e-6)


def test_prompt_trace_is_consistent(encoded: tuple) -> None:
    """The returned masks follow from the four that the decoder made, by the rules of the reference."""
    predictor, _, scene = encoded
    for case in prompt_cases.prompt_cases(scene, predictor.model.image_size):
        trace = reference.dump_prompt(predictor, **case.arguments)
        masks, ious = trace["sam_mask_decoder.all_masks"], trace["sam_mask_decoder.all_ious"]
        if case.arguments["multimask_output"]:
            chosen, scores = masks[:, 1:], ious[:, 1:]
        else:
            stable = trace["sam_mask_decoder.stability"][:, 0] >= 0.98
            pick = np.where(stable, 0, 1 + ious[:, 1:].argmax(1))
            chosen, scores = (
                masks[np.arange(len(pick)), pick][:, None],
                ious[np.arange(len(pick)), pick][:, None],
            )
        one = len(chosen) == 1  # the reference drops the axis of a single prompt
        low_res_masks = np.clip(chosen, -32, 32)
        np.testing.assert_array_equal(trace["low_res_masks"], low_res_masks[0] if one else low_res_masks)
        np.testing.assert_array_equal(trace["ious"], scores[0] if one else scores)
        hyper = np.stack([trace[f"sam_mask_decoder.output_hypernetworks_mlps.{i}"] for i in range(4)], 1)
        again = np.einsum("omc,ochw->omhw", hyper, trace["sam_mask_decoder.output_upscaling.4"])
        np.testing.assert_allclose(masks, again, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "tokens"), [("point", 2), ("box", 3), ("box_negative_point", 4), ("mask", 0), ("nothing", 0)]
)
def test_a_pad_token_follows_points_and_boxes(encoded: tuple, case: str, tokens: int) -> None:
    predictor, _, scene = encoded
    cases = {c.name: c.arguments for c in prompt_cases.prompt_cases(scene, predictor.model.image_size)}
    trace = reference.dump_prompt(predictor, **cases[case])
    assert trace["sam_prompt_encoder.sparse"].shape[1] == tokens
    assert trace["sam_mask_decoder.transformer.hs"].shape[1] == 6 + tokens


# --------------------------------------------------------------------------------------- worth comparing with


def answers(trace_of: dict[str, dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([trace[f"sam_mask_decoder.{name}"] for trace in trace_of.values()])


def refuse_dull(traces: dict[str, dict[str, np.ndarray]], single: set[str]) -> None:
    """Masks neither empty nor full, object scores and stability on both sides of their thresholds, no near
    tie. `single` names the calls that ask for one mask."""
    masks, ious = answers(traces, "all_masks"), answers(traces, "all_ious")
    covered = np.median((masks > 0).mean((2, 3)), 0)
    assert covered.min() > 0.01
    assert covered.max() < 0.99
    assert 25 < np.abs(masks).max() < 100
    assert ious.min() > 0.05
    assert ious.max() < 0.95
    best = np.sort(ious[:, 1:], 1)
    assert (best[:, -1] - best[:, -2]).min() > 1e-3

    scores = answers(traces, "object_score_logits")
    assert scores.min() < 0 < scores.max()
    assert np.abs(scores).min() > 0.002
    stability = answers({name: traces[name] for name in single}, "stability")[:, 0]
    assert stability.min() < 0.98 < stability.max()
    assert np.abs(stability - 0.98).min() > 2e-4


def asks_for_one_mask(case: prompt_cases.PromptCase) -> bool:
    return not case.arguments["multimask_output"]


def test_tiny_models_reach_both_sides(encoded: tuple) -> None:
    """Default tests rely on these alone: the clamp of the returned logits must be reached too."""
    predictor, _, scene = encoded
    cases = prompt_cases.prompt_cases(scene, predictor.model.image_size)
    traces = {case.name: reference.dump_prompt(predictor, **case.arguments) for case in cases}
    refuse_dull(traces, {case.name for case in cases if asks_for_one_mask(case)})
    assert np.abs(answers(traces, "all_masks")).max() > 32


@pytest.mark.full
def test_seeds_reach_both_sides(variant: str, expected: kept_answers.Expected) -> None:
    """What `VARIANTS` chose its seeds and biases for, so that parity compares every branch."""
    traces, single = {}, set()
    for picture in prompt_cases.PICTURES:
        for case in prompt_cases.cases_for(picture):
            traces[f"{picture} {case.name}"] = expected.prompt(case.name, picture)
            single |= {f"{picture} {case.name}"} if asks_for_one_mask(case) else set()
    refuse_dull(traces, single)


def test_object_score_bias_decides_the_sign() -> None:
    config = reference.TINY_CONFIGS["tiny_2.0"]
    scene = synthetic_scene(1, (96, 96))
    for bias, sign in ((5.0, 1), (-5.0, -1)):
        predictor = reference.predictor(reference.build_tiny(config, 0, object_score_bias=bias))
        predictor.set_image(scene.image)
        trace = reference.dump_prompt(predictor, box=scene.boxes_xyxy)
        assert (np.sign(trace["sam_mask_decoder.object_score_logits"]) == sign).all()


# ----------------------------------------------------------------------------------------------- kept answers


def test_a_kept_answer_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed once; a damaged file is computed again; another key does not see it."""
    built: list[str] = []

    def build(variant: str) -> object:
        built.append(variant)
        return reference.build_tiny(reference.TINY_CONFIGS["tiny_2.0"])

    monkeypatch.setattr(kept_answers, "_built", build)
    monkeypatch.setattr(
        prompt_cases, "cases_for", lambda name: prompt_cases.prompt_cases(prompt_cases.picture(name), 160)
    )
    first = kept_answers.Expected("sam2.1_hiera_tiny", tmp_path)
    answer, encoder = first.prompt("box"), first.encoder()
    assert built
    built.clear()
    for name, array in kept_answers.Expected("sam2.1_hiera_tiny", tmp_path).prompt("box").items():
        np.testing.assert_array_equal(array, answer[name])
    assert not built

    assert encoder["pixels"].size == kept_answers.KEPT_ELEMENTS
    np.testing.assert_array_equal(
        encoder["pixels"], kept_answers.kept("pixels", first._encode("landscape")[0]["pixels"])
    )
    assert not list(first.folder.glob(".*"))
    path = first.folder / "landscape.box.npz"
    path.write_bytes(path.read_bytes()[:500])
    np.testing.assert_array_equal(first.prompt("box")["masks"], answer["masks"])

    monkeypatch.setattr(kept_answers, "cache_key", lambda variant: "another")
    built.clear()
    kept_answers.Expected("sam2.1_hiera_tiny", tmp_path).prompt("box")
    assert built


def test_saved_checkpoint_loads_as_published(tmp_path: Path) -> None:
    """The reference's own loader takes the file, strictly."""
    model = reference.build("sam2.1_hiera_tiny")
    loaded = reference.load("sam2.1_hiera_tiny", reference.save_pt(model, tmp_path / "model.pt"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


# ----------------------------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("name", TINY)
def test_golden_files_are_current(make_golden: ModuleType, name: str) -> None:
    stored = make_golden.golden_files.read(name)
    assert make_golden.golden_files.compare(make_golden.golden(name), stored, make_golden.problem) == []


def test_golden_check_can_fail(make_golden: ModuleType) -> None:
    stored = make_golden.golden_files.read("tiny_2.0")
    changed = dict(stored)
    changed["encoder/image_embed"] = stored["encoder/image_embed"] * np.float32(1.0001)
    changed["prompt/box/masks"] = ~stored["prompt/box/masks"]
    del changed["prompt/box/ious"]
    lines = make_golden.golden_files.compare(changed, stored, make_golden.problem)
    assert [line.split(":")[0] for line in lines] == [
        "prompt/box/ious",
        "encoder/image_embed",
        "prompt/box/masks",
    ]
