"""In what results differ from those that were asked for: run and options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsiad.core.config import Config, differences, read_yaml
from wsiad.core.errors import ConfigError
from wsiad.heatmaps.heatmap_task import HeatmapOptions

READING = ("slide_mpp", "override_mpp", "allow_upsampling", "quality")
"""Fields of the configuration that change what windows see, beside the options of scoring."""


def difference(results: Path, facts: Mapping[str, Any], config: Config) -> str:
    """Say which options of results are others than those asked for, with both values.

    Parameters
    ----------
    results : Path
        Folder of results.
    facts : mapping
        Its ``run.json``.
    config : HeatmapConfig
        What was asked for.
    """
    try:
        was = read_yaml(results / "config.yaml")
    except ConfigError:
        return "its config.yaml does not say which"
    now = config.model_dump(mode="json")
    keys = [key for key in (*HeatmapOptions.model_fields, *READING) if key in was]
    told = differences({key: was[key] for key in keys}, {key: now.get(key) for key in keys})
    before, after = (Path(str(run)).absolute() for run in (facts.get("run"), now["run"]))
    if before != after:
        told.append(f"run {before} (now {after})")
    return ", ".join(told) or f"the run {after} was trained anew since"
