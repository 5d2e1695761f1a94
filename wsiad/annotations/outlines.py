"""What people outlined on a slide: areas with a role, in level-0 pixels."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.annotations.rings import Ring, ring_area


class Role(enum.StrEnum):
    """What an outline says about the tissue within it."""

    TUMOUR = "tumour"
    CUT_OUT = "cut-out"


_ROLES = {
    **dict.fromkeys(("_0", "_1", "tumor", "tumour", "metastasis", "metastases"), Role.TUMOUR),
    "anomaly": Role.TUMOUR,  # wsiad's own, perhaps corrected by a pathologist
    **dict.fromkeys(("_2", "normal", "exclusion"), Role.CUT_OUT),
}


def role_of(group: str) -> Role | None:
    """Role of an annotation group by its name, letter case aside; ``None`` if it has none.

    ``_0``, ``_1`` and ``_2`` are CAMELYON16's groups, ``metastases`` and ``normal``
    those of CAMELYON17.
    """
    return _ROLES.get(group.lower())


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """One outlined area.

    Parameters
    ----------
    name, group : str
        As the file has them.
    role : Role
        Tumour, or cut out of it.
    shell : ndarray of float64, (N, 2)
        Outer ring, level-0 pixels. It may cross itself: what it winds around at least
        once is inside.
    holes : tuple of ndarray
        Inner rings; only GeoJSON has them.
    """

    name: str
    group: str
    role: Role
    shell: Ring
    holes: tuple[Ring, ...] = ()

    def polygon(self) -> BaseGeometry:
        """Return the outlined area as a valid geometry."""
        area = ring_area(self.shell)
        return area.difference(shapely.union_all([ring_area(hole) for hole in self.holes]))


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """All outlines of a slide that have a role, and what the file holds besides.

    Parameters
    ----------
    source : str
        The file.
    outlines : tuple of Outline
        In the order of the file.
    ignored : Mapping of str to int
        How many annotations were left aside, by reason.
    """

    source: str
    outlines: tuple[Outline, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)

    def with_role(self, role: Role) -> tuple[Outline, ...]:
        """Outlines of one role."""
        return tuple(outline for outline in self.outlines if outline.role is role)

    def tumour(self) -> BaseGeometry:
        """Return the tumour area: all tumour outlines less all cut-outs, level-0 pixels.

        A cut-out wins over every tumour outline under it, as in the CAMELYON masks,
        where it is painted last.
        """
        tumour = shapely.union_all([o.polygon() for o in self.with_role(Role.TUMOUR)])
        cut_out = shapely.union_all([o.polygon() for o in self.with_role(Role.CUT_OUT)])
        return tumour.difference(cut_out)
