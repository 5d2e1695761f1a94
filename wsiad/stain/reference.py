"""The reference stain: default target, and stand-in where a slide has no stain to fit.

It is the mean of three real appearances of haematoxylin and eosin, each fitted by this
package: healthy lymph node of either centre of CAMELYON16 (the 8,835 normal training
tiles of PatchCamelyon that hold enough tissue, at about 1 µm/px, parted by their blue
over green density) and skin (OpenSlide's CMU-1-Small-Region, 0.5 µm/px). All are CC0.
Lying between them, it changes each as little as can be. ``benchmarks/stain.py
reference`` computes it.
"""

from __future__ import annotations

from typing import Final

from wsiad.stain.profile import LabStatistics, StainMethod, StainProfile, TwoStains

_VAHADANE: Final = TwoStains(
    haematoxylin=(0.523, 0.755, 0.395), eosin=(0.248, 0.867, 0.432), strength=(2.73, 1.60)
)
# Macenko's stains lie further apart by definition, hence a reference of its own.
_MACENKO: Final = TwoStains(
    haematoxylin=(0.578, 0.720, 0.385), eosin=(0.058, 0.898, 0.435), strength=(2.54, 1.19)
)
_LAB: Final = LabStatistics(mean=(50.1, 32.2, -20.3), std=(16.9, 8.4, 8.3))


def reference_profile(method: StainMethod = "vahadane") -> StainProfile:
    """Return the reference stain as a profile of a method; its glass is pure white."""
    match method:
        case "vahadane":
            return StainProfile(method, stains=_VAHADANE)
        case "macenko":
            return StainProfile(method, stains=_MACENKO)
        case "reinhard":
            return StainProfile(method, lab=_LAB)
        case "none":
            return StainProfile(method)
