"""The memory of a step is known before it is taken, and bounded by that of the device."""

import numpy as np
import pytest
import torch
from torch import nn

from wsiad.core.errors import DetectorError
from wsiad.learning import step as steps
from wsiad.learning.adversarial_game import AdversarialGame, Adversary, Match, Side
from wsiad.learning.checkpoint import Recipe, descend
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.devices import Ranks, memory_bytes
from wsiad.learning.loop import Training
from wsiad.learning.step import kept_bytes
from wsiad.learning.training_options import LoopOptions
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
TILES = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), np.uint8)
INPUTS, UNITS = 8 * 8 * 3, 5
EACH = 4 * (INPUTS + UNITS) + 12 * 12 * 3  # input of the layer, output of ReLU, and the tile


class Small(nn.Module):
    """A layer after a frozen one, with a memory that is no part of a window."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, 1)
        self.frozen = nn.Linear(INPUTS, INPUTS).requires_grad_(requires_grad=False)

    def losses(self, windows):
        with torch.no_grad():
            x = self.frozen(windows.flatten(1).float())
        return self.last(torch.relu(self.layer(x))).sum(dim=1)


def training(folder, *, batch, parts=1, module=None, update=None, adversary=None):
    module = module or Small()
    return Training(
        module,
        module.losses,
        tiles=HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)),
        size=8,
        options=LoopOptions(batch=batch, max_steps=1),
        context=FitContext(seed=1, device=CPU, folder=folder, budget=Budget(), quiet=True),
        identity={},
        recipe=Recipe(parts=parts, update=update),
        adversary=adversary,
    )


def test_what_is_kept_for_a_window_by_hand():
    module, windows = Small(), torch.from_numpy(TILES[:, :8, :8])
    one, two, nine = (kept_bytes(module.losses, windows[:n]) for n in (1, 2, 9))
    assert two - one == EACH - 12 * 12 * 3
    assert nine - one == 8 * (two - one)


def test_a_step_that_just_fits_is_taken_and_a_larger_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "memory_bytes", lambda device: 8 * EACH)
    for name, batch, parts in (("whole", 8, 1), ("parts", 24, 3)):
        (tmp_path / name).mkdir()
        assert training(tmp_path / name, batch=batch, parts=parts).run().steps == 1
        with pytest.raises(DetectorError, match=r"a step keeps .* for 9 windows of 8 px") as error:
            training(tmp_path, batch=batch + parts, parts=parts).run()
        assert "Set a smaller batch" in error.value.remedy


def refused_above(monkeypatch, each, start):
    """Assert that a step of 8 windows is taken with 8 times these bytes, and not with one less."""
    for missing in (0, 1):
        monkeypatch.setattr(steps, "memory_bytes", lambda device, m=missing: 8 * each - m)
        check = start()._stepper.check_memory
        if missing:
            with pytest.raises(DetectorError, match="for 8 windows of 8 px"):
                check(ArrayTiles(TILES))
        else:
            check(ArrayTiles(TILES))


def test_a_step_of_a_methods_own_counts_with_its_largest_part(tmp_path, monkeypatch):
    module = Small()

    def update(windows, optimiser, step):
        for part, times in zip(windows.tensor_split(2), (3, 2), strict=True):
            descend(optimiser, module.losses(part.repeat(times, 1, 1, 1)).mean())
        return torch.zeros(())

    most = 3 * 4 * (INPUTS + UNITS) + 12 * 12 * 3
    refused_above(
        monkeypatch,
        most,
        lambda: training(tmp_path, batch=16, parts=2, module=module, update=update),
    )


def test_critics_count_where_they_keep_more(tmp_path, monkeypatch):
    module = Small()

    class Judge(Adversary):
        def batch(self, windows, at, stage):
            return windows

        def opponent_losses(self, windows, step, stage):
            return module.losses(windows), module.losses(windows)

    def judged(critic, match):
        return critic.losses(match.real.repeat(5, 1, 1, 1)).mean()

    critic = Small()
    game = AdversarialGame([Side(lambda _: critic, lambda x: Match(x, x), judged)])
    judge = Judge(game, critic, steps=1, learning_rate=1e-3, ranks=Ranks())
    most = 5 * 4 * (INPUTS + UNITS) + 12 * 12 * 3
    refused_above(
        monkeypatch, most, lambda: training(tmp_path, batch=8, module=module, adversary=judge)
    )


def test_a_step_that_is_tried_leaves_no_trace(tmp_path):
    class Counting(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

    module = Counting()

    def update(windows, optimiser, step):
        descend(optimiser, module.losses(windows).mean())
        module.steps += 1
        return torch.zeros(())

    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    begun = training(tmp_path, batch=4, module=module, update=update)
    begun._stepper.check_memory(ArrayTiles(TILES))
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(".adam" in name or name.startswith("adam") for name in begun._trained.tensors())


def test_a_batch_without_measure_is_refused_before_a_tile_is_drawn(tmp_path):
    class Counted(ArrayTiles):
        drawn = 0

        def shuffled(self, *args, **kwargs):
            Counted.drawn += 1
            return super().shuffled(*args, **kwargs)

    asked = training(tmp_path, batch=10**12)
    asked._tiles = HealthyTiles(Counted(TILES), ArrayTiles(TILES))
    with pytest.raises(DetectorError, match=r"a step keeps 1,1\d\d,\d\d\d GiB"):
        asked.run()
    assert Counted.drawn == 0


def test_no_draw_and_no_statistic_is_changed(tmp_path):
    class Drawing(Small):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(INPUTS)

        def losses(self, windows):
            x = self.norm(windows.flatten(1).float())
            return self.last(torch.relu(self.layer(x + torch.rand_like(x)))).sum(dim=1)

    module = Drawing()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training(tmp_path, batch=4, module=module)._stepper.check_memory(ArrayTiles(TILES))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())


def test_memory_of_this_machine():
    psutil = pytest.importorskip("psutil")

    assert 1 << 28 < memory_bytes(CPU) <= psutil.virtual_memory().total
