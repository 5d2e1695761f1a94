"""The registry of detectors by name: wsiad's own modules, and plug-ins of other packages.

A dash in a name is an underscore in the file's: ``deep-if`` is ``deep_if.py``. A new detector
is one new file or folder here that defines one class derived from
:class:`~wsiad.learning.detector.Detector`; no other file needs a change. Modules whose names
begin with an underscore are shared code.

Another package adds a detector by an entry point of the group ``wsiad.detectors``: its name is
the detector's, and its object is the class. wsiad's own detectors keep their names, and a name
that two packages claim belongs to neither. Either case is reported in one line that names the
package. A plug-in is not imported before its detector is requested.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.errors import DetectorError, PluginError
from wsiad.core.packages import Distribution, Plugin, PluginFault, claimed, normalised
from wsiad.core.terminal import did_you_mean

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector

logger = logging.getLogger(__name__)

GROUP = "wsiad.detectors"
"""Group of the entry points by which other packages add detectors."""

_NOT_METHODS = frozenset({"registry", "detector_inventory"})
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MOST_TEXT = 200


def names() -> tuple[str, ...]:
    """Return the names of all detectors, sorted, without importing them."""
    return tuple(sorted({*own_names(), *plugins()}))


def plugins() -> dict[str, Plugin]:
    """Return the detectors of other packages by name, without importing them."""
    return dict(_found()[0])


def plugin_faults() -> tuple[PluginFault, ...]:
    """Return the entry points that add no detector, without importing them."""
    return _found()[1]


def load(name: str) -> type[Detector]:
    """Return a detector's class.

    Raises
    ------
    DetectorError
        There is no detector of that name; the error names the nearest one.
    PluginError
        The detector comes from a plug-in that is broken; the error names its package.
    """
    own, others = own_names(), plugins()
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
    raise DetectorError(
        f"there is no detector {name!r}{did_you_mean(name, known)}",
        remedy=f"Choose one of {', '.join(known)}; or set a published system as --preset.",
    )


def load_made_by(name: str, maker: Distribution | None) -> type[Detector]:
    """Return the class of a detector that was stored.

    Parameters
    ----------
    name : str
    maker : Distribution or None
        Package of the plug-in with which it was fitted; ``None`` for wsiad's own detectors.

    Raises
    ------
    DetectorError
        The detector is unknown; see :func:`load`.
    PluginError
        The package is broken, or is not installed; the error then says how to install it.
    """
    if maker is None:
        return load(name)
    found = plugins().get(name)
    if found and normalised(found.distribution.name) == normalised(maker.name):
        return _of_plugin(found)
    broken = [
        str(fault)
        for fault in plugin_faults()
        if normalised(fault.distribution.name) == normalised(maker.name)
    ]
    if broken:
        raise PluginError(
            f"comes with a plug-in that cannot be used: {broken[0]}",
            subject=name,
            remedy="Uninstall the other package, or update this one.",
        )
    other = f"; the detector of this name here is that of {found.distribution}" if found else ""
    raise PluginError(
        f"comes with the plug-in {maker}, which is not installed here{other}",
        subject=name,
        remedy=f"Install it: pip install {maker.name}=={maker.version}.",
    )


def maker(name: str) -> Distribution | None:
    """Return the package of the plug-in that a detector comes from; ``None`` for wsiad's own."""
    if name in own_names():
        return None
    found = plugins().get(name)
    return found.distribution if found else None


def names_using_anomalies() -> tuple[str, ...]:
    """Return the names of the detectors that learn from anomalous tiles; imports all detectors.

    A broken plug-in is left out with a warning.
    """
    return tuple(name for name, cls in _loadable() if cls.uses_anomalies)


def ways_to_use_anomalies() -> tuple[str, ...]:
    """Return the same names, and those of detectors that need an option for it, with the option."""
    found = []
    for name, cls in _loadable():
        if cls.uses_anomalies:
            found.append(name)
        elif cls.labels_for:
            found.append(f"{name} with --option {cls.labels_for.replace(': ', '=')}")
    return tuple(found)


def _loadable() -> Iterator[tuple[str, type[Detector]]]:
    """Yield all detectors with their names; a broken plug-in is left out with a warning."""
    for name in names():
        try:
            yield name, load(name)
        except DetectorError as error:
            if maker(name) is None:
                raise
            logger.warning("%s", error)


def own_names() -> tuple[str, ...]:
    """Return the names of wsiad's own detectors, sorted, without importing them."""
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
    """Import the class of a plug-in; report any error that it raises in one line."""
    from wsiad.learning.detector import Detector, DetectorOptions

    found = plugin.load()
    if not (inspect.isclass(found) and issubclass(found, Detector)):
        raise plugin.broken(f"{plugin.target} is not a class derived from Detector")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise plugin.broken(f"{plugin.target} lacks {missing}")
    if not (inspect.isclass(found.Options) and issubclass(found.Options, DetectorOptions)):
        raise plugin.broken(f"the Options of {plugin.target} do not derive from DetectorOptions")
    return found


def _found() -> tuple[dict[str, Plugin], tuple[PluginFault, ...]]:
    claims, faults = claimed(GROUP)
    own = set(own_names())
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


_WARNED: set[PluginFault] = set()


def _warn(fault: PluginFault) -> None:
    """Warn of a fault, once per process."""
    if fault not in _WARNED:
        _WARNED.add(fault)
        logger.warning("%s. Uninstall or update the package.", fault)
