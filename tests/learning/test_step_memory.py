"""The memory of a step is known before it is taken, and bounded by that of the device."""

import numpy as np
import pytest
import torch
from torch import nn

from wsiad.core.errors import DetectorError
from wsiad.learning import step as steps
from wsiad.learning.checkpoint import Recipe
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.devices import memory_bytes
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


def training(folder, *, batch, parts=1, module=None):
    module = module or Small()
    return Training(
        module,
        module.losses,
        tiles=HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)),
        size=8,
        options=LoopOptions(batch=batch, max_steps=1),
        context=FitContext(seed=1, device=CPU, folder=folder, budget=Budget(), quiet=True),
        identity={},
        recipe=Recipe(parts=parts),
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
