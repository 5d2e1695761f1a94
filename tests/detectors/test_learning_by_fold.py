"""Detectors that learn from lessons of slides, and score each slide without what it taught."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from support.labelled import PX, healthy, tiles
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.checkpoint import FOLDS
from wsiad.learning.detector import FitContext, InputSpec, LearnsByFold, Lessons, State

CPU = torch.device("cpu")
SMALL = {"layers": ("features.3",), "magnify": 1, "places": 4}
METHODS = [("linear-probe", {"strength": 1e-2}), ("devnet", {"steps": 100, "learning_rate": 1e-3})]


def detector(name, **options):
    cls = registry.load(name)
    return cls(cls.Options(**{**SMALL, **options}), InputSpec(TilePx(PX), Mpp(1)))


def context(folder):
    return FitContext(device=CPU, folder=folder, seed=1, weights="random", quiet=True)


def lessons(*, without=None):
    """Lessons of three slides: five striped windows and five usual ones each."""
    strange, usual = tiles(15, seed=3, anomalous=True), tiles(15, seed=4)
    pixels = np.concatenate([strange, usual])
    folds = np.tile(np.repeat([0, 1, 2], 5), 2)
    anomalous = np.repeat([True, False], 15)
    kept = folds != without
    pixels, folds, anomalous = pixels[kept], folds[kept], anomalous[kept]
    return Lessons(
        batches=lambda: iter([pixels[:7], pixels[7:]]),
        anomalous=anomalous,
        folds=folds,
        fold_of={"a": 0, "b": 1, "c": 2},
    )


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_slide_is_scored_without_its_lessons(tmp_path, name, options):
    found = detector(name, **options)
    report = found.fit_by_fold(healthy(), lessons(), context(tmp_path))
    assert isinstance(found, LearnsByFold)
    assert report.notes["anomalous_tiles"] == 15
    fresh = np.concatenate([tiles(20, seed=8), tiles(20, seed=9, anomalous=True)])
    labels = np.repeat([0, 1], 20)
    assert roc_auc_score(labels, found.score(fresh)) > 0.95
    other = detector(name, **options)
    other.fit_by_fold(healthy(), lessons(without=1), context(tmp_path / "other"))
    np.testing.assert_allclose(
        found.held_out("b").score(fresh), other.score(fresh), rtol=1e-4, atol=1e-4
    )
    assert not np.allclose(found.held_out("b").score(fresh), found.score(fresh))
    assert not np.allclose(found.held_out("b").score(fresh), found.held_out("a").score(fresh))
    assert found.held_out("a slide without lessons") is found


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_state_keeps_the_folds(tmp_path, name, options):
    found = detector(name, **options)
    found.fit_by_fold(healthy(), lessons(), context(tmp_path))
    again = detector(name, **options)
    again.load_state(found.state(), CPU)
    asked = tiles(6, seed=5)
    np.testing.assert_array_equal(again.score(asked), found.score(asked))
    for mark in "abc":
        np.testing.assert_array_equal(
            again.held_out(mark).score(asked), found.held_out(mark).score(asked)
        )
    assert again.state().values == found.state().values
    assert again.state().tensors.keys() == found.state().tensors.keys()


def test_damaged_folds_are_refused(tmp_path):
    found = detector("linear-probe", strength=1e-2)
    found.fit_by_fold(healthy(), lessons(), context(tmp_path))
    state = found.state()
    gone = {key: tensor for key, tensor in state.tensors.items() if not key.startswith("fold1.")}
    short = {**state.tensors, "fold2.weight": torch.zeros(3)}
    for tensors, values in [
        (gone, state.values),
        (short, state.values),
        (state.tensors, {**state.values, "fold_of": {"a": 7}}),
        (state.tensors, {**state.values, "fold_of": {"a": [0]}}),
        (state.tensors, {**state.values, "fold_of": 3}),
    ]:
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector("linear-probe", strength=1e-2).load_state(State(tensors, values), CPU)


def test_lessons_of_one_fold_are_refused(tmp_path):
    one = lessons()
    one = Lessons(one.batches, one.anomalous, np.zeros_like(one.folds), {"a": 0})
    with pytest.raises(DetectorError, match="one fold"):
        detector("linear-probe").fit_by_fold(healthy(), one, context(tmp_path))


class Killed(BaseException):
    """End of a process, which nothing catches."""


def counted(monkeypatch, cls, *, last=None):
    """Count the fits of a class, and kill the process before the one after the last."""
    found, fit = [], cls.fit_labelled

    def fit_labelled(self, vectors, context):
        if len(found) == last:
            raise Killed
        found.append(len(vectors.anomalous))
        return fit(self, vectors, context)

    monkeypatch.setattr(cls, "fit_labelled", fit_labelled)
    return found


@pytest.mark.parametrize(("name", "options"), METHODS)
@pytest.mark.parametrize("last", [0, 2, 3])
def test_a_killed_fit_continues_with_what_is_finished(tmp_path, monkeypatch, name, options, last):
    cls = registry.load(name)
    whole = detector(name, **options)
    report = whole.fit_by_fold(healthy(), lessons(), context(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        counted(patch, cls, last=last)
        with pytest.raises(Killed):
            detector(name, **options).fit_by_fold(healthy(), lessons(), context(tmp_path / "a"))

    def read_again():
        raise AssertionError("the features of the lessons are kept")

    fits = counted(monkeypatch, cls)
    found = detector(name, **options)
    asked = dataclasses.replace(lessons(), batches=read_again)
    again = found.fit_by_fold(healthy(), asked, context(tmp_path / "a"))
    assert len(fits) == 4 - last  # three folds, and all
    assert again == report
    assert found.state().values == whole.state().values
    assert found.state().tensors.keys() == whole.state().tensors.keys()
    for key, tensor in whole.state().tensors.items():
        assert torch.equal(found.state().tensors[key], tensor), key


def test_what_another_fit_kept_is_not_continued(tmp_path):
    detector("linear-probe", strength=1e-2).fit_by_fold(healthy(), lessons(), context(tmp_path))
    others = [
        ({"strength": 1e-3}, lessons()),
        ({"strength": 1e-2}, dataclasses.replace(lessons(), digest="of other windows")),
    ]
    for options, taught in others:
        with pytest.raises(RunError, match="belongs to a training with another"):
            detector("linear-probe", **options).fit_by_fold(healthy(), taught, context(tmp_path))
    (tmp_path / FOLDS).write_bytes(b"cut")
    with pytest.raises(RunError, match="is not a readable checkpoint"):
        detector("linear-probe", strength=1e-2).fit_by_fold(healthy(), lessons(), context(tmp_path))
