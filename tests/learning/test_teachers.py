"""Distillation: the targets of teachers, the student, and `wsiad pretrain --teacher`."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import DetectorError, WeightsError
from wsiad.learning.batches import ViewOptions, random_views
from wsiad.learning.contrastive import ContrastiveOptions
from wsiad.learning.teachers import DistillationLoss, Student, Teacher, Teachers
from wsiad.networks import features, vgg
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.vgg import Vgg19
from wsiad.networks.weights import Weights

SQUEEZENET = features.random_tensors("squeezenet1_1", 0)
SMALL = {
    "widths": [4, 6, 8, 10],
    "views": {"view_px": 32},
    "batch": 4,
    "max_steps": 4,
    "val_interval": 2,
}


def weights(tensors):
    return Weights(tensors, "somewhere", "0" * 64, {})


def teachers(*, components=8):
    dense = Teacher("vgg19", weights(vgg.random_tensors(1)), "features.17", "features.26")
    squeeze = Teacher("squeezenet1_1", weights(SQUEEZENET), "features.4", "features.7")
    return Teachers([dense, squeeze], components)


def images(count=12, edge=64):
    tiles = np.stack([stained(edge, edge, seed=seed) for seed in range(count)])
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255


def test_distances_of_targets_are_those_of_the_features_of_all_teachers():
    found, views = teachers(components=10_000), images()
    found.fit([views[:6], views[6:]])
    fine, _ = found(views)
    both = []
    for name, tensors, layer in (("vgg19", vgg.random_tensors(1), "features.17"),
                                 ("squeezenet1_1", SQUEEZENET, "features.4")):  # fmt: skip
        own = BackboneFeatures(name, [layer], 8, tensors)(views).flatten(0, 2)
        both.append(own / own.var(dim=0).sum().sqrt())
    expected = torch.pdist(torch.cat(both, dim=1)[::37])
    distances = torch.pdist(fine.flatten(0, 2)[::37])
    ratio = distances / expected
    assert ratio.std() / ratio.mean() < 1e-2
    assert ratio.mean() ** 2 == pytest.approx(fine.shape[3] / 2, rel=1e-2)  # one for each component


def test_targets_have_a_variance_of_one_and_stay_above_zero():
    found, views = teachers(), images()
    found.fit([views])
    fine, coarse = found(views)
    assert fine.shape == (12, 8, 8, 8)
    assert coarse.shape[:3] == (12, 4, 4)
    flat = fine.flatten(0, 2)
    assert flat.var(dim=0).mean().item() == pytest.approx(1, rel=1e-3)
    assert torch.allclose(flat.mean(dim=0), found.mean, rtol=1e-3)
    assert torch.allclose(flat.std(dim=0) * 4, found.mean, rtol=1e-2)
    assert coarse.abs().max() <= 4


def test_a_teacher_that_sees_no_difference_is_refused():
    blind = weights({name: torch.zeros_like(tensor) for name, tensor in SQUEEZENET.items()})
    found = Teachers([Teacher("squeezenet1_1", blind, "features.4", "features.7")], 8)
    with pytest.raises(DetectorError, match="alike"):
        found.fit([images()])


def test_loss_is_one_for_the_mean_and_zero_for_the_targets():
    found, options = teachers(), ContrastiveOptions(widths=(4, 6, 8, 10),
                                                    views=ViewOptions(view_px=64))  # fmt: skip
    found.fit([images(edge=96)[:, :, :64, :64]])
    student = Student(options.widths, found)
    windows = (images(edge=96) * 255).byte().permute(0, 2, 3, 1).contiguous()

    def loss(fine_of, coarse_of):
        def seen(views):
            fine, coarse = found(views)
            return [fine_of(fine)] * 2, coarse_of(coarse)

        student.seen = seen
        return DistillationLoss(student, found, options)(windows)

    assert torch.allclose(loss(lambda f: f, lambda c: c), torch.zeros(12), atol=1e-6)
    constant = loss(lambda f: found.mean.expand_as(f), lambda c: c) * 3 / 2
    assert constant.mean() == pytest.approx(1, abs=0.5)  # other windows than those of the fit
    more = loss(lambda f: f + 1, lambda c: c)
    assert torch.allclose(more, torch.full((12,), 2 / 3), atol=1e-4)


def test_student_learns_and_its_plain_network_is_what_was_trained():
    found, views = teachers(), images()
    found.fit([views])
    torch.manual_seed(0)
    student = Student((4, 6, 8, 10), found).train()
    optimiser = torch.optim.Adam(student.parameters(), lr=3e-3)
    target = found(views)[0]
    losses = []
    for _ in range(40):
        fine, _ = student.seen(views)
        loss = torch.stack([(f - target).square().mean() for f in fine]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    student.eval()
    maps = Vgg19(student.plain(), ["relu3_2"])(views)["relu3_2"]
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 8).permute(0, 2, 3, 1)
    assert torch.allclose(pooled, student.seen(views)[0][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("edges", [(48, 32), (49, 32), (48, 33), (32, 32)])
def test_exact_views_are_windows_of_the_tile(edges):
    edge, view = edges
    tiles = np.random.default_rng(0).integers(0, 256, (30, edge, edge, 3), dtype=np.uint8)
    options = ViewOptions(view_px=view, exact=1, stain_gain=0, stain_shift=0, brightness=0, blur=0)
    found = random_views(torch.from_numpy(tiles), options, torch.Generator().manual_seed(0))
    ways = set()
    for tile, image in zip(tiles, found, strict=True):
        values = (image.permute(1, 2, 0).numpy() * 255).round()
        windows = [
            (turn, mirrored, y, x)
            for turn in range(4)
            for mirrored in (False, True)
            for y in range(edge - view + 1)
            for x in range(edge - view + 1)
            if np.abs(_turned(tile, turn, mirrored)[y : y + view, x : x + view] - values).max() <= 1
        ]
        assert windows
        ways.add(windows[0][:2])
    assert len(ways) >= 6


def _turned(tile, turn, mirrored):
    turned = np.rot90(tile, turn).astype(float)
    return turned[:, ::-1] if mirrored else turned


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    for number in range(4):
        write_tiff(folder / f"s{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    wsiad.tile(slides=folder, out=folder / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    save_file(SQUEEZENET, folder / "squeezenet.safetensors")
    save_file(features.random_tensors("resnet18", 0), folder / "resnet.safetensors")
    return folder / "store"


def pretrain(store, out, *names, **options):
    return wsiad.pretrain(store=store, out=out, teacher=names, options=SMALL | options, quiet=True)


def test_a_network_of_teachers_is_one_that_detectors_take(store, tmp_path):
    names = (f"resnet18={store.parent / 'resnet.safetensors'}",
             str(store.parent / "squeezenet.safetensors"))  # fmt: skip
    result = pretrain(store, tmp_path / "net", *names)
    assert load_file(result.weights)["features.12.weight"].shape == (8, 8, 3, 3)
    with safe_open(str(result.weights), "pt") as file:
        assert file.metadata()["teachers"].startswith("resnet18 ")
        assert ", squeezenet1_1 " in file.metadata()["teachers"]
    record = json.loads((tmp_path / "net" / "pretrain.json").read_text())
    assert [(t["name"], t["fine"], t["coarse"]) for t in record["teachers"]] == [
        ("resnet18", "layer2", "layer3"), ("squeezenet1_1", "features.4", "features.7"),
    ]  # fmt: skip
    run = wsiad.train(store=store, out=tmp_path / "run", detector="knn", quiet=True,
                      weights=str(result.weights), options={"places": 2})  # fmt: skip
    detector = json.loads((run.run / "detector.json").read_text())
    assert detector["options"]["backbone"] == "wsiad"
    again = pretrain(store, tmp_path / "again", *names)
    same = load_file(again.weights)
    assert all(torch.equal(same[name], t) for name, t in load_file(result.weights).items())


def test_teachers_and_options_that_do_not_fit_are_refused(store, tmp_path):
    squeezenet = str(store.parent / "squeezenet.safetensors")
    with pytest.raises(WeightsError) as error:
        pretrain(store, tmp_path / "a", str(store.parent / "resnet.safetensors"))
    assert "--teacher resnet50=" in str(error.value)
    with pytest.raises(WeightsError, match="no such file"):
        pretrain(store, tmp_path / "b", "missing.safetensors")
    with pytest.raises(DetectorError, match="four blocks"):
        pretrain(store, tmp_path / "c", squeezenet, widths=[4, 6])
    with pytest.raises(DetectorError, match="40 px"):
        pretrain(store, tmp_path / "d", squeezenet, views={"view_px": 40})
    assert not any((tmp_path / name).exists() for name in "abcd")
