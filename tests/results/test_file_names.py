"""Every file of a results folder has its name once, and a word in the documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from wsiad.results import file_names

ROOT = Path(__file__).parents[2]
NAMES = [
    value
    for name, value in vars(file_names).items()
    if name.isupper() and isinstance(value, str) and "." in value
]


def test_a_name_means_one_file():
    assert [name for name, times in Counter(NAMES).items() if times > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_documented(name):
    assert name in (ROOT / "docs/results-format.md").read_text(encoding="utf-8")
