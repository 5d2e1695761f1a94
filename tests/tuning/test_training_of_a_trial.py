"""The configuration that trains the setting of a trial."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from wsiad.core.config import build
from wsiad.tuning.space import SearchOptions
from wsiad.tuning.trials import Trial
from wsiad.tuning.tuning_report import _training

TILES = SimpleNamespace(at=lambda params: SimpleNamespace(learns=False, healthy=Path("h")))


@pytest.mark.parametrize(
    ("task", "left"), [("none", {"task": "none"}), ("noise", {"task": "noise", "noise": 0.3})]
)
def test_options_that_did_nothing_are_left_out(task, left, tmp_path):
    search = build(
        SearchOptions,
        {
            "store": "h",
            "anomalies": "a",
            "out": tmp_path,
            "detector": "reconstruction",
            "space": {"task": ["none", "noise"], "noise": [0.1, 0.3]},
            "options": {"latent_channels": 4},
        },
    )
    trial = Trial(number=1, params={"task": task, "noise": 0.3})
    found = _training(search, trial, out=tmp_path / "run", tiles=TILES)
    assert found.options == {"latent_channels": 4, **left}
