"""The choice of vectors that stand for many others."""

import numpy as np
import pytest

from wsiad.core.errors import InputError
from wsiad.learning.representatives import MOST_VECTORS, rank_weights, representatives, similarities


def crowds(*sizes, apart=10.0, seed=0):
    """Crowds of vectors, each around a place of its own."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            apart * np.eye(6)[place] + rng.normal(0, 0.3, (size, 6))
            for place, size in enumerate(sizes)
        ]
    )


def choose(vectors, count, *, most=1000, groups=None, taken=None, weights=None, used=None):
    return representatives(
        vectors,
        count,
        weights=np.ones(len(vectors)) if weights is None else weights,
        groups=groups or ["one"] * len(vectors),
        most=most,
        taken=taken,
        used=used,
    ).tolist()


def test_the_largest_crowd_comes_first_and_hermits_last():
    vectors = crowds(1, 30, 12, 1)
    crowd = np.repeat([0, 1, 2, 3], [1, 30, 12, 1])
    chosen = [crowd[index] for index in choose(vectors, 44)]
    assert chosen[0] == 1
    assert chosen.index(2) < min(chosen.index(0), chosen.index(3))
    # What was chosen takes weight from its crowd: others come before that is used up.
    assert chosen.index(2) < 15


def test_weights_decide_between_crowds():
    vectors = crowds(30, 12)
    weights = np.repeat([0.1, 1.0], [30, 12])
    assert choose(vectors, 1)[0] < 30 <= choose(vectors, 1, weights=weights)[0]
    np.testing.assert_allclose(rank_weights(np.array([3.0, 9.0, -np.inf, 5.0])),
                               [0.25, 1, 0.0625, 0.5625])  # fmt: skip
    assert rank_weights(np.zeros(0)).tolist() == []


def test_the_first_of_a_crowd_is_in_its_middle():
    vectors = crowds(40)
    (first,) = choose(vectors, 1)
    away = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    assert away[first] <= np.quantile(away, 0.2)


def test_the_choice_is_greedy_as_stated():
    vectors = np.random.default_rng(3).normal(size=(30, 4))
    like, weight, expected = similarities(vectors), np.ones(30), []
    for _ in range(8):
        gains = [-1.0 if i in expected else sum(like[i, j] * weight[j] for j in range(30))
                 for i in range(30)]  # fmt: skip
        best = int(np.argmax(gains))
        expected.append(best)
        weight = np.array([weight[j] * (1 - like[best, j]) for j in range(30)])
    assert choose(vectors, 8) == expected


def test_similarities_do_not_depend_on_unit_or_origin():
    vectors = np.random.default_rng(4).normal(size=(20, 5))
    like = similarities(vectors)
    np.testing.assert_allclose(similarities(1e4 * vectors + 7), like, atol=1e-6)
    np.testing.assert_array_equal(np.diag(like), 1)
    squares = np.square(vectors[:, None] - vectors[None]).sum(axis=2)
    usual = np.median(np.sort(squares, axis=1)[:, 5])
    np.testing.assert_allclose(like, np.exp(-squares / (2 * usual)), atol=1e-9)


def test_a_group_has_its_maximum():
    vectors = crowds(20, 20)
    groups = ["a"] * 20 + ["b"] * 20
    chosen = choose(vectors, 10, most=2, groups=groups)
    assert sorted(groups[index] for index in chosen) == ["a", "a", "b", "b"]
    chosen = choose(vectors, 10, most=2, groups=groups, used={"a": 2, "b": 1})
    assert [groups[index] for index in chosen] == ["b"]


def test_a_choice_continues_where_an_earlier_one_ended():
    vectors = crowds(30, 12)
    every = choose(vectors, 42)
    taken = np.zeros(42, bool)
    taken[every[:5]] = True
    assert choose(vectors, 42, taken=taken) == every[5:]
    assert sorted(every) == list(range(42))


def test_few_equal_and_no_vectors():
    assert choose(np.zeros((0, 3)), 5) == []
    assert choose(np.ones((1, 3)), 5) == [0]
    assert choose(np.ones((4, 3)), 2) == [0, 1]
    copies = np.concatenate([np.zeros((9, 3)), np.ones((3, 3))])
    assert [index >= 9 for index in choose(copies, 2)] == [False, True]


def test_bad_vectors_are_refused():
    with pytest.raises(InputError, match="not finite"):
        choose(np.array([[0.0], [np.nan]]), 1)
    with pytest.raises(InputError, match="too many to compare"):
        similarities(np.zeros((MOST_VECTORS + 1, 1)))
