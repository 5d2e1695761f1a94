"""The ensemble: the mean of what its members say of a tile, in deviations of healthy tiles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.detectors.ensemble import Ensemble, EnsembleOptions
from wsiad.learning.detector import (
    AnomalousTiles,
    AnomalyType,
    Budget,
    Detector,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    State,
)
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
FIT, HELD_OUT = RNG.integers(90, 256, (2, 14, 40, 40, 3), dtype=np.uint8)
ASKED = RNG.integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
SPEC = InputSpec(TilePx(40), Mpp(1))
KNN = {"detector": "knn", "options": {"places": 4, "pooling": "max"}}
GAUSSIAN = {"detector": "gaussian", "options": {"places": 2, "layers": ["features.3"]}, "share": 3}
PROBE = {"detector": "linear-probe", "options": {"layers": ["features.3"], "magnify": 1}}


def tiles(fit=FIT, held_out=HELD_OUT):
    return HealthyTiles(ArrayTiles(fit), ArrayTiles(held_out))


def context(folder, **values):
    values = {"weights": "random", "quiet": True, **values}
    return FitContext(seed=1, device=CPU, folder=folder, **values)


def ensemble(*members, **options):
    return Ensemble(EnsembleOptions(members=members, **options), SPEC)


def anomalies():
    found = ArrayTiles(RNG.integers(0, 90, (6, 40, 40, 3), dtype=np.uint8))
    return AnomalousTiles((AnomalyType("tumor", found, tuple("aabbcc")),))


def alone(member, folder, **values):
    cls = registry.load(member["detector"])
    found = cls(cls.Options(**member["options"]), SPEC)
    found.fit(tiles(), context(folder, **values))
    return found


def test_score_is_the_weighted_mean_of_standardised_scores(tmp_path):
    found = ensemble(KNN, GAUSSIAN)
    report = found.fit(tiles(), context(tmp_path))
    assert (report.ended_by, report.steps) == ("fitted", 0)
    assert list(tmp_path.iterdir()) == []
    expected = 0.0
    for member, share in ((KNN, 1), (GAUSSIAN, 3)):
        one = alone(member, tmp_path)
        healthy = one.score(HELD_OUT).astype(float)
        expected += share / 4 * (one.score(ASKED) - healthy.mean()) / healthy.std()
    places = found.score_places(ASKED)
    assert (places.shape, places.dtype) == ((5, 1, 1), np.float32)
    np.testing.assert_allclose(places[:, 0, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.score(ASKED), places[:, 0, 0])
    # Each is measured by the held-out tiles, so their own mean is 0.
    assert found.score(HELD_OUT).mean() == pytest.approx(0, abs=1e-5)


def test_larger_held_out_tiles_are_seen_through_their_centre(tmp_path):
    larger = np.pad(HELD_OUT, ((0, 0), (6, 6), (6, 6), (0, 0)))
    found, other = ensemble(KNN), ensemble(KNN)
    found.fit(tiles(held_out=larger), context(tmp_path))
    other.fit(tiles(), context(tmp_path))
    np.testing.assert_array_equal(found.score(ASKED), other.score(ASKED))


def test_state_makes_an_equal_one(tmp_path):
    found = ensemble(KNN, GAUSSIAN)
    found.fit(tiles(), context(tmp_path))
    state = found.state()
    again = ensemble(KNN, GAUSSIAN)
    again.load_state(State(load(save(state.tensors)), state.values), CPU)
    np.testing.assert_array_equal(again.score(ASKED), found.score(ASKED))
    np.testing.assert_array_equal(again.embed(ASKED), found.embed(ASKED))
    assert again.state().values == state.values


def damaged(stored, **changes):
    first, *others = stored["members"]
    return {"members": [first | changes, *others]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: {},
        lambda values: {"members": 3},
        lambda values: damaged(values, spread=0),
        lambda values: damaged(values, mean=math.nan),
        lambda values: damaged(values, mean="low"),
        lambda values: damaged(values, values={"backbone": "resnet18"}),
        lambda values: {"members": [*values["members"], values["members"][0]]},
    ],
)
def test_a_damaged_state_is_refused(tmp_path, damage):
    found = ensemble(KNN)
    found.fit(tiles(), context(tmp_path))
    state = found.state()
    with pytest.raises(DetectorError, match="state"):
        ensemble(KNN).load_state(State(state.tensors, damage(state.values)), CPU)


def test_weights_of_a_member_are_its_own(tmp_path):
    own = {"detector": "knn", "options": {"backbone": "wsiad", "places": 2}, "weights": "wsiad"}
    found = ensemble(KNN, own)
    report = found.fit(tiles(), context(tmp_path))
    sources = [note["weights"]["source"] for note in report.notes["members"]]
    assert sources[0] == "random"
    assert "lymph_node" in sources[1]
    # Random weights make the sum meaningless, so it is they that the run tells of.
    assert report.notes["weights"]["source"] == "random"


def test_features_are_side_by_side_in_one_unit(tmp_path):
    found = ensemble(KNN, GAUSSIAN)
    found.fit(tiles(), context(tmp_path))
    expected = []
    for member, share in ((KNN, 1), (GAUSSIAN, 3)):
        one = alone(member, tmp_path)
        healthy = one.embed(HELD_OUT).astype(float)
        length = math.sqrt(np.square(healthy - healthy.mean(axis=0)).sum(axis=1).mean())
        expected.append(one.embed(ASKED) / length * math.sqrt(share))
    np.testing.assert_allclose(found.embed(ASKED), np.concatenate(expected, axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("member", "error", "message"),
    [
        ({"detector": "knm"}, DetectorError, "did you mean 'knn'"),
        ({"detector": "knn", "options": {"k": 3}}, ConfigError, "options of member 2.*k"),
        ({"detector": "knn", "options": {"input_px": 32}}, ConfigError, "the ensemble's"),
    ],
)
def test_wrong_members_are_refused_before_anything_is_fitted(tmp_path, member, error, message):
    with pytest.raises(error, match=message):
        ensemble(KNN, member).fit(tiles(), context(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_members_are_refused():
    with pytest.raises(ValueError, match="members"):
        EnsembleOptions(members=())
    with pytest.raises(DetectorError, match="not fitted"):
        ensemble(KNN).score(ASKED)


def test_scores_that_do_not_differ_cannot_be_compared(tmp_path):
    one = np.repeat(HELD_OUT[:1], 3, axis=0)
    with pytest.raises(DetectorError, match="member 1, knn: scores all of the 3 held-out"):
        ensemble(KNN).fit(tiles(held_out=one), context(tmp_path))


def test_anomalies_are_for_the_members_that_learn_from_them(tmp_path):
    given = anomalies()
    found = ensemble(KNN, PROBE)
    report = found.fit(tiles(), context(tmp_path, anomalies=given))
    assert "anomalous_tiles" in report.notes["members"][1]
    assert found.score(ASKED).shape == (5,)
    with pytest.raises(DetectorError, match="none of its members learns"):
        ensemble(KNN).fit(tiles(), context(tmp_path, anomalies=given))
    with pytest.raises(DetectorError, match="member 2, linear-probe: learns from labelled"):
        ensemble(KNN, PROBE).fit(tiles(), context(tmp_path))


@pytest.mark.parametrize(
    ("members", "learns"),
    [((KNN, GAUSSIAN), False), ((KNN, PROBE), "needed"), (({"detector": "ensemble"},), False)],
)
def test_an_ensemble_learns_from_anomalies_as_its_members_do(members, learns):
    assert Ensemble.learns_from_anomalies(EnsembleOptions(members=members)) == learns


class Noting(Detector):
    """Notes what it is fitted with."""

    seen: list = []

    def fit(self, tiles, context):
        self.seen.append(context)
        (context.folder / "metrics.csv").write_text("")
        return FitReport("max-minutes", steps=4)

    def score_places(self, tiles):
        return tiles.mean(axis=(1, 2, 3), dtype=float)[:, None, None]

    def state(self):
        return State({}, {})

    def load_state(self, state, device):
        pass


def test_members_have_folders_and_a_part_of_the_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda name: Noting)
    monkeypatch.setattr(Noting, "seen", [])
    given = context(tmp_path, budget=Budget(max_steps=9, max_minutes=5))
    found = ensemble({"detector": "a"}, {"detector": "b", "weights": "imagenet", "seed": 4})
    report = found.fit(tiles(), given)
    assert (report.ended_by, report.steps) == ("max-minutes", 8)
    budget = Budget(max_steps=9, max_minutes=2.5)
    assert Noting.seen == [
        replace(given, folder=tmp_path / "member-1", budget=budget),
        replace(given, folder=tmp_path / "member-2", budget=budget, weights="imagenet", seed=5),
    ]
    assert all(one.folder.is_dir() for one in Noting.seen)
    # Without features of their own, what near means is what they score.
    expected = np.repeat(found.score(ASKED)[:, None], 2, axis=1)
    np.testing.assert_allclose(found.embed(ASKED), expected, rtol=1e-5)


def test_default_members_can_be_made(tmp_path):
    found = Ensemble(EnsembleOptions(), SPEC)
    members = [found._made(number).detector for number in (1, 2, 3)]
    assert [m.options.backbone for m in members] == ["squeezenet1_1", "squeezenet1_1", "wsiad"]
    assert [m.options.enlarged_by() for m in members] == [1, 1.5, 1]
