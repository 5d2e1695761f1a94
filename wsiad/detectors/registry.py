"""Detectors by name: the names are those of the files and folders beside this one.

A dash in a name is an underscore in the file's: ``deep-if`` is ``deep_if.py``.

A new detector is one new file or folder here that defines one class derived from
:class:`~wsiad.learning.detector.Detector`; nothing else has to know of it. Modules
whose names begin with an underscore are shared code.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.errors import DetectorError

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector

_NOT_METHODS = frozenset({"registry"})


def names() -> tuple[str, ...]:
    """Names of all detectors, sorted; nothing is imported for it."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    methods = (n for n in found if n not in _NOT_METHODS and not n.startswith("_"))
    return tuple(sorted(n.replace("_", "-") for n in methods))


def load(name: str) -> type[Detector]:
    """Return a detector's class.

    Raises
    ------
    DetectorError
        There is no detector of that name; the nearest one is named.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        raise DetectorError(
            f"there is no detector {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
            remedy=f"Choose one of {', '.join(known)}.",
        )
    from wsiad.learning.detector import Detector

    module = importlib.import_module(f"wsiad.detectors.{name.replace('-', '_')}")
    found = {
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Detector)
        and not inspect.isabstract(value)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    }
    if len(found) != 1:
        raise DetectorError(f"{module.__name__} must define one detector class, not {len(found)}")
    return found.pop()


def names_using_anomalies() -> tuple[str, ...]:
    """Names of the detectors that learn from labelled anomalous tiles; imports them all."""
    return tuple(name for name in names() if load(name).uses_anomalies)
