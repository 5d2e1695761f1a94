"""Stages of a growing training: their arithmetic, and what the loop makes of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from support.builders import Dying
from wsiad.core.errors import DetectorError
from wsiad.learning.batches import on_device, random_crops
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.loop import Training
from wsiad.learning.metrics import read_metrics
from wsiad.learning.stages import Span, Stage, Stages
from wsiad.learning.training_options import LoopOptions
from wsiad.store.dataset import ArrayTiles

TILES = np.random.default_rng(0).integers(0, 256, (41, 12, 12, 3), dtype=np.uint8)
# 3 × stabilise 2, 4 × to 4, 2 × stabilise 4, 2 × to 8, stabilise 8
STAGES = Stages(
    (2, 4, 8), stabilise={2: 3, 4: 2}, transition={4: 4, 8: 2}, batch={2: 8, 4: 8, 8: 8}
)
UNEQUAL = Stages(
    (2, 4, 8), stabilise={2: 3, 4: 2}, transition={4: 4, 8: 2}, batch={2: 12, 4: 12, 8: 5}
)


def test_stages_by_hand():
    expected = [
        (2, 1), (2, 1), (2, 1),
        (4, 0.25), (4, 0.5), (4, 0.75), (4, 1),
        (4, 1), (4, 1),
        (8, 0.5), (8, 1),
        (8, 1), (8, 1),
    ]  # fmt: skip
    assert [STAGES.at(step) for step in range(13)] == [Stage(px, a) for px, a in expected]
    assert STAGES.at(10**9) == Stage(8, 1.0)
    assert [step for step in range(40) if STAGES.begins(step)] == [3, 7, 9, 11]
    assert STAGES.last_start == 11
    assert STAGES.span(6) == Span(4, True, 4, 8)
    assert STAGES.span(7) == Span(4, False, 2, 8)
    assert [(n["stage"], n["first_step"], n["steps"]) for n in STAGES.notes()] == [
        ("stabilise 2 px", 0, 3),
        ("transition to 4 px", 3, 4),
        ("stabilise 4 px", 7, 2),
        ("transition to 8 px", 9, 2),
        ("stabilise 8 px", 11, None),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_ramps_against_counting_step_by_step(seed):
    rng = np.random.default_rng(seed)
    edges = tuple(4 * 2**i for i in range(int(rng.integers(1, 5))))
    stabilise = {px: int(rng.integers(1, 30)) for px in edges}
    transition = {px: int(rng.integers(1, 30)) for px in edges}
    stages = Stages(
        edges, stabilise=stabilise, transition=transition, batch=dict.fromkeys(edges, 1)
    )
    px, fading, progress, changes = edges[0], False, 0.0, []
    for step in range(200):  # as a loop with a state would go through them
        length = (transition if fading else stabilise)[px]
        progress = min(progress + 1 / length, 1.0)
        found = stages.at(step)
        assert found.px == px
        assert found.alpha == pytest.approx(progress if fading else 1.0, abs=1e-9)
        assert (stages.span(step).transition, stages.span(step).px) == (fading, px)
        if abs(progress - 1) < 1e-6 and (fading or px != edges[-1]):
            px, fading, progress = (px, False, 0.0) if fading else (2 * px, True, 0.0)
            changes.append(step + 1)
    assert [step for step in range(200) if stages.begins(step)] == [c for c in changes if c < 200]


def test_one_resolution_is_one_stage():
    stages = Stages((8,), stabilise={}, transition={}, batch={8: 3})
    assert stages.at(0) == stages.at(99) == Stage(8)
    assert stages.last_start == 0
    assert not stages.begins(0)


@pytest.mark.parametrize("edges", [(), (8, 12), (8, 32), (16, 8)])
def test_resolutions_must_double(edges):
    with pytest.raises(DetectorError, match="must double"):
        Stages(edges, stabilise={}, transition={}, batch={})


class Line(nn.Module):
    """A weight for either resolution that is looked at."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterDict({str(px): torch.full((3,), 0.1) for px in (2, 4, 8)})


def loss_of(module, seen=None):
    def loss(windows, stage):
        if seen is not None:
            seen.append((stage, len(windows), torch.is_grad_enabled()))
        x = windows.float().mean(dim=(1, 2)) / 255
        own = (x - module.weights[str(stage.px)]).square().mean(dim=1)
        if stage.alpha == 1:
            return own
        below = (x - module.weights[str(stage.px // 2)]).square().mean(dim=1)
        return stage.alpha * own + (1 - stage.alpha) * below

    return loss


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def train(folder, *, steps, stages=STAGES, fit=None, seen=None, loss=None, **options):
    module = Line()
    values = {"batch": 8, "val_interval": 4, "log_interval": 3, "learning_rate": 0.01, **options}
    training = Training(
        module,
        (loss or loss_of)(module, seen),
        tiles=HealthyTiles(fit or ArrayTiles(TILES[:29]), ArrayTiles(TILES[29:])),
        size=8,
        options=LoopOptions(**values),
        context=FitContext(
            seed=3, device=torch.device("cpu"), folder=folder, budget=Budget(steps), quiet=True
        ),
        identity={},
        stages=stages,
    )
    result = training.run()
    return flat(module), result


def test_loop_goes_through_the_stages(tmp_path):
    seen = []
    train(tmp_path, steps=14, stages=UNEQUAL, seen=seen)
    seen = [one for one in seen if one[1] > 2]  # one and two windows measure the memory
    steps = [(stage, count) for stage, count, trained in seen if trained]
    assert [stage for stage, _ in steps] == [UNEQUAL.at(step) for step in range(14)]
    assert [count for _, count in steps] == [12] * 9 + [5] * 5
    looks = [stage for stage, _, trained in seen if not trained]
    # After 4, 8, 12 and 14 steps: each at the stage of the step before (two batches each).
    assert looks == [UNEQUAL.at(step) for step in (3, 3, 7, 7, 11, 11, 13, 13)]


@pytest.mark.parametrize("stages", [STAGES, UNEQUAL], ids=["equal", "unequal"])
def test_optimiser_is_renewed_against_a_loop_by_hand(tmp_path, stages):
    found, result = train(tmp_path, steps=11, stages=stages)  # ends before the last stage
    assert (result.steps, result.best_step, result.best_loss) == (11, 0, math.inf)
    module, source = Line(), ArrayTiles(TILES[:29])
    loss, step, epoch = loss_of(module), 0, 0
    batches = iter(())
    for px, fading, length in ((2, False, 3), (4, True, 4), (4, False, 2), (8, True, 2)):
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        batch = 5 if px == 8 and stages is UNEQUAL else 12 if stages is UNEQUAL else 8
        if stages is UNEQUAL and px == 8:
            batches = iter(())  # another size begins another epoch
        for number in range(1, length + 1):
            tiles = next(batches, None)
            if tiles is None:
                batches = source.shuffled(batch, seed=3, epoch=epoch)
                epoch += 1
                tiles = next(batches)
            windows = random_crops(on_device(tiles, torch.device("cpu")), 8, seed=3, step=step)
            optimiser.zero_grad()
            loss(windows, Stage(px, number / length if fading else 1.0)).mean().backward()
            optimiser.step()
            step += 1
    assert torch.equal(found, flat(module))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "lr_schedule": "cosine"}])
@pytest.mark.parametrize("stages", [STAGES, UNEQUAL], ids=["equal", "unequal"])
def test_killed_in_any_stage_ends_like_one_that_was_not(tmp_path, stages, options):
    options = {**options, "stages": stages, "checkpoint_seconds": 1e-9}
    whole, result = train(tmp_path / "whole", steps=17, **options)
    kills = 0
    for _ in range(30):  # a kill after one or two steps, over and over
        try:
            resumed, again = train(
                tmp_path / "killed", steps=17, fit=Dying(TILES[:29], 3), **options
            )
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 5
    assert torch.equal(whole, resumed)
    assert (again.best_step, again.best_loss) == (result.best_step, result.best_loss)
    rows = [
        [(r.step, r.train_loss, r.stop_loss) for r in read_metrics(tmp_path / name / "metrics.csv")]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]


# In and at the ends of: stabilise 2, to 4, stabilise 4, to 8, stabilise 8.
@pytest.mark.parametrize("first", [1, 3, 5, 7, 8, 9, 10, 11, 12])
def test_stopped_by_its_bound_in_any_stage_goes_on(tmp_path, first):
    whole, _ = train(tmp_path / "whole", steps=15, stages=UNEQUAL)
    train(tmp_path / "parts", steps=first, stages=UNEQUAL)
    parts, result = train(tmp_path / "parts", steps=15, stages=UNEQUAL)
    assert torch.equal(whole, parts)
    assert result.steps == 15


def test_early_stopping_and_the_best_only_in_the_last_stage(tmp_path):
    held_out = []

    def worsening(module, _):
        def loss(windows, stage):
            if torch.is_grad_enabled():
                return loss_of(module)(windows, stage)
            held_out.append(stage)  # rising from the first, and far lower before the last stage
            value = (0.0 if stage.px < 8 else 5.0) + 0.01 * len(held_out)
            return torch.full((len(windows),), value)

        return loss

    options = {"val_interval": 1, "patience": 1, "val_tiles": 8}
    _, result = train(tmp_path, steps=None, loss=worsening, **options)
    assert result.ended_by == "early-stopping"
    assert result.best_step == 12  # the first look in the last stage, which begins after 11
    assert result.steps == 14
    assert len(held_out) == 14
