"""Slides of a reference and of results are paired by name, and what has no partner is named."""

import re
from pathlib import Path

import pytest

from wsiad.core.errors import EvaluationError
from wsiad.evaluation.cohort import gather
from wsiad.evaluation.submission import ScoredSlide


def gathered(reference, scored, exclude=()):
    found = {name: object.__new__(ScoredSlide) for name in scored}
    truth = dict.fromkeys(reference, True)
    return gather(truth, found, exclude=exclude, exclude_from_froc=[], source=Path("results"))


@pytest.mark.parametrize(
    ("reference", "scored", "exclude", "said"),
    [
        (
            ["NORMAL_001"],
            ["normal_001"],
            [],
            ("NORMAL_001: no results in results (did you mean 'normal_001'?). Complete"),
        ),
        # One that has its own row is not meant by another.
        (["s1", "s2"], ["s1"], [], "s2: no results in results. Complete"),
        (
            ["a_1", "B_2"],
            ["A_1", "b_2"],
            [],
            ("B_2, a_1: no results in results (B_2: did you mean 'b_2'?). Complete"),
        ),
        (
            ["s1"],
            ["s1"],
            ["S1"],
            (
                "S1: named in `exclude`, but not a slide of this evaluation (did "
                "you mean 's1'?). Name"
            ),
        ),
        (["s1"], ["s1", "x"], [], "x: results in results, but no row in the reference. Add"),
    ],
)
def test_a_name_in_other_capitals_is_asked_about(reference, scored, exclude, said):
    with pytest.raises(EvaluationError, match="^" + re.escape(said)):
        gathered(reference, scored, exclude)


def test_equal_names_are_pairs():
    assert [case.slide for case in gathered(["b", "a"], ["a", "b"])] == ["b", "a"]
