"""What people outlined on a slide: areas with a role, in level-0 pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsiad.annotations.classes import Role
from wsiad.annotations.rings import Ring, check_rings, ring_area

LEVEL_0 = "the slide's corner"
"""Where positions of a file count from, in words: that of OpenSlide's level 0."""

BOUNDS = "the corner of its bounds"
"""The same: that of the part of the slide that holds anything, as QuPath counts."""


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

    def polygon(self, source: str = "") -> BaseGeometry:
        """Return the outlined area as a valid geometry.

        Raises
        ------
        AnnotationError
            It crosses itself too often; ``source``, the file, is named.
        """
        subject = f"{source}, {self.name}" if source else self.name
        area = ring_area(self.shell, subject=subject)
        if not self.holes:
            return area
        holes = [ring_area(hole, subject=subject) for hole in self.holes]
        return area.difference(shapely.union_all(holes))

    def moved(self, dx: float, dy: float) -> Outline:
        """Return the outline elsewhere."""
        by = np.array([dx, dy])
        holes = tuple(hole + by for hole in self.holes)
        return dataclasses.replace(self, shell=self.shell + by, holes=holes)


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
    classes : frozenset of str
        Every class or group that an object of the file has, ``""`` for none.
    origin : (float, float)
        Where the file's positions count from, level-0 pixels; outlines are moved there
        already.
    counted_from : str
        The same in words.
    """

    source: str
    outlines: tuple[Outline, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()
    origin: tuple[float, float] = (0.0, 0.0)
    counted_from: str = LEVEL_0

    def with_role(self, role: Role) -> tuple[Outline, ...]:
        """Outlines of one role."""
        return tuple(outline for outline in self.outlines if outline.role is role)

    def tumour(self) -> BaseGeometry:
        """Return the tumour area: all tumour outlines less all cut-outs, level-0 pixels.

        A cut-out wins over every tumour outline under it, as in the CAMELYON masks,
        where it is painted last.

        Raises
        ------
        AnnotationError
            Outlines cross themselves or each other too often.
        """
        check_rings(
            [(o.name, ring) for o in self.outlines for ring in (o.shell, *o.holes)],
            self.source,
        )
        tumour, cut_out = (
            shapely.union_all([o.polygon(self.source) for o in self.with_role(role)])
            for role in (Role.TUMOUR, Role.CUT_OUT)
        )
        return tumour.difference(cut_out)

    def moved_to(self, origin: tuple[float, float], counted_from: str) -> Annotations:
        """Return the outlines as they lie if the file counts from another origin."""
        dx, dy = origin[0] - self.origin[0], origin[1] - self.origin[1]
        outlines = self.outlines
        if (dx, dy) != (0.0, 0.0):
            outlines = tuple(outline.moved(dx, dy) for outline in outlines)
        return dataclasses.replace(
            self, outlines=outlines, origin=origin, counted_from=counted_from
        )
