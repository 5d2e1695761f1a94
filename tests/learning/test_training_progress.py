"""The progress of a training: bound, time left, losses and rate, on a terminal and in a log."""

from pathlib import Path

import numpy as np
import pytest
import torch

import wsiad
from wsiad.core import terminal
from wsiad.learning import training_progress
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.loop import Training
from wsiad.learning.training_options import LoopOptions
from wsiad.learning.training_progress import Shown, TrainingProgress
from wsiad.store.dataset import ArrayTiles


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(terminal, "time", found)
    monkeypatch.setattr(training_progress, "time", found)
    return found


@pytest.mark.parametrize(
    ("values", "left", "bound"),
    [
        ({"steps_per_second": 0.5}, 120, "max_steps"),
        ({"steps_per_second": 0.5, "max_minutes": 3, "seconds": 80}, 100, "max_minutes"),
        ({"steps_per_second": 0.5, "max_minutes": 9, "seconds": 80}, 120, "max_steps"),
        ({"max_minutes": 1, "seconds": 90}, 0, "max_minutes"),
        ({}, None, "max_steps"),
    ],
)
def test_the_nearer_bound_tells_the_time_left(values, left, bound):
    assert Shown(100, step=40, **values).left() == (left, bound)


def test_the_line_has_bound_losses_and_rate_and_fits_a_terminal():
    shown = Shown(
        100_000, step=12_000, steps_per_second=0.62, seconds=600.0, max_minutes=96.8,
        stops_early=True, stage="64 px", loss=0.81234, held_out=0.90123, best_step=11_000,
    )  # fmt: skip
    assert shown.line() == (
        "train: step 12000 of at most 100000, at most 1:26:48 left (max_minutes), 64 px, "
        "loss 0.8123, held out 0.9012 (best at step 11000), 0.62 step/s"
    )
    brief = shown.line(columns=80)
    assert brief.startswith(
        "train: 12000/100000, 1:26:48 left (time), 64 px, loss 0.8123, held out"
    )
    assert len(brief) == 79
    assert Shown(30, step=3).line(columns=80) == "train: step 3 of 30, ? left (max_steps)"


def test_a_log_has_complete_lines(capsys, clock):
    with TrainingProgress(10, budget=Budget(max_minutes=5), step=2, seconds=60) as progress:
        clock.now += 4
        progress.took(loss=2.0)
        clock.now += 36
        progress.took(loss=1.5, held_out=1.75, best_step=4)
    # Two steps in 40 s are 0.05 step/s, so six more take 120 s; of 300 s, 100 s are over.
    assert capsys.readouterr().err == (
        "train: step 4 of 10, 02:00 left (max_steps), loss 1.5, held out 1.75 (best at step 4), "
        "0.05 step/s\n"
    )


def test_the_rate_is_that_of_the_last_minute(clock):
    with TrainingProgress(10_000, quiet=True) as progress:
        for seconds in [0.1] * 600 + [2.0] * 60:
            clock.now += seconds
            progress.took()
    assert progress.shown.steps_per_second == pytest.approx(0.5, rel=0.05)
    assert progress.shown.step == 660


def test_a_terminal_shows_the_line(capsys, monkeypatch, clock):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with TrainingProgress(4) as progress:
        for loss in (2.0, 1.0):
            clock.now += 1
            progress.took(loss=loss)
    shown = capsys.readouterr().err
    assert "train: step 2 of 4, 00:02 left (max_steps), loss 1, 1 step/s" in shown
    assert max(len(part) for part in shown.replace("\n", "\r").split("\r")) < 80


def test_every_training_loop_shows_it():
    """A method that takes optimiser steps in a loop of its own shows them in the same way."""
    root = Path(wsiad.__file__).parent
    found = {
        path.name: path.read_text(encoding="utf-8")
        for room in ("detectors", "learning")
        for path in (root / room).rglob("*.py")
    }
    loops = {name for name, text in found.items() if "optimiser.step()" in text}
    assert loops == {"one_class.py", "mil.py", "_heads.py", "checkpoint.py"}
    for name in loops - {"checkpoint.py"} | {"loop.py"}:  # the loop takes its step there
        assert "progress.took(" in found[name], name


def test_the_loop_reports_its_losses(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(TrainingProgress, "__exit__", lambda self, *_: ended.append(self.shown))
    tiles = ArrayTiles(np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8))
    module = torch.nn.Linear(1, 1)

    def loss(windows):
        return module(windows.float().mean((1, 2, 3))[:, None] / 255)[:, 0] ** 2 + 1

    Training(
        module,
        loss,
        tiles=HealthyTiles(tiles, tiles),
        size=8,
        options=LoopOptions(batch=4, val_interval=2, log_interval=1, max_steps=5, keep="last"),
        context=FitContext(
            seed=0, device=torch.device("cpu"), folder=tmp_path, budget=Budget(max_minutes=7),
            quiet=True,
        ),
        identity={},
    ).run()  # fmt: skip
    (shown,) = ended
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    losses = [(row.split(",")[0], *row.split(",")[3:]) for row in rows]
    assert (shown.limit, shown.step, shown.max_minutes) == (5, 5, 7)
    assert shown.stops_early is False
    assert next(loss for step, loss, _ in losses if step == "5") == str(shown.loss)
    assert [held_out for step, _, held_out in losses if step == "4"] == [str(shown.held_out)]
