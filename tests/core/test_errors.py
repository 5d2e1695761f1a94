"""An error is one line: subject, problem, remedy."""

import pickle

import pytest

from wsiad.core.errors import InputError


@pytest.mark.parametrize(
    ("problem", "remedy", "line"),
    [
        ("is missing", None, "a.tif: is missing"),
        ("is missing", "Look.", "a.tif: is missing. Look."),
        ("use b instead.", "Delete it.", "a.tif: use b instead. Delete it."),
        ("really?", "Look.", "a.tif: really? Look."),
    ],
)
def test_a_problem_and_its_remedy_are_two_sentences(problem, remedy, line):
    error = InputError(problem, subject="a.tif", remedy=remedy)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == line
