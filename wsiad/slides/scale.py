"""The µm/px of a slide: where it is stated, and which statement is used."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wsiad.core.errors import InputError, ScaleError
from wsiad.core.geometry import Mpp, Spacing

logger = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.05, 20.0)
"""Range of level-0 µm/px; other values are defaults of writers (72 dpi), not scales."""

_USUAL_MPP = 0.4

SAME_SCALE = 0.01
"""Maximum relative difference at which slide and user agree."""

_VENDOR_KEYS = (
    # key in x, key in y, µm per unit
    ("aperio.MPP", "aperio.MPP", 1.0),
    (
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
        1.0,
    ),
    ("ventana.ScanRes", "ventana.ScanRes", 1.0),
)

_UM_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}


@dataclass(frozen=True, slots=True)
class ScaleStatement:
    """The µm/px of a slide and the place where it was stated.

    Parameters
    ----------
    spacing : Spacing
        Size of a level-0 pixel, µm.
    source : str
        Name of the property, ``"manifest"`` or ``"--slide-mpp"``.
    note : str
        Both values if slide and user contradict each other, and which one is used; or empty.
    overridden : bool
        True if the user's value is used against the slide's.
    """

    spacing: Spacing
    source: str
    note: str = ""
    overridden: bool = False


def check_mpp(value: float) -> float:
    """Return a µm/px that a user states, if a slide can have it.

    Raises
    ------
    InputError
        No slide has this µm/px; the error says so if it would fit in another unit.
    """
    low, high = PLAUSIBLE_MPP
    if low <= value <= high:
        return value
    guesses = []
    for unit, mpp in (
        ("millimetres", value * 1e3),
        ("centimetres", value * 1e4),
        ("metres", value * 1e6),
        ("nanometres", value / 1e3),
        ("pixels per centimetre", 1e4 / value if value else 0.0),
    ):
        if low <= mpp <= high:
            guesses.append((abs(math.log(mpp / _USUAL_MPP)), unit, mpp))
    if guesses:
        _, unit, mpp = min(guesses)
        remedy = f"It looks like {unit}: that would be {mpp:.4g} µm/px."
    else:
        remedy = "At 40× it is about 0.25, at 20× about 0.5 µm/px."
    raise InputError(f"{value:g} is not a slide's µm/px ({low:g} to {high:g})", remedy=remedy)


def stated_mpp(text: str) -> float:
    """Read a µm/px that a user writes, with a decimal point or comma.

    Raises
    ------
    InputError
        The text is not a number, or not one that a slide can have.
    """
    try:
        value = math.nan if "_" in text else float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"`mpp` is {text!r}, not µm/px above 0", remedy="Write only the number, such as 0.25."
        )
    try:
        return check_mpp(value)
    except InputError as error:
        raise InputError(f"`mpp` is {text!r}: {error.problem}", remedy=error.remedy) from None


def find_scale(
    properties: Mapping[str, str],
    *,
    slide: str,
    manifest_mpp: float | None = None,
    fallback_mpp: float | None = None,
    override: bool = False,
) -> ScaleStatement:
    """Find the µm/px of a slide.

    The order is OpenSlide's ``mpp-x``/``mpp-y``, the vendor's own keys, the TIFF resolution,
    the manifest's ``mpp`` column, ``--slide-mpp``. A value that no slide scanner has (outside
    0.05 to 20 µm/px) is skipped. To override the slide, the manifest and ``--slide-mpp`` come
    first.

    Parameters
    ----------
    properties : mapping of str to str
        Properties of the slide as OpenSlide reports them.
    slide : str
        Name for messages.
    manifest_mpp, fallback_mpp : float, optional
        Values of the user, for this slide and for all slides that state none.
    override : bool
        True to use the user's value where the slide states another.

    Raises
    ------
    ScaleError
        No plausible value is stated anywhere.
    """
    rejected = []
    stated = None
    for candidate in _candidates(properties):
        if all(
            PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1]
            for v in (candidate.spacing.x, candidate.spacing.y)
        ):
            stated = candidate
            break
        rejected.append(f"{candidate.source} says {candidate.spacing.mean:g} µm/px")
    given = [(manifest_mpp, "manifest"), (fallback_mpp, "--slide-mpp")]
    for value, source in given:
        if value is None:
            continue
        of_user = ScaleStatement(Spacing(Mpp(value), Mpp(value)), source)
        if stated is None:
            return of_user
        if abs(value / stated.spacing.mean - 1) <= SAME_SCALE:
            continue
        both = f"{stated.source} says {stated.spacing.mean:.4g} µm/px, the {source} {value:.4g}"
        both = both.replace("the --", "--")
        if override:
            note = f"{both}; {value:.4g} is taken (--override-mpp)"
            return replace(of_user, note=note, overridden=True)
        note = f"{both}; the slide is believed (--override-mpp would take {value:.4g})"
        logger.warning("%s: %s", slide, note)
        return replace(stated, note=note)
    if stated is not None:
        return stated
    why = f" ({'; '.join(rejected)}: not a scanner's scale)" if rejected else ""
    raise ScaleError(
        f"its µm/px is not stated{why}",
        subject=slide,
        remedy="Set it in an `mpp` column of a manifest CSV, or for all such slides "
        "by --slide-mpp; or write the TIFF resolution tags.",
    )


def _candidates(properties: Mapping[str, str]) -> list[ScaleStatement]:
    found = []

    def add(source: str, x: float | None, y: float | None) -> None:
        if x is not None and y is not None and x > 0 and y > 0:
            found.append(ScaleStatement(Spacing(Mpp(x), Mpp(y)), source))

    number = _Numbers(properties)
    add("openslide.mpp-x", number("openslide.mpp-x"), number("openslide.mpp-y"))
    for key_x, key_y, unit in _VENDOR_KEYS:
        x, y = number(key_x), number(key_y)
        add(key_x, x and x * unit, y and y * unit)
    per_unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", "").lower())
    x, y = number("tiff.XResolution"), number("tiff.YResolution")
    if per_unit and x and y:
        add("tiff.XResolution", per_unit / x, per_unit / y)
    return found


class _Numbers:
    def __init__(self, properties: Mapping[str, str]) -> None:
        self._properties = properties

    def __call__(self, key: str) -> float | None:
        try:
            value = float(self._properties[key].replace(",", "."))
        except (KeyError, ValueError):
            return None
        return value if 0 < value < float("inf") else None
