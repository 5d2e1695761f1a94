"""Text and progress on a terminal, or in a log.

Names of files can hold characters that move the cursor or begin a line; these are escaped. A
misspelt word is answered with the nearest known one. Progress is a live bar with a rate and an
ETA, or plain lines in a log.
"""

from __future__ import annotations

import difflib
import json
import logging
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from wsiad.core.signals import raise_if_ended

if TYPE_CHECKING:
    from tqdm import tqdm

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    r"""Return a text with only printable characters, such as ``\x1b`` for an escape.

    Control characters, characters that reverse the direction of writing, line separators and
    halves of characters (in names that are not UTF-8) are written as in Python.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def counted(number: float, noun: str, spec: str = "") -> str:
    """Return a number with its noun, such as ``1 slide`` and ``2 slides``.

    Parameters
    ----------
    number : float
    noun : str
        Noun in the singular, whose plural ends in *s*; words before it are kept.
    spec : str
        Format of the number; by default all its digits.

    Examples
    --------
    >>> counted(1, "slide"), counted(0, "slide"), counted(1200, "healthy tile", ",")
    ('1 slide', '0 slides', '1,200 healthy tiles')
    """
    return f"{number:{spec}} {noun}{'s' * (number != 1)}"


def by_number(number: float, one: str, many: str) -> str:
    """Return the word that agrees with a number, such as ``is`` with 1 and ``are`` with 2."""
    return one if number == 1 else many


def first_of(names: Sequence[str], *, apart: str = ", ") -> str:
    """Return the first three of some names, with ``…`` after them if there are more."""
    return apart.join(names[:3]) + " …" * (len(names) > 3)


def lines(text: str) -> str:
    """Return a text as :func:`one_line` does, but keep its line breaks."""
    return "\n".join(one_line(line) for line in text.split("\n"))


def json_text(value: object) -> str:
    """Return a value as indented JSON for the output of a verb, of printable ASCII alone.

    :func:`lines` leaves it as it is: its escapes are not those of JSON.

    Raises
    ------
    ValueError
        A number is not finite, which JSON cannot say.
    """
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False)


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character  # blanks of other widths do no harm
    return _SHORT.get(character) or character.encode("unicode_escape").decode("ascii")


class OneLine(logging.Formatter):
    """Formatter of a record as one line, with unprintable characters of names escaped.

    Parameters
    ----------
    text : str
        Format of a line, as for :class:`logging.Formatter`.
    tracebacks : bool
        True to show the traceback of an exception below the line.
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
    """Return the known word nearest to one, ignoring case and dashes; empty if none is near."""
    plain = {_plainly(known): known for known in words}
    near = difflib.get_close_matches(_plainly(word), plain, n=1)
    return plain[near[0]] if near else ""


def _plainly(word: str) -> str:
    return word.casefold().replace("_", "-").lstrip("-")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a question in brackets with the nearest known word, or an empty text."""
    near = nearest(word, words)
    return f" (did you mean {near!r}?)" if near else ""


def interval(seconds: float) -> str:
    """Return a time as ``MM:SS`` or ``H:MM:SS``."""
    from tqdm import tqdm  # as below: a fifth of the start of `--help`

    return str(tqdm.format_interval(seconds))


class Line(Protocol):
    """Function that returns a line for a terminal, or for a log."""

    def __call__(self, *, terminal: bool) -> str:
        """Return the line."""
        ...


class Progress:
    """Count the work done and show its rate.

    Parameters
    ----------
    label : str
        Name of the work.
    total : int, optional
        Number of units, if known.
    unit : str
        Name of a unit, such as ``"tile"``.
    log_seconds : float
        Minimum time between two lines on a stream that is not a terminal.
    quiet : bool
        True to print nothing.
    line : callable, optional
        Function that returns the line to show, instead of a bar with rate and ETA.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None = None,
        unit: str = "it",
        log_seconds: float = 30.0,
        quiet: bool = False,
        line: Line | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._own_line = line
        self._log_seconds = log_seconds
        self._start = self._last = time.monotonic()
        self._done = self._shown = self._before = 0
        self._note = ""
        self._bar: tqdm[Any] | None = None
        self._quiet = quiet
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=label,
                total=total,
                unit=f" {unit}",
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{desc}" if line else None,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self._quiet and self._done > self._shown:
            self._line()

    def update(self, count: int = 1, *, note: str = "") -> None:
        """Report ``count`` more units as done, with an optional short note.

        Raises
        ------
        KeyboardInterrupt
            A signal asked the program to end; see :mod:`wsiad.core.signals`.
        """
        raise_if_ended()
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            if self._own_line:
                text = one_line(self._own_line(terminal=True))
                self._bar.set_description_str(text, refresh=False)
            elif note:
                self._bar.set_postfix_str(one_line(note), refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._last >= self._log_seconds:
            self._line()

    def begin_at(self, count: int) -> None:
        """Count ``count`` units as done before; they do not count for rate and ETA."""
        self._done = self._shown = self._before = count
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = count
            self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar, or to the log."""
        if self._bar is not None:
            self._bar.write(one_line(text), file=sys.stderr)
        elif not self._quiet:
            print(one_line(text), file=sys.stderr, flush=True)

    def _line(self) -> None:
        self._last, self._shown = time.monotonic(), self._done
        if self._own_line:
            print(one_line(self._own_line(terminal=False)), file=sys.stderr, flush=True)
            return
        from tqdm import tqdm

        text = tqdm.format_meter(
            self._done,
            self.total or 0,
            self._last - self._start,
            ncols=0,
            prefix=self.label,
            unit=f" {self.unit}",
            initial=self._before,
        )
        print(f"{text} {one_line(self._note)}".rstrip(), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a text to the terminal of the user, where there is nothing to count."""
    print(lines(text), file=sys.stderr, flush=True)
