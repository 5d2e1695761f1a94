"""Stain profiles as values and as JSON."""

import json
import math

import pytest

from wsiad.core.errors import StainError
from wsiad.stain.profile import (
    FitQuality,
    LabStatistics,
    StainProfile,
    TwoStains,
    reference_profile,
)

STAINS = TwoStains((0.6, 0.8, 0.0), (0.0, 0.8, 0.6), (2.5, 1.25))
QUALITY = FitQuality(stained_pixels=12345, stained_share=0.25, flatness=0.1, angle_deg=50.2)
PROFILES = [
    StainProfile("vahadane", (243.5, 242.0, 244.1), STAINS, quality=QUALITY),
    StainProfile("macenko", stains=STAINS, fallback="only 3 pixels of stained tissue"),
    StainProfile("reinhard", lab=LabStatistics((50.0, 30.0, -20.0), (15.0, 8.0, 8.0))),
    StainProfile("none"),
]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.method)
def test_profile_comes_back_from_json(profile):
    values = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert values == profile.to_dict()
    assert StainProfile.from_dict(values) == profile
    assert StainProfile.from_dict(profile.to_dict()) == profile


@pytest.mark.parametrize("method", ["vahadane", "macenko", "reinhard", "none"])
def test_reference_is_a_profile_of_its_method(method):
    profile = reference_profile(method)
    assert profile.method == method
    assert profile.white == (255, 255, 255)
    assert profile.fallback is None
    assert StainProfile.from_dict(profile.to_dict()) == profile
    if profile.stains:
        assert profile.stains.haematoxylin[0] > profile.stains.eosin[0]
        assert 10 < profile.stains.angle_deg < 45


def test_matrix_has_unit_rows_haematoxylin_first():
    assert STAINS.matrix.tolist() == [[0.6, 0.8, 0.0], [0.0, 0.8, 0.6]]
    assert STAINS.angle_deg == pytest.approx(math.degrees(math.acos(0.64)))
    rounded = TwoStains((0.523, 0.755, 0.395), (0.248, 0.867, 0.432), (1.0, 1.0))
    assert (rounded.matrix**2).sum(axis=1) == pytest.approx([1, 1], abs=1e-15)


def values_with(**changes):
    return {**PROFILES[0].to_dict(), **changes}


def stains_with(**changes):
    return values_with(stains={**PROFILES[0].to_dict()["stains"], **changes})


@pytest.mark.parametrize(
    "values",
    [
        {},
        values_with(method="vahadan"),
        values_with(method=None),
        values_with(method=["vahadane"]),
        values_with(unknown=1),
        values_with(white=[255, 255]),
        values_with(white=[255, 255, 0]),
        values_with(white="255"),
        values_with(stains=None),
        values_with(stains=[1, 2]),
        values_with(stains={}),
        values_with(fallback=3),
        values_with(quality={"stained_pixels": "many", "stained_share": 0, "flatness": 0}),
        values_with(quality=3),
        values_with(method="reinhard"),
        values_with(lab={"mean": [50, 0, 0], "std": [1, 0, 1]}),
        values_with(lab={"mean": [50, 0, math.inf], "std": [1, 1, 1]}),
        stains_with(strength=[0.0, 1.0]),
        stains_with(strength=[math.nan, 1.0]),
        stains_with(haematoxylin=[0.6, -0.8, 0.0]),
        stains_with(haematoxylin=[6.0, 8.0, 0.0]),
        stains_with(haematoxylin=["0.6", 0.8, 0.0]),
        stains_with(haematoxylin=[0.0, 0.8, 0.6]),
        stains_with(haematoxylin=0.6),
    ],
)
def test_what_is_no_profile_is_refused(values):
    with pytest.raises(StainError):
        StainProfile.from_dict(values)


def test_what_is_not_even_a_mapping_is_refused():
    with pytest.raises(StainError, match="not a stain profile"):
        StainProfile.from_dict([1, 2])
