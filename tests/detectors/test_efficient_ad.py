from dataclasses import replace

import numpy as np
import pytest
import torch

from support.tiny_detectors import HEALTHY, RNG, SMOOTH, context
from support.tiny_detectors import TINY as EVERY
from wsiad.core.config import build
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.efficient_ad import EfficientAd, EfficientAdOptions, recoloured
from wsiad.learning.detector import AnomalousTiles, AnomalyType, InputSpec
from wsiad.learning.loop import Training
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector

TINY = {**EVERY["efficient-ad"], "batch": 3, "val_interval": 4, "log_interval": 2}
NOISE = np.random.default_rng(5).integers(0, 256, (9, 40, 40, 3)).astype(np.uint8)


def outside(tiles=NOISE):
    kind = AnomalyType("elsewhere", ArrayTiles(tiles), ("one",) * len(tiles))
    return AnomalousTiles((kind,))


def fitted(folder, *, steps=5, anomalies=None, edge=32, tiles=HEALTHY, **options):
    folder.mkdir(exist_ok=True)
    built = build(EfficientAdOptions, {**TINY, **options})
    found = EfficientAd(built, InputSpec(TilePx(edge), Mpp(1)))
    given = replace(context(folder, steps), anomalies=anomalies)
    return found, found.fit(tiles, given)


def assert_equal(whole, again):
    assert whole.tensors.keys() == again.tensors.keys()
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[key]), key


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"penalty": "outside", "lr_schedule": "drop"},
        {"network": "medium", "hard_quantile": 0.9, "pooling": "max", "keep": "last"},
    ],
)
def test_options_conform(options):
    check_detector(EfficientAd, {**TINY, **options}, input_px=32)


@pytest.mark.parametrize("nth", [2, 6])  # in the teacher's training, and in the student's
def test_a_killed_training_with_a_penalty_ends_with_the_same_weights(tmp_path, monkeypatch, nth):
    options = {"penalty": "outside", "lr_schedule": "drop", "anomalies": outside()}
    whole = fitted(tmp_path / "whole", steps=9, **options)[0].state()
    taken, step = [], Training._step

    def die(self, tiles):
        taken.append(1)
        if len(taken) == nth:
            raise KeyboardInterrupt
        step(self, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", die)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "killed", steps=9, **options)
    assert_equal(whole, fitted(tmp_path / "killed", steps=9, **options)[0].state())


def test_each_training_has_a_folder_and_a_log(tmp_path):
    found, report = fitted(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "teachers" / "metrics.csv").is_file()
    assert report.notes["teachers"]["steps"] == 3
    assert report.notes["backbone"] == "squeezenet1_1"
    assert not [name for name in found.state().tensors if "backbone" in name]


def test_the_teacher_stays_in_the_second_training(tmp_path):
    short = fitted(tmp_path / "short", steps=3)[0].state().tensors
    long = fitted(tmp_path / "long", steps=8)[0].state().tensors
    assert all(torch.equal(short[k], long[k]) for k in short if k.startswith("teachers."))
    for part in ("students.student.", "students.autoencoder."):
        changed = [k for k in short if k.startswith(part) and not torch.equal(short[k], long[k])]
        assert changed


def test_the_teacher_learns_the_backbone(tmp_path):
    seen = replace(HEALTHY, stop=HEALTHY.fit)
    options = {"teacher_learning_rate": 1e-2, "width": 0.1, "patience": 100}
    first, last = (
        fitted(tmp_path / str(steps), steps=40, teacher_steps=steps, tiles=seen, **options)[
            1
        ].notes["teachers"]["best_stop_loss"]
        for steps in (1, 40)
    )
    assert last < 0.85 * first


def test_noise_is_stranger_than_healthy_tiles(tmp_path):
    found, _ = fitted(tmp_path / "run", edge=40, steps=120, learning_rate=1e-2, width=0.06)
    healthy = next(HEALTHY.stop.ordered(6))
    assert found.score(NOISE).min() > found.score(healthy).max()


def test_the_penalty_needs_pictures_and_no_other_training_takes_them(tmp_path):
    with pytest.raises(DetectorError, match="needs pictures of elsewhere"):
        fitted(tmp_path / "none", penalty="outside")
    for penalty, answer in (("none", False), ("outside", "needed")):
        options = build(EfficientAdOptions, {**TINY, "penalty": penalty})
        assert EfficientAd.learns_from_anomalies(options) == answer
    fitted(tmp_path / "run", penalty="outside", anomalies=outside())
    with pytest.raises(RunError, match="another outside"):
        fitted(tmp_path / "run", penalty="outside", anomalies=outside(255 - NOISE))


def test_the_penalty_keeps_the_student_from_the_teacher_elsewhere(tmp_path):
    negatives, said = 255 - SMOOTH, []
    for penalty in ("none", "outside"):
        options = {"penalty": penalty, "learning_rate": 1e-2, "width": 0.06, "keep": "last"}
        found, _ = fitted(tmp_path / penalty, steps=60, anomalies=outside(negatives), **options)
        signed = torch.from_numpy(negatives[:, :32, :32]).permute(0, 3, 1, 2) / 127.5 - 1
        said.append(float(found.network().penalty(signed).mean().detach()))
    assert said[1] < 0.1 * said[0]


def test_windows_smaller_than_half_a_patch_are_refused(tmp_path):
    with pytest.raises(DetectorError, match="cannot be extended to patches of 33 px") as error:
        fitted(tmp_path / "run", edge=16)
    # It has no other patches, as uninformed-students has.
    assert error.value.remedy == "Set --option input_px=17 at least."


def test_layers_of_another_backbone_are_refused_with_the_way_to_the_methods_own(tmp_path):
    with pytest.raises(DetectorError, match="squeezenet1_1 has no layer 'layer2'") as error:
        fitted(tmp_path / "run", backbone="squeezenet1_1", layers=["layer2", "layer3"])
    assert "--option layers=null" in error.value.remedy


def test_colours_change_by_their_factor():
    image = RNG.random((3, 4, 5))
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    factor = 1.2
    expected = [
        factor * image,
        grey.mean() + factor * (image - grey.mean()),
        grey + factor * (image - grey),
    ]
    same = torch.from_numpy(np.stack([image] * 3))
    found = recoloured(same, torch.arange(3), torch.full((3,), factor, dtype=torch.float64))
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-6)


def test_the_rate_drops_at_the_last_twentieth():
    options = EfficientAdOptions()
    assert options.lr_schedule == "drop"
    rates = [options.rate(step, limit=70_000) for step in (0, 66_499, 66_500, 69_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    assert options.identity(limit=70_000)["max_steps"] == 70_000
