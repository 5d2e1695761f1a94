"""A detector whose scores say where a window lies, and runs that hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import wsiad
from wsiad.core.files import write_json
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, DetectorOptions, FitReport, InputSpec, State
from wsiad.runs.calibration import Calibration
from wsiad.runs.compatibility import PREPARATION
from wsiad.runs.run import RunFolder, RunRecord
from wsiad.stain.profile import reference_profile
from wsiad.tiling.preparation import Preparation


class Channel(Detector):
    """Scores a place by the mean of one colour channel: 0 red, 1 green."""

    def fit(self, tiles, context):
        return FitReport("fitted")

    def score_places(self, tiles):
        places = int(self.places)
        part = tiles.shape[1] // places
        blocks = tiles[..., self.channel].reshape(len(tiles), places, part, places, part)
        return blocks.mean(axis=(2, 4), dtype=np.float64).astype(np.float32)

    def state(self):
        tensors = {"at": torch.tensor([self.channel, self.places])}
        return State(tensors, {})

    def load_state(self, state, device):
        self.channel, self.places = (int(v) for v in state.tensors["at"])


def use_channel(monkeypatch):
    """Make ``channel`` a known detector."""
    whole = registry.load
    monkeypatch.setattr(registry, "load", lambda n: Channel if n == "channel" else whole(n))


def score_channel(folder, slides, **values):
    """Score slides by a run of ``channel``, ``folder/run``, into ``folder/out``, and return it."""
    with pytest.MonkeyPatch.context() as patch:
        use_channel(patch)
        run = make_run(folder / "run")
        wsiad.heatmap(run=run, slides=slides, out=folder / "out", quiet=True, **values)
    return folder / "out"


def make_run(
    path: Path, *, size=32, mpp=0.5, channel=0, places=1, slides=None, **preparation
) -> Path:
    """Write a complete run of the channel detector, calibrated to scores of 0 to 255."""
    values = {
        "tissue": {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False},
        "min_coverage": 0.01,
    }
    options = Preparation.model_validate(
        {"mpp": mpp, "tile": size, "stain": {"method": "none"}, **values, **preparation}
    )
    detector = Channel(DetectorOptions(), InputSpec(size, mpp))
    detector.channel, detector.places = channel, places
    folder = RunFolder.create(path)
    folder.save_detector(detector, name="channel")
    folder.write_calibration(
        Calibration.of(np.linspace(0, 100, 1001, dtype=np.float32), n_slides=3)
    )
    target = reference_profile(options.stain.method).to_dict()
    write_json(
        path / PREPARATION,
        {"preparation": options.model_dump(mode="json"), "stain_target": target, "digest": ""},
    )
    folder.finish(
        RunRecord(
            detector="channel",
            seed=0,
            device="cpu",
            ended_by="fitted",
            seconds=0.0,
            stores={"s": "sha256:0"},
            slides=slides or {},
        )
    )
    return path
