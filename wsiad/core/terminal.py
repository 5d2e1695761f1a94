"""Text on a terminal: names of files may hold what moves the cursor or begins a line.

The nearest known word to a misspelt one.
"""

from __future__ import annotations

import difflib
import logging
import unicodedata
from collections.abc import Iterable

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    r"""Return a text in which nothing but printable characters is left: ``\x1b`` for an escape.

    Control characters, such that turn the direction of writing around, separators of lines,
    and halves of characters (of names that are not UTF-8) are written as Python does.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def lines(text: str) -> str:
    """Return a text as by :func:`one_line`, but with its lines."""
    return "\n".join(one_line(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character  # blanks of other widths do no harm
    return _SHORT.get(character) or character.encode("unicode_escape").decode("ascii")


class OneLine(logging.Formatter):
    """Formats a record as one line, with what a name holds escaped.

    Parameters
    ----------
    text : str
        Format of a line, as :class:`logging.Formatter` takes it.
    tracebacks : bool
        Show where an exception arose, below the line.
    """

    def __init__(self, text: str, *, tracebacks: bool) -> None:
        super().__init__(text)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        if self._tracebacks:
            return super().format(record)
        record.message = record.getMessage()
        return one_line(self.formatMessage(record))


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
