"""The list of detectors, read from their source: it imports neither them nor torch.

Importing all detectors takes seconds. What the list states of each one is the first sentence of
its module, and facts that its class or a base of it declares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from wsiad.core.labels import LabelsOf
from wsiad.detectors import registry

_FOLDER = Path(__file__).parent
_ROOT = "Detector"
_NETWORK_FIELD = "backbone"
_NETWORK_OPTIONS = "PerceptualOptions"
_LABELS: Final[dict[LabelsOf, str]] = {
    "tiles": "labels",
    "slides": "labels of slides",
    "reference": "reference set",
}


@dataclass(frozen=True, slots=True)
class DetectorEntry:
    """Entry of a detector in the list.

    Parameters
    ----------
    name : str
        Name of the detector.
    summary : str
        One sentence; empty for a plug-in, which is not imported for the list.
    labels : bool or "needed"
        True if it can learn from labelled anomalies, ``"needed"`` if it must.
    labels_of : {"tiles", "slides", "reference"}
        Unit that these labels belong to.
    labels_for : str
        Option and value, such as ``objective: compact``, that need labels although most do not;
        empty if there are none.
    network : bool
        True if its options name a pretrained network, whose weights it then needs.
    network_for : str
        Value without which its options need no network, such as a loss; empty if they always do.
    network_unless : str
        Option that, once set, needs no network; empty if there is none.
    package : str
        Package of the plug-in with its version; empty for wsiad's own.
    """

    name: str
    summary: str
    labels: bool | Literal["needed"] = False
    labels_of: LabelsOf = "tiles"
    labels_for: str = ""
    network: bool = False
    network_for: str = ""
    network_unless: str = ""
    package: str = ""

    def needs(self, options: Mapping[str, object] | None = None) -> tuple[str, ...]:
        """Return what the detector needs besides healthy tiles, with some options set."""
        chosen = options or {}
        needs = []
        unit = _LABELS[self.labels_of]
        if self.labels_for and options:
            option, _, value = self.labels_for.partition(": ")
            needs += [unit] if chosen.get(option) == value else []
        elif self.labels or self.labels_for:
            needs.append(unit if self.labels == "needed" else f"{unit} (optional)")
        if self.network and self.network_for and not options:
            needs.append("network weights (optional)")
        elif (
            self.network
            and chosen.get(_NETWORK_FIELD) != "pixels"
            and chosen.get("layers") != {}
            and not (self.network_unless and chosen.get(self.network_unless))
            and (not self.network_for or _mentions(chosen, self.network_for))
        ):
            needs.append("network weights")
        return tuple(needs)


def inventory() -> tuple[DetectorEntry, ...]:
    """Return the entries of all detectors, sorted by name, without importing them."""
    own, source = set(registry.own_names()), _Source(_FOLDER)
    plugins = registry.plugins()
    return tuple(
        source.entry(name)
        if name in own
        else DetectorEntry(name, "", package=str(plugins[name].distribution))
        for name in registry.names()
    )


def _mentions(options: Mapping[str, object], word: str) -> bool:
    """Tell whether an option is a word, or weighs it."""
    return any(
        word == value or (isinstance(value, Mapping) and word in value)
        for value in options.values()
    )


class _Source:
    """Classes of the modules of a folder, by their text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees = {
            path: ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))
        }
        self._classes = {
            node.name: node
            for tree in self._trees.values()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        }

    def entry(self, name: str) -> DetectorEntry:
        """Return the entry of one of wsiad's own detectors."""
        place = self._folder / name.replace("-", "_")
        home = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        cls = self._detector(place)
        text = " ".join((ast.get_docstring(self._trees[home]) or "").partition("\n\n")[0].split())
        labels = self._declared(cls, "uses_anomalies")
        options = self._declared(cls, "Options")
        lineage = list(self._lineage(str(options)))
        return DetectorEntry(
            name,
            text,
            labels="needed" if labels == "needed" else labels is True,
            labels_of=_labels_of(self._declared(cls, "labels_of")),
            labels_for=str(self._declared(cls, "labels_for") or ""),
            network=_NETWORK_OPTIONS in lineage or self._has_field(lineage, _NETWORK_FIELD),
            network_for=str(self._declared(cls, "network_for") or ""),
            network_unless=str(self._declared(cls, "network_unless") or ""),
        )

    def _detector(self, place: Path) -> str:
        """Return the class of a detector: of those in its files, the one without heirs."""
        files = [p for p in self._trees if p.with_suffix("") == place or place in p.parents]
        found = [
            node.name
            for path in files
            for node in self._trees[path].body
            if isinstance(node, ast.ClassDef) and _ROOT in self._lineage(node.name)
        ]
        bases = {base for name in found for base in list(self._lineage(name))[1:]}
        return next((name for name in found if name not in bases), "")

    def _lineage(self, name: str) -> Iterator[str]:
        """Yield a class and its bases, depth first."""
        yield name
        if name in self._classes:
            for base in self._classes[name].bases:
                named = base.value if isinstance(base, ast.Subscript) else base
                if isinstance(named, ast.Name):
                    yield from self._lineage(named.id)

    def _declared(self, name: str, attribute: str) -> object:
        """Return what a class or the next of its bases assigns: a constant, or a class's name."""
        for cls in self._lineage(name):
            for key, value in self._assigned(cls):
                if key == attribute and isinstance(value, ast.Constant):
                    return value.value
                if key == attribute and isinstance(value, ast.Name):
                    return value.id
        return None

    def _has_field(self, lineage: list[str], field: str) -> bool:
        return any(key == field for cls in lineage for key, _ in self._assigned(cls))

    def _assigned(self, cls: str) -> Iterator[tuple[str, ast.expr | None]]:
        for node in self._classes[cls].body if cls in self._classes else ():
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node.value


def _labels_of(declared: object) -> LabelsOf:
    return next((known for known in _LABELS if known == declared), "tiles")
