"""Folds of a search: each slide in exactly one, none empty, nothing lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiad.core.errors import InputError
from wsiad.tuning.folds import make_folds

SLIDES = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 9), min_size=2, max_size=10)


def indices(counts):
    return {name: 2 * np.arange(count) + 1 for name, count in counts.items()}


def membership(parts):
    """Fold and tile by slide."""
    return [
        (item.slide, tile, fold)
        for fold, part in enumerate(parts)
        for item in part
        for tile in item.indices.tolist()
    ]


@settings(max_examples=150, deadline=None)
@given(
    SLIDES, SLIDES, st.integers(2, 4), st.integers(0, 3), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_folds_are_disjoint_and_whole(
    healthy, anomalous, folds, seed, healthy_by_tile, anomalous_by_tile, by_type
):
    healthy, anomalous = indices(healthy), indices(anomalous)
    types = {name: (name in "abc" and "x") or name for name in anomalous} if by_type else None
    try:
        found = make_folds(
            healthy, anomalous, folds=folds, seed=seed, healthy_by_tile=healthy_by_tile,
            anomalous_by_tile=anomalous_by_tile, types=types,
        )  # fmt: skip
    except InputError:
        counts = [sum(map(len, tiles.values())) for tiles in (healthy, anomalous)]
        slides = [sum(map(bool, map(len, tiles.values()))) for tiles in (healthy, anomalous)]
        kinds = {types[n] for n in anomalous if len(anomalous[n])} if types else range(slides[1])
        tied = set(healthy) & set(anomalous) if not anomalous_by_tile else ()
        few = (counts if healthy_by_tile else slides)[0] < folds or (
            counts[1] if anomalous_by_tile else len(kinds)
        ) < folds
        assert few or tied  # slides of both kinds may have to share a fold
        return
    assert len(found) == folds
    for parts, tiles, by_tile in (
        (found.healthy, healthy, healthy_by_tile),
        (found.anomalous, anomalous, anomalous_by_tile),
    ):
        members = membership(parts)
        every = [(name, tile) for name, some in tiles.items() for tile in some.tolist()]
        assert sorted((name, tile) for name, tile, _ in members) == sorted(every)
        assert {fold for *_, fold in members} == set(range(folds))
        if not by_tile:
            assert len({(name, fold) for name, _, fold in members}) == len(
                {name for name, *_ in members}
            )
    if not healthy_by_tile and not anomalous_by_tile:
        where = {name: fold for name, _, fold in membership(found.healthy)}
        for name, _, fold in membership(found.anomalous):
            assert where.get(name, fold) == fold
    if types and not anomalous_by_tile:
        kinds = {(types[name], fold) for name, _, fold in membership(found.anomalous)}
        assert len(kinds) == len({kind for kind, _ in kinds})
    for fold in range(1, folds + 1):
        parts = found.parts(fold)
        for fit, test, tiles in (
            (parts.fit, parts.test, healthy),
            (parts.anomalies_fit, parts.anomalies_test, anomalous),
        ):
            for name, some in tiles.items():
                ours = [set(part.get(name, np.empty(0)).tolist()) for part in (fit, test)]
                assert not ours[0] & ours[1]
                assert ours[0] | ours[1] == set(some.tolist())


@pytest.mark.parametrize("by_type", [False, True])
def test_healthy_and_anomalous_tiles_of_a_slide_stay_together(by_type):
    healthy, odd = dict.fromkeys("abcdefgh", 4), dict.fromkeys("abcdxyz", 3)
    types = dict(zip("abcdxyz", "ppqqrrs", strict=True)) if by_type else None
    for seed in range(5):
        found = make_folds(indices(healthy), indices(odd), folds=3, seed=seed, types=types)
        where = {name: fold for name, _, fold in membership(found.healthy)}
        for name, _, fold in membership(found.anomalous):
            assert where.get(name, fold) == fold


def test_folds_are_about_as_large():
    rng = np.random.default_rng(0)
    healthy = indices({f"h{i}": int(n) for i, n in enumerate(rng.integers(20, 400, 40))})
    anomalous = indices({f"a{i}": int(n) for i, n in enumerate(rng.integers(5, 40, 9))})
    found = make_folds(healthy, anomalous, folds=3, seed=0)
    for parts in (found.healthy, found.anomalous):
        sizes = [sum(len(item.indices) for item in part) for part in parts]
        assert max(sizes) < 1.15 * min(sizes)


def test_the_seed_decides_and_the_order_of_slides_does_not():
    counts = dict.fromkeys("abcdefgh", 5)
    again = dict(reversed(counts.items()))
    odd = dict.fromkeys("vwxyz", 2)

    def folds(healthy, seed):
        return make_folds(indices(healthy), indices(odd), folds=3, seed=seed).as_json(tiles=True)

    assert folds(counts, 1) == folds(again, 1)
    assert any(folds(counts, 1) != folds(counts, seed) for seed in (2, 3, 4))


def test_too_few_slides_are_an_error_with_its_remedy():
    healthy, odd = indices(dict.fromkeys("abcd", 3)), indices({"x": 9, "y": 9})
    with pytest.raises(InputError, match=r"2 anomalous slides.*--folds.*--anomaly-folds-by tile"):
        make_folds(healthy, odd, folds=3, seed=0)
    with pytest.raises(InputError, match=r"2 healthy slides.*--healthy-folds-by tile"):
        make_folds(odd, healthy, folds=3, seed=0)
    with pytest.raises(InputError, match="2 anomalous tiles cannot fill 3 folds"):
        make_folds(healthy, indices({"x": 2}), folds=3, seed=0, anomalous_by_tile=True)
