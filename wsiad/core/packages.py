"""Installed packages: the versions of those that affect numbers, and plug-ins of other packages.

Plug-ins are entry points, found without an import and loaded with errors of one line. The files of
packages are untrusted. Damaged metadata of one package hide nothing of the others, and an error
names the package.
"""

from __future__ import annotations

import functools
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from wsiad._version import __version__
from wsiad.core.errors import PluginError

_MOST_TEXT = 200
_COMPUTING = (
    "imagecodecs",
    "numba",
    "numcodecs",
    "numpy",
    "opencv-python-headless",
    "openslide-bin",
    "openslide-python",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
    "zarr",
)
"""Packages that decide numbers."""


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
    """An entry point by which another package extends wsiad.

    Parameters
    ----------
    name : str
        Name of the entry point.
    target : str
        Place of its object: ``"package.module:Class"``.
    distribution : Distribution
        Package that provides it.
    """

    name: str
    target: str
    distribution: Distribution

    def load(self) -> Any:
        """Import the object of the entry point.

        Raises
        ------
        PluginError
            The module raises an error; this one names the package, in one line.
        """
        try:
            return metadata.EntryPoint(self.name, self.target, "").load()
        except (Exception, SystemExit) as error:  # a stranger's module may do anything
            raise self.broken(f"{self.target} cannot be loaded ({_line(error)})") from error

    def broken(self, problem: str) -> PluginError:
        """Return the error that names the package and its problem."""
        return PluginError(
            f"the plug-in {self.distribution} is broken: {problem}",
            subject=self.name,
            remedy=f"Update or reinstall {self.distribution.name}, or tell its authors.",
        )


@dataclass(frozen=True, slots=True)
class PluginFault:
    """An entry point that cannot be used.

    Parameters
    ----------
    name : str
        Name that it claims; empty if the entry points cannot be read.
    distribution : Distribution
        Package that provides it.
    problem : str
        Problem of the entry point.
    """

    name: str
    distribution: Distribution
    problem: str

    def __str__(self) -> str:
        return f"plug-in {self.distribution}: {self.problem}"


def claimed(group: str) -> tuple[tuple[Plugin, ...], tuple[PluginFault, ...]]:
    """Return the entry points of a group, and those that cannot be read, without an import.

    Packages are read one by one: a package with damaged files does not hide the others.
    """
    return _claimed(group, tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _claimed(
    group: str, path: tuple[str, ...]
) -> tuple[tuple[Plugin, ...], tuple[PluginFault, ...]]:
    claims: list[Plugin] = []
    faults, seen = [], set()
    packages = list(metadata.distributions(path=list(path)))
    texts = [_entry_points(package) for package in packages]
    if not any(group in text for text in texts):
        return (), ()  # names take long to read: those of all packages a tenth of a second
    for package, text in zip(packages, texts, strict=True):
        distribution = _identity(package)
        known = normalised(distribution.name)
        if known in seen:
            continue  # of two copies the first is the one that is imported
        seen.add(known)
        if group not in text:
            continue
        try:
            claims += list(_points(package, distribution, group))
        except Exception as error:  # its parser raises whatever it stumbles over
            problem = f"its entry points cannot be read ({_line(error)})"
            faults.append(PluginFault("", distribution, problem))
    return tuple(claims), tuple(faults)


def _entry_points(package: metadata.Distribution) -> str:
    try:
        return package.read_text("entry_points.txt") or ""
    except (OSError, ValueError):
        return ""  # nothing says that it was meant for wsiad


def _points(
    package: metadata.Distribution, distribution: Distribution, group: str
) -> Iterator[Plugin]:
    for point in package.entry_points:
        if point.group == group:
            yield Plugin(point.name, point.value, distribution)


def _identity(package: metadata.Distribution) -> Distribution:
    try:
        about = package.metadata
        if name := about["Name"]:
            return Distribution(name, about["Version"] or "of no version")
    except Exception:  # noqa: S110 -- its metadata may be damaged in any way
        pass
    return Distribution(str(getattr(package, "_path", "without a name")), "of no version")


def normalised(name: str) -> str:
    """Return the name of a package in the form that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_TEXT]


def versions() -> dict[str, str]:
    """Return the versions of wsiad, Python and the packages that compute."""
    found = {"wsiad": __version__, "python": platform.python_version()}
    for name in _COMPUTING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
