"""Training of masklet-nano: prompts, losses, schedule, the network's keys, a run of seconds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "nano"


@pytest.fixture(autouse=True)
def nano_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def disc(size: int, x: float, y: float, radius: float) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


class TestPrompts:
    def test_a_coverage_counts_the_pixels_of_each_cell(self):
        mask = np.random.default_rng(0).random((2, 8, 12)) < 0.5
        expected = np.array(
            [
                [[m[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].sum() for c in range(3)] for r in range(2)]
                for m in mask
            ]
        )
        assert np.array_equal(load("prompts").coverage(mask), expected)

    def test_clicks_lie_in_the_mask_and_more_often_in_its_middle(self):
        prompts, mask = load("prompts"), disc(64, 30, 20, 12)
        rng = np.random.default_rng(1)
        clicks = np.array([prompts.draw_click(mask, rng) for _ in range(300)])
        assert mask[clicks[:, 1].astype(int), clicks[:, 0].astype(int)].all()
        central = np.hypot(*(clicks - [30, 20]).T) < 6
        assert 0.35 < central.mean() < 0.9  # a quarter if they were drawn evenly

    def test_a_mask_of_one_pixel_is_clicked_there(self):
        mask = np.zeros((16, 16), bool)
        mask[3, 15] = True
        prompts = load("prompts")
        assert prompts.draw_click(mask, np.random.default_rng(0)).tolist() == [15, 3]
        assert prompts.bounds(mask).tolist() == [15, 3, 16, 4]

    def test_drawn_boxes_are_about_the_mask_and_inside_the_picture(self):
        prompts, mask = load("prompts"), disc(64, 58, 32, 10)
        rng = np.random.default_rng(2)
        boxes = np.array([prompts.draw_box(mask, rng) for _ in range(50)])
        assert (boxes >= 0).all()
        assert (boxes <= 64).all()
        assert np.abs(boxes - prompts.bounds(mask)).max() <= 0.16 * 21 + 1e-3
        assert len(np.unique(boxes, axis=0)) > 40

    def test_each_large_enough_mask_is_picked_before_any_twice(self):
        masks = np.stack([disc(64, 20, 20, 9), disc(64, 40, 40, 1), disc(64, 40, 20, 5)])
        picked = load("prompts").pick(masks, 4, 0.01, np.random.default_rng(3)).tolist()
        assert sorted(picked[:2]) == [0, 2]
        assert set(picked[2:]) <= {0, 2}


class TestSchedule:
    def test_rate_warms_up_falls_and_ends_near_zero(self):
        rate = load("schedule").learning_rate
        rates = [rate(p, 0, 1.0) for p in np.linspace(0, 1, 101)]
        assert rates[0] < 0.01
        assert max(rates) == pytest.approx(1.0, abs=1e-2)
        peak = int(np.argmax(rates))
        assert peak <= 3
        assert all(a > b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
        assert rates[-1] == pytest.approx(0.01)

    def test_a_further_cycle_peaks_lower_and_has_clips_from_the_start(self):
        schedule = load("schedule")
        assert schedule.learning_rate(0.5, 1, 1.0) == pytest.approx(0.6 * schedule.learning_rate(0.5, 0, 1.0))
        first, last = schedule.phase_at(0.0, 1), schedule.phase_at(1.0, 1)
        assert first.small
        assert not last.small
        assert first.clips > 0

    def test_phases_go_from_small_pictures_to_full_ones_with_clips(self):
        schedule = load("schedule")
        phases = [schedule.phase_at(p, 0) for p in (0.0, 0.99, 1.0)]
        assert [schedule.phase_size(phase, 256) for phase in phases] == [128, 256, 256]
        assert phases[0].clips == 0 < phases[1].clips
        assert [schedule.phase_size(phases[0], size) for size in (128, 256, 384, 512)] == [128, 128, 256, 256]


class TestLosses:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def test_perfect_masks_cost_nothing_and_wrong_ones_do(self, torch):
        losses = load("losses")
        target = torch.from_numpy(disc(16, 8, 8, 4)).float()[None]
        right = (40 * target - 20)[:, None]
        good = losses.prompt_losses(right, torch.ones(1, 1), torch.full((1, 1), 20.0), target)
        bad = losses.prompt_losses(-right, torch.ones(1, 1), torch.full((1, 1), -20.0), target)
        assert float(good.total()) < 1e-3
        assert min(float(bad.focal), float(bad.dice), float(bad.iou), float(bad.score)) > 0.5

    def test_only_the_best_candidate_learns_its_mask(self, torch):
        losses = load("losses")
        target = torch.from_numpy(disc(16, 8, 8, 4)).float()[None]
        logits = torch.stack([4 - 8 * target[0], 8 * target[0] - 4, torch.zeros(16, 16)])[
            None
        ].requires_grad_()
        losses.prompt_losses(logits, torch.rand(1, 3), torch.zeros(1, 1), target).total().backward()
        assert logits.grad[0, 1].abs().sum() > 0
        assert logits.grad[0, 0].abs().sum() == logits.grad[0, 2].abs().sum() == 0

    def test_masks_of_absent_objects_do_not_count_but_their_score_does(self, torch):
        losses = load("losses")
        logits, score = torch.randn(1, 3, 8, 8, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
        losses.prompt_losses(logits, torch.rand(1, 3), score, torch.zeros(1, 8, 8)).total().backward()
        assert logits.grad.abs().sum() == 0
        assert float(score.grad) > 0

    def test_focal_loss_of_hard_targets_is_torchvisions_formula(self, torch):
        logits, target = torch.randn(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()
        p, t = logits.sigmoid(), target.expand(2, 3, 8, 8)
        truth = p * t + (1 - p) * (1 - t)
        alpha = 0.75 * t + 0.25 * (1 - t)
        expected = (-alpha * (1 - truth) ** 2 * truth.log()).mean(dim=(2, 3))
        assert torch.allclose(load("losses").focal_loss(logits, target), expected, atol=1e-5)

    @pytest.mark.parametrize("exact", [True, False])
    def test_corrections_are_positive_where_something_is_missing(self, torch, exact):
        losses = load("losses")
        truth = torch.from_numpy(
            np.stack([disc(32, 10, 10, 6), disc(32, 10, 10, 6), disc(32, 10, 10, 6)])
        ).float()
        other = torch.from_numpy(disc(32, 24, 24, 5)).float()
        logits = torch.stack([0 * other - 1, 2 * (truth[0] + other) - 1, 2 * truth[0] - 1])[:, None]
        coords, labels = losses.correction_clicks(logits, truth, exact=exact)
        cells = (coords[:, 0] // 4).long()
        assert labels[:, 0].tolist() == [1, 0, 1]  # missing, too much, all right
        assert truth[0, cells[0, 1], cells[0, 0]] == truth[2, cells[2, 1], cells[2, 0]] == 1
        assert other[cells[1, 1], cells[1, 0]] == 1

    def test_hidden_objects_can_be_corrected(self, torch):
        _, labels = load("losses").correction_clicks(torch.full((1, 1, 8, 8), -1.0), torch.zeros(1, 8, 8))
        assert labels.tolist() == [[0]]


class TestNetwork:
    @pytest.fixture
    def torch(self):
        pytest.importorskip("sam2")
        pytest.importorskip("cv2")
        return pytest.importorskip("torch")

    def test_its_tensors_are_those_that_the_runtime_expects(self, torch):
        from masklet.families.sam2 import FAMILY
        from masklet.families.sam2_stages import Sam2
        from masklet.families.table import from_metadata

        network = load("network")
        model = network.build(network.NANO, 256)
        assert network.parameter_count(model) <= 6_000_000
        assert from_metadata(network.NANO.to_json()) == network.NANO
        found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        expected = {
            name: tuple(int(n) for n in value.shape) for name, value in Sam2(network.NANO).named_parameters()
        }
        for video in (False, True):
            wanted = {k: v for k, v in expected.items() if k.startswith(FAMILY.video_tensors) == video}
            FAMILY.check_tensors(wanted, found, "nano", video=video)

    @pytest.mark.parametrize("size", [128, 256])
    def test_joined_convolutions_give_the_features_of_the_reference(self, torch, size):
        network, steps = load("network"), load("steps")
        torch.manual_seed(0)
        model = network.build(network.NANO, size).eval()
        images = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
        with torch.no_grad():
            ours, theirs = steps.encode(model, images), model.forward_image(network.normalise(images))
        for mine, reference in zip(ours.levels, theirs["backbone_fpn"], strict=True):
            assert torch.allclose(mine, reference, atol=1e-4)
        assert torch.equal(ours.position, theirs["vision_pos_enc"][-1])

    def test_every_parameter_of_a_clip_or_a_picture_learns(self, torch):
        network, steps, batches = load("network"), load("steps"), load("batches")
        model, device = network.build(network.NANO, 128), torch.device("cpu")
        source = batches.Source(Path("nothing"), "train", 128, 0, 0.01)
        clip, still = batches.clip_batch(source, 0, 1, 4), batches.still_batch(source, 0, 2)
        plans = [
            steps.ClipPlan(steps.CLICK, 2),
            steps.ClipPlan(steps.MASK, None),
            steps.ClipPlan(steps.BOX, None),
        ]
        loss = sum(steps.clip_losses(model, clip, plan, device).total() for plan in plans)
        loss = loss + steps.still_losses(model, still, steps.StillPlan(steps.CLICK, 2, True), device).total()
        assert bool(torch.isfinite(loss))
        loss.backward()
        idle = {name for name, p in model.named_parameters() if p.grad is None}
        # Absent objects' parameters learn where the network says "absent", which is by chance here.
        assert idle <= {"no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"}

    def test_a_trunk_can_learn_alone(self, torch):
        network, steps, batches = load("network"), load("steps"), load("batches")
        model, device = network.build(network.NANO, 128), torch.device("cpu")
        similarity = load("similarity").Similarity(network.NANO.d_model)
        still = batches.still_batch(batches.Source(Path("nothing"), "train", 128, 0, 0.01, 1.0), 0, 2)
        losses = steps.still_losses(model, still, None, device, similarity)
        assert float(losses.dice) == 0 < float(losses.likeness.detach())
        losses.total(1.0).backward()
        learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert learning == {"image_encoder", "sam_mask_decoder"}
        assert model.sam_mask_decoder.transformer.layers[0].self_attn.q_proj.weight.grad is None

    def test_a_click_attends_near_its_place_before_any_training(self, torch):
        network = load("network")
        torch.manual_seed(0)
        model = network.build(network.NANO, 256)
        attention = model.sam_mask_decoder.transformer.layers[0].cross_attn_token_to_image
        place = model.sam_prompt_encoder.get_dense_pe().flatten(2)[0].T  # (256, C), 16 x 16 cells
        heads = len(network.TO_IMAGE)
        with torch.no_grad():
            query, key = (
                projection(place).view(256, attention.num_heads, -1)[:, :heads].transpose(0, 1)
                for projection in (attention.q_proj, attention.k_proj)
            )
            weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1).mean(0)
        rows, columns = torch.arange(256) // 16, torch.arange(256) % 16
        near = ((rows[:, None] - rows).abs() <= 2) & ((columns[:, None] - columns).abs() <= 2)
        assert float((weights * near).sum(1).mean()) > 0.75  # 0.1 if all places were alike


class TestSimilarity:
    def test_cells_that_tell_objects_apart_cost_less(self):
        torch = pytest.importorskip("torch")
        pytest.importorskip("sam2")
        similarity = load("similarity")
        torch.manual_seed(0)
        decoder = load("network").build(load("network").NANO, 128).sam_mask_decoder
        head = similarity.Similarity(128)
        left = torch.zeros(1, 32, 32)
        left[:, :, :16] = 1
        target, owners = torch.cat([left, 1 - left]), torch.zeros(2, dtype=torch.long)
        flat = [torch.zeros(1, 16, 32, 32), torch.zeros(1, 32, 16, 16), 0.2 * torch.ones(1, 128, 8, 8)]
        flat[2][:, ::2] *= -1
        halves = [*flat[:2], flat[2] * torch.where(torch.arange(8) < 4, 1.0, -1.0)]
        with torch.no_grad():
            assert head(decoder, halves, target, owners) < head(decoder, flat, target, owners) - 0.3

    def test_only_levels_above_their_limits_cost(self):
        torch = pytest.importorskip("torch")
        pytest.importorskip("sam2")
        excess = load("similarity")._excess
        small = [torch.full((1, 2, 2, 2), 0.2)] * 3
        assert float(excess(small)) == 0 < float(excess([small[0] * 50, *small[1:]]))


class TestMuon:
    def test_updates_are_nearly_orthogonal_and_shared_between_processes(self):
        torch = pytest.importorskip("torch")
        optimiser = load("optimiser")
        matrix = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(optimiser.orthogonal(matrix))
        assert 0.5 < float(values.min()) < float(values.max()) < 1.3
        shapes = [torch.zeros(n, 16) for n in (16, 400, 32, 64, 128, 16)]
        shares = [optimiser._share(shapes, rank, 3) for rank in range(3)]
        assert sorted(index for share in shares for index in share) == list(range(6))
        assert {1} in shares  # the costliest is one process's whole share

    def test_it_is_for_all_matrices_but_tables(self):
        pytest.importorskip("torch")
        pytest.importorskip("sam2")
        network, optimiser = load("network"), load("optimiser")
        named = network.build(network.NANO, 128).named_parameters()
        chosen = {name for name, parameter in named if optimiser.is_hidden_matrix(parameter)}
        decoder = "sam_mask_decoder.transformer."
        assert decoder + "layers.0.cross_attn_token_to_image.q_proj.weight" in chosen
        assert decoder + "final_attn_token_to_image.out_proj.weight" in chosen
        tables = (
            "iou_token",
            "mask_tokens",
            "obj_score_token",
            "embeddings",
            "_embed.",
            "no_obj",
            "pos_embed",
        )
        assert not [name for name in chosen if any(table in name for table in tables)]

    def test_it_fits_a_linear_map(self):
        torch = pytest.importorskip("torch")
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(16, 24))
        wanted, inputs = torch.randn(16, 24, generator=generator), torch.randn(256, 24, generator=generator)
        muon = load("optimiser").Muon([weight], lr=0.05, weight_decay=0.0)
        first = None
        for _ in range(120):
            loss = (inputs @ (weight - wanted).T).square().mean()
            first = first or float(loss.detach())
            muon.zero_grad()
            loss.backward()
            muon.step()
        assert float(loss.detach()) < 0.1 * first


def test_a_run_stops_resumes_and_exports(tmp_path, monkeypatch):
    """Two short runs of one folder: the second one goes on with the step of the first as a new cycle."""
    pytest.importorskip("sam2")
    pytest.importorskip("cv2")
    torch = pytest.importorskip("torch")
    train, export = load("train"), load("export")
    monkeypatch.setattr(train, "HELD_STILLS", 8)
    monkeypatch.setattr(train, "HELD_CLIPS", 1)
    arguments = ["train.py", str(tmp_path / "data"), str(tmp_path / "run"), "--batch", "1", "--size", "128"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0.02"])
        train.main()
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert saved["state"]["cycle"] == 1
    assert saved["state"]["step"] >= 2
    assert log.count("done: step") == log.count("held: 1 click") == 2

    out = tmp_path / "nano.safetensors"
    export.export(tmp_path / "run", out, "f16", 128)
    assert out.stat().st_size <= 12_000_000
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0.02", "--no-resume", "--init", str(out)])
    train.main()
