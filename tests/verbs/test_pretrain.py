"""`wsiad pretrain`: the contrastive loss, its views, the network that is left, the verb."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import ConfigError, DetectorError, InputError, RunError
from wsiad.core.ownership import CLAIM, claimed
from wsiad.learning.batches import ViewOptions, random_views
from wsiad.learning.contrastive import (
    ContrastiveLoss,
    ContrastiveNetwork,
    ContrastiveOptions,
    contrast,
)
from wsiad.networks.vgg import Vgg19
from wsiad.networks.weights import SHIPPED_FILE, read_file

STILL = ViewOptions(view_px=32, scale=1, stain_gain=0, stain_shift=0, brightness=0, blur=0)
TINY = {
    "widths": [4, 6],
    "views": {"view_px": 32},
    "batch": 4,
    "max_steps": 6,
    "val_interval": 2,
    "checkpoint_seconds": 1e-6,
}


def tiles(count, edge=48, seed=0):
    return torch.from_numpy(np.stack([stained(edge, edge, seed=seed + i) for i in range(count)]))


def generator():
    return torch.Generator().manual_seed(3)


def test_contrast_is_the_normalised_cross_entropy():
    torch.manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(5, 7), dim=1) for _ in range(2))
    both, found = torch.cat([one, other]).double().numpy(), contrast(one, other, 0.3)
    for row in range(5):
        losses = []
        for mine, theirs in ((row, row + 5), (row + 5, row)):
            similar = np.exp(both @ both[mine] / 0.3)
            losses.append(-np.log(similar[theirs] / (similar.sum() - similar[mine])))
        assert found[row].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_contrast_is_least_where_views_agree():
    vectors = torch.eye(6)
    assert (contrast(vectors, vectors, 0.1) < 1e-3).all()
    assert (contrast(vectors, vectors.roll(1, 0), 0.1) > 5).all()


def test_what_is_left_is_the_network_without_its_normalisation():
    torch.manual_seed(0)
    network = ContrastiveNetwork((4, 6, 8))
    images = torch.rand(8, 3, 32, 32)
    for _ in range(3):
        network(images)  # the statistics move
    network.eval()
    plain = Vgg19(network.plain(), ["relu1_2", "relu2_2", "relu3_4"])(images)
    x = (images - network.image_mean) / network.image_std
    for block, name in zip(network.blocks, plain, strict=True):
        x = block(x)
        assert torch.allclose(x, plain[name], atol=1e-5)
    assert x.std() > 0.01


def test_views_of_one_colour_are_that_colour():
    flat = torch.full((3, 48, 48, 3), 0, dtype=torch.uint8) + torch.tensor(
        [200, 120, 180], dtype=torch.uint8
    )
    views = random_views(flat, STILL, generator())
    assert views.shape == (3, 3, 32, 32)
    expected = (torch.tensor([200, 120, 180]) / 255).view(1, 3, 1, 1).expand_as(views)
    assert torch.allclose(views, expected, atol=1e-5)


def test_scale_of_views_is_that_of_the_tile():
    # Stripes 8 px wide: along some line a view of 32 px holds as many as 32 px of the tile.
    stripes = (torch.arange(96) // 8 % 2 * 200).to(torch.uint8)
    tile = stripes[None, :, None, None].expand(40, 96, 96, 3).contiguous()
    changes = (random_views(tile, STILL, generator())[:, 0].diff(dim=2).abs() > 0.2).sum(dim=2)
    assert 3 <= changes.max() <= 5 * 2  # a slanted edge takes two pixels


def test_stain_changes_scale_the_density():
    options = STILL.model_copy(update={"stain_gain": 0.5})
    grey = torch.full((64, 48, 48, 3), 128, dtype=torch.uint8)
    means = random_views(grey, options, generator()).mean(dim=(1, 2, 3))
    assert means.std() > 0.02
    assert abs(means.mean() - 128 / 255) < 0.05


def test_views_follow_from_the_generator_alone():
    found = [random_views(tiles(3), ViewOptions(view_px=32), generator()) for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(
        found[0], random_views(tiles(3), ViewOptions(view_px=32), torch.Generator())
    )


def test_loss_of_the_same_windows_is_the_same_and_of_others_not():
    options = ContrastiveOptions(widths=(4, 6), views=ViewOptions(view_px=32))
    torch.manual_seed(0)
    network = ContrastiveNetwork(options.widths).eval()
    loss = ContrastiveLoss(network, options)
    with torch.no_grad():
        first, again, other = loss(tiles(4)), loss(tiles(4)), loss(tiles(4, seed=9))
    assert first.shape == (4,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    for number in range(4):
        write_tiff(folder / f"s{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    wsiad.tile(slides=folder, out=folder / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    return folder / "store"


def pretrain(store, out, **options):
    return wsiad.pretrain(store=store, out=out, options=TINY | options, quiet=True)


def test_weights_are_a_vgg19_that_detectors_take(store, tmp_path):
    result = pretrain(store, tmp_path / "net")
    assert (result.ended_by, result.steps) == ("max-steps", 6)
    tensors = load_file(result.weights)
    assert {k: tuple(t.shape) for k, t in tensors.items() if k.endswith("weight")} == {
        "features.0.weight": (4, 3, 3, 3), "features.2.weight": (4, 4, 3, 3),
        "features.5.weight": (6, 4, 3, 3), "features.7.weight": (6, 6, 3, 3),
    }  # fmt: skip
    record = json.loads((tmp_path / "net" / "pretrain.json").read_text())
    assert record["tiles"]["held_out"] > 0
    assert record["options"]["widths"] == [4, 6]
    given = {"detector": "knn", "weights": str(result.weights)}
    run = wsiad.train(store=store, out=tmp_path / "run", **given,
                      options={"layers": ["features.8"], "places": 2}, quiet=True)  # fmt: skip
    detector = json.loads((run.run / "detector.json").read_text())
    assert detector["options"]["backbone"] == "wsiad"  # known by what the file says


def test_training_lowers_the_loss(store, tmp_path):
    pretrain(store, tmp_path / "net", max_steps=60, batch=8, learning_rate=3e-3, val_interval=60)
    lines = (tmp_path / "net" / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in lines[1:] if line.split(",")[3]]
    assert losses[-1] < np.log(15)  # of a guess among the fifteen other views


def test_killed_pretraining_ends_like_one_that_was_not(store, tmp_path):
    pretrain(store, tmp_path / "whole")
    code = f"""
import os, wsiad
from pathlib import Path
from wsiad.learning import checkpoint
written = checkpoint.Checkpoint.write
def write(self, path):
    written(self, path)
    if self.values["step"] == 4:
        os.kill(os.getpid(), 9)
checkpoint.Checkpoint.write = write
wsiad.pretrain(store={str(store)!r}, out={str(tmp_path / "killed")!r}, options={TINY!r}, quiet=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == -9
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain(store, tmp_path / "killed")
        pretrain(store, tmp_path / "whole_1")
    finally:
        torch.set_num_threads(torch_threads)
    same, killed = (load_file(tmp_path / n / "weights.safetensors") for n in ("whole_1", "killed"))
    assert all(torch.equal(same[name], killed[name]) for name in same)


def test_complete_network_is_left_and_another_refused(store, tmp_path):
    first = pretrain(store, tmp_path / "net")
    stamp = first.weights.stat().st_mtime_ns
    assert "complete already" in pretrain(store, tmp_path / "net").summary
    assert first.weights.stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="complete pretraining already"):
        pretrain(store, tmp_path / "net", batch=5)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RunError, match="not a pretraining"):
        pretrain(store, tmp_path / "notes")


def test_a_folder_in_which_another_works_is_refused(store, tmp_path):
    with claimed(tmp_path / "run"):
        with pytest.raises(InputError, match="another process works on it"):
            pretrain(store, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [CLAIM]


def test_bad_options(store, tmp_path):
    with pytest.raises(DetectorError, match="48 px"):
        pretrain(store, tmp_path / "a", views={"view_px": 64})
    with pytest.raises(ConfigError):
        pretrain(store, tmp_path / "b", widths=[4])
    with pytest.raises(ConfigError):
        pretrain(store, tmp_path / "c", colour=1)
    assert not any((tmp_path / name).exists() for name in "abc")


def test_shipped_network_is_small_finite_and_sees():
    assert SHIPPED_FILE.stat().st_size <= 5_000_000
    found = read_file(SHIPPED_FILE)
    assert found.metadata["made_by"].startswith("wsiad pretrain")
    network = Vgg19(found.tensors, ["relu4_2", "relu4_4"])
    images = tiles(4).permute(0, 3, 1, 2).float() / 255
    for features in network(images).values():
        assert features.std() > 1e-3
        assert (features.flatten(2).amax(dim=(0, 2)) > 0).float().mean() > 0.5  # channels alive
