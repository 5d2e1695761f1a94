"""Word what a reader of results must know: warnings that come first, and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from wsiad.core.config import differences
from wsiad.core.terminal import by_number, counted
from wsiad.heatmaps.heatmap_task import DetectionOptions, HeatmapRow
from wsiad.heatmaps.space_options import SpaceOptions
from wsiad.results.evaluated_truth import Since
from wsiad.results.identity import ALONE_BECAUSE, DERIVED, STANDARDISED_BY
from wsiad.slides.slide_table import FAILED, OK, UNUSABLE, partly_damaged, partly_masked

if TYPE_CHECKING:
    from wsiad.runs.calibration import Calibration
    from wsiad.runs.run import RunRecord

_OTHER_SCORES = {"scan": "scan scores", "top_k_mean": "means of the k highest scores"}
_FEW_WINDOWS = 1000  # the 99.9 % quantile, the last that the colour scale names, is one of them


def not_assessed(rows: list[HeatmapRow]) -> Iterator[str]:
    """Yield warnings about everything that was not scored."""
    if names := [row.slide for row in rows if row.status == UNUSABLE]:
        yield (
            f"{_were(len(names))} not assessed at all: {', '.join(names)}. The absence of findings "
            "there means nothing. The reasons are below."
        )
    if damaged := [row.slide for row in partly_damaged(rows)]:
        yield (
            f"{_were(len(damaged))} not assessed where the file is damaged: {', '.join(damaged)}. "
            "These parts are hatched in the pictures."
        )
    if masked := [row.slide for row in partly_masked(rows)]:
        yield (
            f"{counted(len(masked), 'slide')} may have tissue outside of the tissue mask, which "
            f"was not assessed: {', '.join(masked)}. The notes on each say how much, and what to "
            "do."
        )
    if some := [row for row in rows if row.unusable and row.status != UNUSABLE]:
        windows = sum(row.unusable for row in some)
        yield (
            f"{counted(windows, 'window', ',')} of {counted(len(some), 'slide')} "
            f"{by_number(windows, 'was', 'were')} not assessed because of the quality thresholds, "
            f"and {by_number(windows, 'is', 'are')} hatched in the pictures."
        )


def _were(slides: int) -> str:
    return "1 slide was" if slides == 1 else f"{slides} slides were"


def evaluation_warnings(
    evaluated: dict[str, Any] | None,
    rows: list[HeatmapRow],
    facts: Mapping[str, Any],
    *,
    since: Mapping[str, Since] | None = None,
) -> Iterator[str]:
    """Yield warnings about slides that the figures do not cover although nobody excluded them.

    Parameters
    ----------
    evaluated : dict or None
        Content of ``evaluation.json``.
    rows : list of HeatmapRow
        Slides of the results.
    facts : mapping
        Record of the results.
    since : mapping of str to str, optional
        What is known of the detections of each evaluated slide since the evaluation.
    """
    if not evaluated:
        return
    if said := (evaluated.get("unscored") or {}).get("text"):
        yield f"Evaluation: {said}."
    was = (evaluated.get("made_by") or {}).get(DERIVED)
    now = facts.get(DERIVED) or {}
    if isinstance(was, dict) and (told := _evaluated_otherwise(evaluated, was, now)):
        yield (
            f"Detections or slide scores were derived again since the evaluation ({told}). Run "
            "wsiad evaluate again."
        )
    if changed := [name for name, answer in (since or {}).items() if answer == "changed"]:
        yield (
            f"The detections of {counted(len(changed), 'slide')} have changed since "
            f"the evaluation ({', '.join(changed)}). Run wsiad evaluate again."
        )
    if unknown := [name for name, answer in (since or {}).items() if answer == "unknown"]:
        yield (
            f"It cannot be told if the detections of "
            f"{counted(len(unknown), 'slide')} are those that were evaluated "
            f"({', '.join(unknown)}). "
            "Run wsiad evaluate again."
        )
    known = {one["slide"] for one in evaluated.get("slides", [])}
    known |= set((evaluated.get("exclusions") or {}).get("all") or [])
    if missing := [row.slide for row in rows if row.status != FAILED and row.slide not in known]:
        yield (
            f"{_were(len(missing))} scored after the evaluation and "
            f"{by_number(len(missing), 'is', 'are')} in none of its figures "
            f"({', '.join(missing)}). Run wsiad evaluate again."
        )


def _evaluated_otherwise(
    evaluated: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
    """Return the differing options that the figures depend on, as text.

    Figures do not depend on the options of regions and evidence.
    """
    keys = {*DetectionOptions.model_fields, *SpaceOptions.model_fields, STANDARDISED_BY}
    if ((evaluated.get("made_by") or {}).get("config") or {}).get("slide_score") == "top_k_mean":
        keys.add("top_k")
    first, second = ({k: v for k, v in one.items() if k in keys} for one in (was, now))
    return ", ".join(differences(first, second))


def significance_warnings(found: dict[str, Any] | None, rows: list[HeatmapRow]) -> Iterator[str]:
    """Yield what weakens the p-values, and the slides without a p-value."""
    if not found:
        return
    yield from found["warnings"]
    if missing := [
        row.slide for row in rows if row.status == OK and row.slide not in found["slides"]
    ]:
        yield (
            f"{_were(len(missing))} scored after the p-values were computed and "
            f"{by_number(len(missing), 'has', 'have')} none "
            f"({', '.join(missing)}). Run wsiad significance again."
        )


def space_notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the unit of regions and scan scores from neighbourhoods, or why there are none."""
    if why := facts.get(ALONE_BECAUSE):
        yield f"{str(why)[:1].upper()}{str(why)[1:]}."
    if scales := (facts.get(DERIVED) or {}).get("scales_um"):
        yield (
            "Regions, detections and scan scores come from neighbourhoods of windows with radii of "
            f"{', '.join(f'{scale:g}' for scale in scales)} µm{_averaged(facts)}. Their scores are "
            f"standard deviations above the means of such neighbourhoods on {_healthy(facts)}, and "
            "percentiles of regions are shares of healthy neighbourhoods. They cannot be compared "
            "with Max, Top-k, Percentile and the colours of heatmaps, which are of single windows: "
            "a region need not contain a window that stands out."
        )


def _averaged(facts: Mapping[str, Any]) -> str:
    if facts[DERIVED].get("mean_of") != "scores":
        return ""
    return ", averaged by the scores of the windows in place of their percentiles"


def _healthy(facts: Mapping[str, Any]) -> str:
    by = (facts.get(DERIVED) or {}).get(STANDARDISED_BY)
    return f"{str(by).split(',')[0]} of other results" if by else "healthy slides of the run"


def significance_notes(found: dict[str, Any] | None) -> Iterator[str]:
    """Yield what the p-values compare, and their measured false alarms."""
    if not found:
        return
    yield (
        "P-values compare slides with "
        f"{found['reference']['slides']} held-out healthy slides; none can "
        f"be below {found['reference']['smallest_p']:.3g}. They are valid for slides that could "
        "have been among these: same scanner, laboratory and tissue. See significance.json."
    )
    if kind := _OTHER_SCORES.get(found.get("slide_score", "")):
        yield f"P-values of slides compare {kind}, not the highest scores."
    if not found["false_alarms"]:
        yield "The stated rates of false alarms were not checked on other healthy slides."
    for one in found["false_alarms"]:
        yield f"False alarms, measured: {one['text']} that were used for nothing else."


def general_notes(rows: list[HeatmapRow], record: RunRecord | None) -> Iterator[str]:
    """Yield what a score is, what the detector learnt from, and which stains stood in."""
    yield (
        "An anomaly score measures how different a window is from the healthy training tissue. "
        "It is neither a diagnosis nor a probability."
    )
    learnt = record.notes.get("anomalies") if record else None
    if isinstance(learnt, dict):
        labels_of = learnt.get("labels_of")
        noun = "reference tile" if labels_of == "reference" else "anomalous tile"
        what = "the labels" if labels_of == "slides" else counted(learnt["tiles"], noun, ",")
        yield (
            f"The detector was also trained on {what} of "
            f"{counted(len(learnt['slides']), 'slide')}: {', '.join(learnt['types'])}. "
            + (
                "None of them counts as anomalous."
                if labels_of == "reference"
                else "Figures on these types do not show how well it finds other types."
            )
        )
        if seen := sorted({row.slide for row in rows} & set(learnt["slides"])):
            yield f"The detector was trained on slides that are scored here: {', '.join(seen)}."
    if fallbacks := [row.slide for row in rows if "stains of the reference" in row.reason]:
        yield f"{_were(len(fallbacks))} normalised with the reference stains (see each)."


def calibration_warnings(
    record: RunRecord | None, calibration: Calibration | None
) -> Iterator[str]:
    """Yield what weakens percentiles and colours: few healthy windows, one slide, shared slides."""
    if calibration and (calibration.n_windows < _FEW_WINDOWS or calibration.n_slides == 1):
        few = "only " if calibration.n_windows < _FEW_WINDOWS else ""
        yield (
            f"Percentiles and colours are based on {few}"
            f"{counted(calibration.n_windows, 'healthy window')} of "
            f"{counted(calibration.n_slides, 'slide')}, so percentiles "
            f"above {100 * (1 - 1 / calibration.n_windows):.1f} % are uncertain"
            + (
                ", and how slides differ from each other is not known."
                if calibration.n_slides == 1
                else "."
            )
        )
    if record and "split by tile" in record.split:
        yield f"The calibration is optimistic: {record.split}."
