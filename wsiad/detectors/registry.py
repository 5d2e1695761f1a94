"""Detectors by name: files beside this one, and plug-ins of other packages.

A dash in a name is an underscore in the file's: ``deep-if`` is ``deep_if.py``.

A new detector is one new file or folder here that defines one class derived from
:class:`~wsiad.learning.detector.Detector`; nothing else has to know of it. Modules
whose names begin with an underscore are shared code.

Another package adds a detector by an entry point of the group ``wsiad.detectors``: its name
is the detector's, its object the class. Names of wsiad's own detectors stay theirs, and a name
that two packages claim is nobody's; either is told in one line that names the package. Nothing
of a plug-in is imported before its detector is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import logging
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.errors import DetectorError, PluginError

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector

logger = logging.getLogger(__name__)

GROUP = "wsiad.detectors"
"""Group of the entry points by which other packages add detectors."""

_NOT_METHODS = frozenset({"registry"})
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MOST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed package, as ``pip`` knows it.

    Parameters
    ----------
    name, version : str
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A detector of another package.

    Parameters
    ----------
    name : str
        Name of the detector.
    target : str
        Where its class is: ``"package.module:Class"``.
    distribution : Distribution
        The package that it comes with.
    """

    name: str
    target: str
    distribution: Distribution


@dataclass(frozen=True, slots=True)
class PluginFault:
    """An entry point that adds no detector.

    Parameters
    ----------
    name : str
        Name that it claims; empty where the entry points cannot be read.
    distribution : Distribution
        The package that it comes with.
    problem : str
        What is wrong with it.
    """

    name: str
    distribution: Distribution
    problem: str

    def __str__(self) -> str:
        return f"plug-in {self.distribution}: {self.problem}"


def names() -> tuple[str, ...]:
    """Names of all detectors, sorted; nothing is imported for it."""
    return tuple(sorted({*_own_names(), *plugins()}))


def plugins() -> dict[str, Plugin]:
    """Return the detectors of other packages by name; nothing is imported for it."""
    return dict(_found()[0])


def plugin_faults() -> tuple[PluginFault, ...]:
    """Return the entry points that add no detector; nothing is imported for it."""
    return _found()[1]


def load(name: str) -> type[Detector]:
    """Return a detector's class.

    Raises
    ------
    DetectorError
        There is no detector of that name, and the nearest one is named.
    PluginError
        It comes with a plug-in that is broken, and its package is named.
    """
    own, others = _own_names(), plugins()
    for fault in plugin_faults():
        if fault.name == name and name in own:
            _warn(fault)
    if name in own:
        return _own(name)
    if name in others:
        return _of_plugin(others[name])
    if broken := [str(fault) for fault in plugin_faults() if fault.name == name]:
        raise PluginError(
            f"there is no such detector: {broken[0]}",
            subject=name,
            remedy="Uninstall or update the package.",
        )
    for fault in plugin_faults():
        _warn(fault)
    known = names()
    near = difflib.get_close_matches(name.lower(), known, n=1)
    raise DetectorError(
        f"there is no detector {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
        remedy=f"Choose one of {', '.join(known)}.",
    )


def load_made_by(name: str, maker: Distribution | None) -> type[Detector]:
    """Return the class of a detector that was stored.

    Parameters
    ----------
    name : str
    maker : Distribution or None
        The package of the plug-in that it was fitted by; ``None`` for wsiad's own detectors.

    Raises
    ------
    DetectorError
        As by :func:`load`.
    PluginError
        The package is not installed, and how to install it is said; or it is broken.
    """
    if maker is None:
        return load(name)
    found = plugins().get(name)
    if found and _normalised(found.distribution.name) == _normalised(maker.name):
        return _of_plugin(found)
    broken = [
        str(fault)
        for fault in plugin_faults()
        if _normalised(fault.distribution.name) == _normalised(maker.name)
    ]
    if broken:
        raise PluginError(
            f"it comes with a plug-in that cannot be used: {broken[0]}",
            subject=name,
            remedy="Uninstall the other package, or update this one.",
        )
    other = f"; the detector of this name here is that of {found.distribution}" if found else ""
    raise PluginError(
        f"it comes with the plug-in {maker}, which is not installed here{other}",
        subject=name,
        remedy=f"Install it: pip install {maker.name}=={maker.version}.",
    )


def maker(name: str) -> Distribution | None:
    """Return the package of the plug-in that a detector comes with; ``None`` for wsiad's own."""
    if name in _own_names():
        return None
    found = plugins().get(name)
    return found.distribution if found else None


def names_using_anomalies() -> tuple[str, ...]:
    """Names of the detectors that learn from labelled anomalous tiles; imports them all.

    A plug-in that is broken is left out with a warning.
    """
    found = []
    for name in names():
        try:
            if load(name).uses_anomalies:
                found.append(name)
        except DetectorError as error:
            if maker(name) is None:
                raise
            logger.warning("%s", error)
    return tuple(found)


def _own_names() -> tuple[str, ...]:
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    methods = (n for n in found if n not in _NOT_METHODS and not n.startswith("_"))
    return tuple(sorted(n.replace("_", "-") for n in methods))


def _own(name: str) -> type[Detector]:
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


def _of_plugin(plugin: Plugin) -> type[Detector]:
    """Import the class of a plug-in; whatever it raises on the way is told in one line."""
    from wsiad.learning.detector import Detector, DetectorOptions

    try:
        found: Any = metadata.EntryPoint(plugin.name, plugin.target, GROUP).load()
    except (Exception, SystemExit) as error:  # a stranger's module may do anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_TEXT]
        raise _broken(plugin, f"{plugin.target} cannot be loaded ({said})") from error
    if not (inspect.isclass(found) and issubclass(found, Detector)):
        raise _broken(plugin, f"{plugin.target} is not a class derived from Detector")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise _broken(plugin, f"{plugin.target} lacks {missing}")
    if not (inspect.isclass(found.Options) and issubclass(found.Options, DetectorOptions)):
        raise _broken(plugin, f"the Options of {plugin.target} do not derive from DetectorOptions")
    return found


def _broken(plugin: Plugin, problem: str) -> PluginError:
    return PluginError(
        f"the plug-in {plugin.distribution} is broken: {problem}",
        subject=plugin.name,
        remedy=f"Update or reinstall {plugin.distribution.name}, or tell its authors.",
    )


def _found() -> tuple[dict[str, Plugin], tuple[PluginFault, ...]]:
    claims, faults = _claims(tuple(sys.path))
    own = set(_own_names())
    plugins: dict[str, Plugin] = {}
    refused = list(faults)
    for name in sorted({claim.name for claim in claims}):
        claimants = sorted(
            (claim for claim in claims if claim.name == name), key=lambda c: c.distribution.name
        )
        problem = ""
        if not _NAME.fullmatch(name):
            problem = (
                f"the name {name[:_MOST_TEXT]!r} of its detector is not of small letters, digits "
                "and single dashes"
            )
        elif name in own:
            problem = f"its detector {name!r} has the name of one of wsiad's own, which is used"
        elif len(claimants) > 1:
            everyone = " and ".join(str(claim.distribution) for claim in claimants)
            problem = f"{everyone} each have a detector {name!r}, and neither is used"
        if problem:
            refused += [PluginFault(name, claim.distribution, problem) for claim in claimants]
        else:
            plugins[name] = claimants[0]
    return plugins, tuple(refused)


@functools.lru_cache(maxsize=4)
def _claims(path: tuple[str, ...]) -> tuple[tuple[Plugin, ...], tuple[PluginFault, ...]]:
    """Return the entry points of the packages on a search path, and those not to be read.

    Packages are read one by one: one whose files are damaged does not hide the others.
    """
    claims: list[Plugin] = []
    faults, seen = [], set()
    for package in metadata.distributions(path=list(path)):
        distribution = _identity(package)
        known = _normalised(distribution.name)
        if known in seen:
            continue  # of two copies the first is the one that is imported
        seen.add(known)
        try:
            text = package.read_text("entry_points.txt") or ""
        except (OSError, ValueError):
            continue  # nothing says that it was meant for wsiad
        if GROUP not in text:
            continue
        try:
            claims += list(_points(package, distribution))
        except Exception as error:  # its parser raises whatever it stumbles over
            said = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_TEXT]
            problem = f"its entry points cannot be read ({said})"
            faults.append(PluginFault("", distribution, problem))
    return tuple(claims), tuple(faults)


def _points(package: metadata.Distribution, distribution: Distribution) -> Iterator[Plugin]:
    for point in package.entry_points:
        if point.group == GROUP:
            yield Plugin(point.name, point.value, distribution)


def _identity(package: metadata.Distribution) -> Distribution:
    try:
        about = package.metadata
        if name := about["Name"]:
            return Distribution(name, about["Version"] or "of no version")
    except Exception:  # noqa: S110 -- its metadata may be damaged in any way
        pass
    return Distribution(str(getattr(package, "_path", "without a name")), "of no version")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


_WARNED: set[PluginFault] = set()


def _warn(fault: PluginFault) -> None:
    """Warn of a fault, once in a process."""
    if fault not in _WARNED:
        _WARNED.add(fault)
        logger.warning("%s. Uninstall or update the package.", fault)
