"""The Python of documents is run, sessions as doctests, on two small slides that are drawn."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

DOCS = Path(__file__).parents[2] / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def evaluate(path: Path) -> int:
    """Evaluate the Python blocks of a document; a wrong answer raises."""
    sybil = Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=FLAGS)], path=str(path.parent))
    examples = list(sybil.parse(path).examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_a_wrong_answer_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# x\n\n```python\n>>> 1 + 1\n2\n```\n\n- y\n\n  ```python\n  >>> 2\n  3\n  ```\n"
    )
    with pytest.raises(Exception, match="Expected"):
        evaluate(page)


def test_first_steps_in_python(scored_pair, monkeypatch):
    monkeypatch.chdir(scored_pair)
    assert evaluate(DOCS / "first-steps-in-python.md") >= 10


@pytest.mark.parametrize(
    ("document", "shown", "slide"),
    [
        ("store-format.md", "slide_001", "a"),
        ("quality.md", "", ""),
        ("results-format.md", "test_001", "b"),
    ],
)
def test_the_code_of_a_document_runs(document, shown, slide, scored_pair, tmp_path, monkeypatch):
    monkeypatch.chdir(scored_pair)
    copy = tmp_path / document
    copy.write_text((DOCS / document).read_text("utf-8").replace(f'"{shown}', f'"{slide}'), "utf-8")
    assert evaluate(copy) >= 1
