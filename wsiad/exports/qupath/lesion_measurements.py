"""More measurements of regions that are already written for QuPath."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsiad.core.errors import ExportError
from wsiad.core.files import write_text


def add_measurements(path: Path, measurements: Sequence[Mapping[str, float]]) -> None:
    """Add measurements to the annotations of a GeoJSON file, or replace those of their names.

    Parameters
    ----------
    path : Path
        Feature collection that :func:`wsiad.exports.qupath.write_lesions` wrote; written
        again whole or not at all. Nothing but the measurements changes.
    measurements : sequence of mapping of str to float
        Of each annotation, in the file's order.

    Raises
    ------
    ExportError
        The file is missing or damaged, holds another number of annotations, or a value is
        not a finite number.
    """
    if not all(math.isfinite(value) for each in measurements for value in each.values()):
        raise ExportError("a measurement is not a finite number", subject=str(path))
    try:
        collection = json.loads(path.read_text(encoding="utf-8"))
        features = collection.pop("features")
        known = [feature["properties"]["measurements"] for feature in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(
            f"does not hold regions as wsiad writes them: {error}",
            subject=str(path),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        ) from error
    if len(known) != len(measurements):
        raise ExportError(
            f"holds {len(known)} regions, and there are measurements of {len(measurements)}",
            subject=str(path),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        )
    for feature, there, new in zip(features, known, measurements, strict=True):
        feature["properties"]["measurements"] = {**there, **new}
    head = json.dumps(collection, ensure_ascii=False, separators=(",", ":"))[:-1]
    texts = [json.dumps(f, ensure_ascii=False, separators=(",", ":")) for f in features]
    body = "".join(f"{',' if number else ''}\n{text}" for number, text in enumerate(texts))
    write_text(path, f'{head},"features":[{body}\n]}}\n')
