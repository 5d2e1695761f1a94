"""Content of the judgements of results: ``evaluation.json`` and ``significance.json``.

Twenty models take a twentieth of a second to make, so this is imported for a file that is there.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic

_Number = Annotated[float, pydantic.Field(strict=True, allow_inf_nan=False)] | None
_Share = Annotated[float, pydantic.Field(strict=True, ge=0, le=1)] | None
_Count = Annotated[int, pydantic.Field(strict=True, ge=0)]
_Text = Annotated[str, pydantic.Field(strict=True)]


class _Record(pydantic.BaseModel):
    """Part of a file; keys that are not read may have any value."""


class _Figure(_Record):
    """Figure with its interval, and the figures nested in it."""

    model_config = pydantic.ConfigDict(extra="allow")
    value: _Number = None
    low: _Number = None
    high: _Number = None
    undefined: _Text = ""
    interval_undefined: _Text | None = None

    @pydantic.model_validator(mode="after")
    def _check_within(self) -> Self:
        _check_figures(self.model_extra or {})
        return self


class _Class(_Record):
    regions: _Count
    hit: _Count | None = None
    sensitivity_at: dict[str, _Share] | None = None


class _Froc(_Record):
    score: _Number = None
    low: _Number = None
    high: _Number = None
    undefined: _Text = ""
    interval_undefined: _Text | None = None
    sensitivity_at: dict[str, _Share] = {}
    sensitivity_interval_at: dict[str, tuple[_Share, _Share] | None] = {}
    threshold_at: dict[str, _Number] | None = None
    by_class: dict[str, _Class] | None = None


class _Counts(_Record):
    slides: _Count
    tumour_slides: _Count
    slides_without_score: _Count | None = None


class _Found(_Record):
    lesions: _Count | None = None
    lesions_hit: _Count | None = None
    lesions_hit_at: dict[str, _Count] = {}
    false_positives_at: dict[str, _Count] = {}


class _JudgedSlide(_Record):
    slide: _Text
    label: _Text | None = None
    froc: dict[str, _Found] | None = None


class _Unscored(_Record):
    text: _Text = ""


class _Exclusions(_Record):
    all: list[_Text] | None = None
    froc: list[_Text] | None = None


class _Classifier(_Record):
    slide_auc: _Figure


class _Group(_Record):
    model_config = pydantic.ConfigDict(extra="allow")
    froc: dict[str, _Froc]
    counts: _Counts | None = None
    slide_classifier: _Classifier | None = None

    @pydantic.model_validator(mode="after")
    def _check_within(self) -> Self:
        _check_figures(self.model_extra or {})
        return self


class Evaluation(_Record):
    """Content of ``evaluation.json``, as far as it is read."""

    model_config = pydantic.ConfigDict(extra="allow")
    slides: list[_JudgedSlide] = []
    froc: dict[str, _Froc | None] | None = None
    counts: dict[str, Any] | None = None
    unscored: _Unscored | None = None
    exclusions: _Exclusions | None = None
    excluded: list[_JudgedSlide] = []
    notes: list[_Text] | None = None
    group_by: _Text | None = None
    groups: dict[str, _Group] | None = None
    slide_classifier: _Classifier | None = None

    @pydantic.model_validator(mode="after")
    def _check_within(self) -> Self:
        _check_figures(self.model_extra or {})
        if self.groups and self.group_by is None:
            raise ValueError("it has groups, but does not state by what")
        return self


def _check_figures(values: dict[str, Any]) -> None:
    for value in values.values():
        if isinstance(value, dict) and "value" in value:
            _Figure.model_validate(value)


class _Compared(_Record):
    p_slide: _Share = None
    q_slide: _Share = None


class _Reference(_Record):
    slides: _Count
    smallest_p: Annotated[float, pydantic.Field(strict=True, ge=0, le=1)]


class _Alarms(_Record):
    text: _Text


class Significance(_Record):
    """Content of ``significance.json``, as far as it is read."""

    slides: dict[str, _Compared]
    warnings: list[_Text]
    reference: _Reference
    false_alarms: list[_Alarms]
