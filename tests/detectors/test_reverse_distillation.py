import numpy as np
import pytest
import torch

from support.feature_detectors import detector
from wsiad.detectors.reverse_distillation import Blocks, ResidualBlock, ReverseStudent
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.networks import features
from wsiad.networks.features import BackboneFeatures
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
STAGES = ("layer1", "layer2", "layer3")


def test_blocks_are_those_of_the_encoder():
    def blocks(name, layers):
        tensors = features.random_tensors(name, 0)
        return Blocks.of(BackboneFeatures(name, layers, 1, tensors))

    assert blocks("resnet18", STAGES) == Blocks(None, (2, 2, 2))
    assert blocks("resnet34", STAGES) == Blocks(None, (3, 4, 6))
    assert blocks("resnet50", STAGES) == Blocks(0.25, (3, 4, 6))
    assert blocks("squeezenet1_1", ["features.4", "features.7"]) == Blocks(None, (2, 2))


def test_wide_resnet_block_is_half_as_wide_inside():
    wide = _torchvision_block("wide_resnet50_2")
    own = ResidualBlock(256, 512, inner=0.5, resampling="halve")
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in wide.parameters())


def _torchvision_block(name):
    from wsiad.networks.torchvision_models import torchvision_models

    return getattr(torchvision_models(), name)(weights=None).layer2[0]


@pytest.mark.parametrize("inner", [None, 0.25])
def test_block_computes_what_a_resnets_does(inner):
    """The same weights in torchvision's block give the same values."""
    theirs = _torchvision_block("resnet50" if inner else "resnet18").eval()
    own = ResidualBlock(*((256, 512) if inner else (64, 128)), inner=inner, resampling="halve")
    own.eval()
    with torch.no_grad():
        for mine, other in zip(
            own.state_dict().values(), theirs.state_dict().values(), strict=True
        ):
            if mine.ndim:
                other.copy_(torch.rand(other.shape).to(other) * 0.1 + 0.01)
                mine.copy_(other)
        x = torch.rand(1, 256 if inner else 64, 6, 6)
        torch.testing.assert_close(own(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_code_is_half_the_size_and_twice_as_wide_as_the_coarsest_layer():
    """ResNet-18 as published: 64, 128, 256 channels to a code of 512, and back."""
    student = ReverseStudent([(64, 16, 16), (128, 8, 8), (256, 4, 4)], Blocks(None, (2, 2, 2)))
    taught = [torch.rand(2, 64, 16, 16), torch.rand(2, 128, 8, 8), torch.rand(2, 256, 4, 4)]
    codes = []
    student.bottleneck.register_forward_hook(lambda _m, _x, y: codes.append(y.shape))
    found = student(torch.zeros(0), taught)
    assert [f.shape for f in found] == [t.shape for t in taught]
    assert codes == [(2, 512, 2, 2)]
    assert student.bottleneck[0].main[0].weight.shape[:2] == (512, 3 * 256)


def test_squeezenets_sizes_which_are_not_halves():
    squeezenet = detector("reverse-distillation", backbone="squeezenet1_1")
    assert squeezenet.options.chosen_layers() == ("features.4", "features.7")
    found = detector("reverse-distillation", layers=["features.4", "features.7", "features.12"])
    tensors = features.random_tensors("squeezenet1_1", 0)
    teacher = BackboneFeatures("squeezenet1_1", found.options.chosen_layers(), 8, tensors)
    taught, restored = found.distillation(teacher, seed=0)(torch.rand(2, 3, 64, 64))
    assert [tuple(t.shape[1:]) for t in taught] == [(128, 15, 15), (256, 7, 7), (512, 3, 3)]
    assert [t.shape for t in taught] == [r.shape for r in restored]


def test_it_learns_the_healthy_and_finds_the_strange_place(tmp_path):
    shape = (60, 8, 8, 3)
    smooth = np.kron(RNG.integers(150, 220, shape), np.ones((1, 8, 8, 1))).astype(np.uint8)
    found = detector(
        "reverse-distillation",
        layers=["features.3"],
        places=2,
        batch=6,
        val_interval=12,
        learning_rate=2e-3,
    )
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(24), weights="random", quiet=True
    )
    tiles = HealthyTiles(ArrayTiles(smooth[:40]), ArrayTiles(smooth[40:44]))
    report = found.fit(tiles, context)
    assert report.notes["best_stop_loss"] < 0.1
    spoilt = smooth[50:].copy()
    spoilt[:, :32, 32:] = RNG.integers(0, 256, (10, 32, 32, 3))
    healthy, strange = found.score_places(smooth[50:]), found.score_places(spoilt)
    assert strange[:, 0, 1].min() > healthy.max()
    assert (strange.reshape(10, 4).argmax(axis=1) == 1).mean() > 0.8
