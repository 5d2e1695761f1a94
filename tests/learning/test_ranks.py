"""Two processes that train together, over gloo, against one."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import wsiad
from support.tiny_dpa import CPU, HEALTHY, detector, tiny_vgg
from wsiad.core.errors import ConfigError, RunError
from wsiad.learning.batches import on_device, random_crops
from wsiad.learning.detector import Budget, FitContext
from wsiad.learning.devices import Ranks
from wsiad.learning.metrics import read_metrics
from wsiad.runs import fitting as fit_along
from wsiad.runs.run import RunFolder

pytestmark = pytest.mark.slow  # starts processes that import torch

PLAIN = {"val_interval": 3, "log_interval": 2}
FULL = {
    **PLAIN,
    "adversarial_weight": 0.5,
    "image_weight": 0.1,
    "ema_decay": 0.9,
    "grad_clip": 1.0,
    "growing": {
        "start_px": 8,
        "stabilise_steps": 1,
        "transition_steps": 1,
        "layers": {8: {"relu1_2": 1.0}, 16: {"relu1_2": 1.0}},
        "batch": {8: 4},
    },
}


def fit(folder, options, ranks=None, steps=7):
    context = FitContext(
        seed=1,
        device=CPU,
        folder=folder,
        budget=Budget(max_steps=steps, max_minutes=60),
        weights=str(folder.parent / "tiny.safetensors"),
        quiet=True,
        ranks=ranks or Ranks(),
    )
    found = detector(**options)
    report = found.fit(HEALTHY, context)
    return found, report


def rank(number, folder):
    """Body of one of two processes: both settings, and the first killed and resumed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2
    )
    ranks = Ranks(number, 2)
    for name, options in (("plain", PLAIN), ("full", FULL)):
        found, _ = fit(folder / f"two-{name}", options, ranks)
        save_file(found.state().tensors, folder / f"{name}-{number}.safetensors")
    fit(folder / "parts", PLAIN, ranks, steps=4)
    torch.distributed.barrier()
    found, _ = fit(folder / "parts", PLAIN, ranks)
    save_file(found.state().tensors, folder / f"parts-{number}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_file(tiny_vgg(), folder / "tiny.safetensors")
    torch.multiprocessing.spawn(rank, args=(folder,), nprocs=2)
    return folder


@pytest.mark.parametrize(("name", "options"), [("plain", PLAIN), ("full", FULL)])
def test_two_processes_train_as_one(folder, name, options):
    """Each with half of the batch: the same to rounding, and the same in both to the bit."""
    alone, _ = fit(folder / f"one-{name}", options)
    expected = alone.state().tensors
    first, second = (load_file(folder / f"{name}-{number}.safetensors") for number in (0, 1))
    for key, tensor in expected.items():
        assert torch.equal(first[key], second[key])
        # Seven steps of Adam move a weight by up to 7e-3.
        torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=1e-4)
    rows, own = (
        read_metrics(folder / f"{which}-{name}" / "metrics.csv") for which in ("one", "two")
    )
    assert [row.step for row in rows] == [row.step for row in own]
    for one, two in zip(rows, own, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-4)
        assert (one.stop_loss is None) == (two.stop_loss is None)
        assert (one.stop_loss or 0) == pytest.approx(two.stop_loss or 0, rel=1e-4)


def test_two_processes_resume_to_the_same_bits(folder):
    whole, parts = (load_file(folder / f"{name}-0.safetensors") for name in ("plain", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_one_process_goes_on_from_a_checkpoint_of_two(folder):
    found, report = fit(folder / "parts", PLAIN, steps=8)
    assert report.steps == 8
    assert all(bool(torch.isfinite(t).all()) for t in found.state().tensors.values())


def test_rows_of_a_batch():
    rows = [Ranks(number, 3).own(12, groups=2) for number in range(3)]
    assert [r.tolist() for r in rows] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    with pytest.raises(ConfigError, match="batches of 5 tiles cannot be shared by 2 devices"):
        Ranks(0, 2).own(15, groups=3)


def test_crops_are_those_of_the_whole_batch():
    tiles = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    whole = random_crops(on_device(tiles, CPU), 8, seed=3, step=5)
    for number in range(2):
        rows = Ranks(number, 2).own(12, groups=3)
        own = on_device(tiles[rows], CPU)
        found = random_crops(own, 8, seed=3, step=5, rows=rows, total=12)
        assert torch.equal(found, whole[rows])


# --- the verb


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    (folder / "tiles").mkdir()
    for number in range(30):
        tile = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(tile).save(folder / "tiles" / f"{number:02d}.png")
    wsiad.import_tiles(
        sources=folder / "tiles", out=folder / "store", mpp=1, label="normal", quiet=True
    )
    save_file(tiny_vgg(), folder / "tiny.safetensors")
    return folder


def train(store, out, **values):
    options = {"input_px": 32, "latent_px": 8, "layers": {"relu2_2": 1.0}, "batch": 6, **PLAIN}
    fixed = {
        "store": store / "store",
        "detector": "dpa",
        "weights": str(store / "tiny.safetensors"),
        "max_steps": 5,
    }
    settings = {"device": "cpu", "options": options, "quiet": True}
    return wsiad.train(**{**fixed, **settings, "out": out, **values})


def test_verb_with_two_devices(store, tmp_path):
    for devices in (1, 2):
        train(store, tmp_path / str(devices), devices=devices)
    one, two = (RunFolder.open(tmp_path / name) for name in "12")
    first, second = (run.load_detector(CPU).state().tensors for run in (one, two))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=1e-3, atol=1e-4)
    assert two.record().notes["devices"] == 2
    assert (two.record().steps, one.record().steps) == (5, 5)
    assert one.calibration().median == pytest.approx(two.calibration().median, rel=1e-3)
    assert not torch.distributed.is_initialized()


def test_what_cannot_be_shared_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="batches of 6 tiles cannot be shared by 4"):
        Ranks(0, 4).own(6)
    with pytest.raises(ConfigError, match="gaussian is fitted by one process"):
        wsiad.train(store=store / "store", out=tmp_path, detector="gaussian", devices=2)


def test_a_process_that_dies_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_along, "fit_along", dying)
    with pytest.raises(RunError, match="exited early"):
        train(store, tmp_path, devices=2)
    assert not torch.distributed.is_initialized()


def dying(config, rank, meeting):
    fit_along._join(Ranks(rank, 2), CPU, meeting)
    raise SystemExit(3)
