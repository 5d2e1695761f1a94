"""Contaminated training: what is dropped, by slide and by measure."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from support.tiny_detectors import HEALTHY, context, detector
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, FitReport, InputSpec, State
from wsiad.learning.training_options import TrimmingOptions
from wsiad.learning.trimming import TRIMMING, fit_trimmed, least_strange, trimming_note
from wsiad.store.dataset import ArrayTiles
from wsiad.testing.detector_suite import tissue_tiles


class Gaussian(Detector):
    """The Mahalanobis distance of four numbers that a tile holds; nothing robust about it."""

    def fit(self, tiles, context):
        found = np.concatenate([numbers(part) for part in tiles.fit.ordered(256)])
        self.fitted_on = len(found)
        self.mean, self.inverse = found.mean(0), np.linalg.inv(np.cov(found.T))
        return FitReport("fitted")

    def score_places(self, tiles):
        away = numbers(tiles) - self.mean
        return np.einsum("ni,ij,nj->n", away, self.inverse, away).astype(np.float32)[:, None, None]

    def state(self):
        return State({"mean": torch.from_numpy(self.mean)}, {})

    def load_state(self, state, device):
        raise DetectorError("not needed")


class Remembering(Gaussian):
    remembers_tiles = True


def numbers(tiles):
    return (tiles[:, 0, :4, 0].astype(np.float64) - 100) / 12


def as_tiles(values):
    tiles = np.zeros((len(values), 8, 8, 3), np.uint8)
    tiles[:, 0, :4, 0] = np.rint(values * 12 + 100).clip(0, 255)
    return tiles


def trimmed(tiles, counts, folder, *, cls=Gaussian, make=None, seed=1, **options):
    """Fit on tiles with trimming, slide by slide."""

    def source(kept):
        return ArrayTiles(tiles[np.concatenate([kept[name] for name in counts])])

    edge = TilePx(tiles.shape[1])
    return fit_trimmed(
        make or (lambda: cls(cls.Options(), InputSpec(edge, Mpp(1)))),
        counts,
        source,
        stop=ArrayTiles(tiles[:4]),
        context=context(folder, seed=seed),
        options=TrimmingOptions(**options),
    )


@pytest.fixture(scope="module")
def mixed():
    """950 draws of N(0, I) and 50 of N(8, I) in four dimensions."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, (950, 4)), rng.normal(8, 1, (50, 4))])
    order = rng.permutation(1000)
    return as_tiles(values[order]), order >= 950


def test_one_round_drops_nearly_all_of_a_far_group_and_three_all(mixed, tmp_path):
    tiles, strange = mixed
    one = trimmed(tiles, {"s": 1000}, tmp_path / "a", share=0.05, rounds=1)
    assert (~one.kept["s"]).sum() == 50
    hits = int((~one.kept["s"] & strange).sum())
    assert 46 <= hits < 50  # they mask each other
    assert one.detector.fitted_on == 950
    assert (one.rounds, one.stable) == (1, False)
    more = trimmed(tiles, {"s": 1000}, tmp_path / "b", share=0.05, rounds=5)
    assert np.array_equal(~more.kept["s"], strange)
    assert more.stable
    assert more.rounds < 5


def test_the_share_is_dropped_of_each_slide(mixed, tmp_path):
    tiles, _ = mixed
    counts = {"b": 700, "a": 281, "c": 19}
    found = trimmed(tiles, counts, tmp_path, share=0.05, rounds=2)
    assert {name: int((~mask).sum()) for name, mask in found.kept.items()} == {
        "b": 35, "a": 14, "c": 0,
    }  # fmt: skip
    note = trimming_note(
        found, {name: np.arange(count) + 5 for name, count in counts.items()},
        TrimmingOptions(share=0.05),
    )  # fmt: skip
    assert note["dropped"] == {"b": 35, "a": 14, "c": 0}
    assert note["dropped_tiles"]["b"] == (np.flatnonzero(~found.kept["b"]) + 5).tolist()


def test_of_equal_scores_the_later_are_dropped():
    kept = least_strange(np.array([1.0, 1, 0, 1, 5, 5]), {"a": 4, "b": 2}, 0.49)
    assert kept["a"].tolist() == [True, True, True, False]
    assert kept["b"].tolist() == [True, True]
    with pytest.raises(DetectorError, match="not finite"):
        least_strange(np.array([1.0, np.nan]), {"a": 2}, 0.4)


def test_methods_that_remember_tiles_are_judged_by_the_others(tmp_path):
    """A bank of all tiles is 0 from each of them: only a fit without them finds some strange."""
    healthy, odd = (tissue_tiles(n, 32, seed=1, strange=s) for n, s in ((36, False), (4, True)))
    tiles = np.concatenate([healthy[:18], odd[:2], healthy[18:], odd[2:]])
    cls = registry.load("knn")
    options = build(cls.Options, {"places": 2})

    def make():
        return cls(options, InputSpec(TilePx(32), Mpp(1)))

    strange = {"a": np.arange(20) >= 18, "b": np.arange(20) >= 18}
    found = trimmed(tiles, {"a": 20, "b": 20}, tmp_path, make=make, share=0.1, rounds=2)
    assert found.folds == 2
    assert all(np.array_equal(~found.kept[name], strange[name]) for name in strange)
    seen = []

    class Seen(Remembering):
        def fit(self, tiles, context):
            report = super().fit(tiles, context)
            seen.append(self.fitted_on)
            return report

    rng = np.random.default_rng(0)
    numbers_ = as_tiles(rng.normal(0, 1, (100, 4)))
    trimmed(numbers_, {"only": 100}, tmp_path / "one", cls=Seen, share=0.1, rounds=1)
    assert seen == [50, 50, 90]  # a single slide is halved by its tiles


def test_by_latent_drops_what_the_features_show(tmp_path):
    healthy, odd = (tissue_tiles(n, 32, seed=1, strange=s) for n, s in ((36, False), (4, True)))
    tiles = np.concatenate([healthy, odd])
    cls = registry.load("gaussian")

    def make():
        return cls(build(cls.Options, {"places": 2}), InputSpec(TilePx(32), Mpp(1)))

    found = trimmed(tiles, {"s": 40}, tmp_path, make=make, share=0.1, by="latent")
    assert (~found.kept["s"]).sum() == 4
    assert (~found.kept["s"])[36:].sum() >= 3  # they are alike, and hide one another
    assert (found.rounds, found.stable) == (1, True)  # frozen features do not change


def test_a_trained_method_ends_with_the_same_bits_after_an_interruption(tmp_path):
    tiles = np.concatenate(list(HEALTHY.fit.ordered(64)))

    def make():
        return detector("deep-svdd", pretrain_steps=3)

    def run(folder, make=make):
        folder.mkdir(exist_ok=True)
        return trimmed(tiles, {"a": 10, "b": 10}, folder, make=make, share=0.1, rounds=2)

    first = run(tmp_path / "whole")
    made = []

    def killed():
        made.append(0)
        if len(made) > 2:  # one to ask, and one fit
            raise KeyboardInterrupt
        return make()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed)
    assert (tmp_path / "cut" / TRIMMING / "fit-1").is_dir()
    again = run(tmp_path / "cut")
    for name, tensor in first.detector.state().tensors.items():
        assert torch.equal(tensor, again.detector.state().tensors[name])
    assert all(np.array_equal(first.kept[name], again.kept[name]) for name in first.kept)
    assert (tmp_path / "cut" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0.01}, "drops nothing"),
        ({"share": 0.2, "by": "latent"}, "has features"),
        ({"share": 0.2, "by": "latent", "folds": 2}, "by one fit"),
    ],
)
def test_what_makes_no_sense_is_refused(options, match, tmp_path):
    with pytest.raises(DetectorError, match=match):
        trimmed(as_tiles(np.zeros((20, 4))), {"s": 20}, tmp_path, **options)


def test_shares_of_a_half_are_refused():
    with pytest.raises(ConfigError, match="share"):
        build(TrimmingOptions, {"share": 0.5})


def test_minutes_are_divided_among_the_fits(tmp_path):
    budgets = []

    class Timed(Gaussian):
        def fit(self, tiles, context):
            budgets.append(context.budget)
            return super().fit(tiles, context)

    tiles = as_tiles(np.random.default_rng(0).normal(0, 1, (40, 4)))
    fit_trimmed(
        lambda: Timed(Timed.Options(), InputSpec(TilePx(8), Mpp(1))),
        {"s": 40},
        lambda kept: ArrayTiles(tiles[kept["s"]]),
        stop=ArrayTiles(tiles),
        context=replace(
            context(tmp_path), budget=replace(context(tmp_path).budget, max_minutes=8.0)
        ),
        options=TrimmingOptions(share=0.1, rounds=3),
    )
    assert {budget.max_minutes for budget in budgets} == {2.0}
    assert {budget.max_steps for budget in budgets} == {11}
