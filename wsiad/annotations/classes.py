"""Classes and groups of outlines, and their meaning: tumour, cut out of it, or none."""

from __future__ import annotations

import enum
import reprlib
from collections.abc import Mapping

from wsiad.core.errors import AnnotationError


class Role(enum.StrEnum):
    """The meaning of an outline for the tissue within it."""

    TUMOUR = "tumour"
    CUT_OUT = "cut-out"


NO_CLASS = "none"
"""Name of "no class" in a mapping of classes."""

_ROLES = {
    **dict.fromkeys(("_0", "_1", "tumor", "tumour", "metastasis", "metastases"), Role.TUMOUR),
    "anomaly": Role.TUMOUR,  # wsiad's own, perhaps corrected by a pathologist
    **dict.fromkeys(("_2", "normal", "exclusion"), Role.CUT_OUT),
}

_MEANINGS: dict[str, Role | None] = {
    **dict.fromkeys(("tumor", "tumour"), Role.TUMOUR),
    **dict.fromkeys(("cut-out", "exclusion", "normal"), Role.CUT_OUT),
    "ignore": None,
}
_NOTHING_SAID = frozenset({"", NO_CLASS, "unclassified"})
_LONGEST = 80


def role_of(group: str) -> Role | None:
    """Return the role of an annotation group by its name, in any letter case; ``None`` for no role.

    ``_0``, ``_1`` and ``_2`` are CAMELYON16's groups, ``metastases`` and ``normal`` those of
    CAMELYON17. QuPath's derived classes (``Tumor: Positive``) and those that end in ``*`` have
    no role: the user states their meaning with a :class:`ClassMap`.
    """
    return _ROLES.get(_key(group))


class ClassMap:
    """Meaning of classes: the user's, otherwise that of :func:`role_of`.

    Parameters
    ----------
    meanings : mapping of str to str, optional
        Meaning of each class: ``tumor`` (or ``tumour``), ``cut-out`` (``exclusion``, ``normal``) or
        ``ignore``. Letter case and blanks at the ends do not matter. A derived class is
        written as QuPath shows it, ``Tumor: Positive``; ``none`` stands for outlines
        without a class.

    Raises
    ------
    AnnotationError
        A meaning is none of these, or a class has two meanings.
    """

    def __init__(self, meanings: Mapping[str, str] | None = None) -> None:
        self.given: dict[str, Role | None] = {}
        for name, meaning in (meanings or {}).items():
            key, word = _key(name), str(meaning).strip().casefold()
            if word not in _MEANINGS:
                raise AnnotationError(
                    f"the class {class_text(name)!r} is mapped to {class_text(meaning)!r}",
                    subject="class_map",
                    remedy=f"Map it to one of: {', '.join(_MEANINGS)}.",
                )
            if self.given.setdefault(key, _MEANINGS[word]) is not _MEANINGS[word]:
                raise AnnotationError(
                    f"the class {class_text(name)!r} is mapped twice",
                    subject="class_map",
                    remedy="Letter case does not distinguish classes: keep one of them.",
                )

    def knows(self, name: str) -> bool:
        """Tell whether a class has a meaning, ``ignore`` included."""
        return _key(name) in self.given or _key(name) in _ROLES

    def role(self, name: str) -> Role | None:
        """Return the role of a class, ``""`` for no class; ``None`` if it has no role."""
        key = _key(name)
        return self.given[key] if key in self.given else _ROLES.get(key)

    def unused(self, seen: frozenset[str]) -> list[str]:
        """Return the classes to which the user gave a meaning and that were not seen."""
        return sorted(set(self.given) - {_key(name) for name in seen})


def says_nothing(name: str) -> bool:
    """Tell whether a name stands for no class: it is empty, or a placeholder of a program."""
    return _key(name) == NO_CLASS


def class_text(value: object) -> str:
    """Return the name of a class as one printable line of at most 80 characters."""
    text = " ".join((value if isinstance(value, str) else reprlib.repr(value)).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _key(name: str) -> str:
    parts = (" ".join(part.split()) for part in str(name).split(":"))
    key = ": ".join(parts).casefold()
    return NO_CLASS if key in _NOTHING_SAID else key
