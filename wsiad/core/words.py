"""The nearest known word to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the known word that is nearest to one, whatever its case and dashes; else nothing."""
    plain = {_plainly(known): known for known in words}
    near = difflib.get_close_matches(_plainly(word), plain, n=1)
    return plain[near[0]] if near else ""


def _plainly(word: str) -> str:
    return word.casefold().replace("_", "-").lstrip("-")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a question in brackets after the nearest known word, or nothing."""
    near = nearest(word, words)
    return f" (did you mean {near!r}?)" if near else ""
