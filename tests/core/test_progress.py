"""Progress: lines of a log, a bar on a terminal, and what was done before."""

import re

import pytest

from wsiad.core import terminal as module
from wsiad.core.terminal import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_log_has_lines_with_rate_and_eta(capsys, clock):
    with Progress("train", total=100, unit="step") as shown:
        clock.now += 10
        shown.update(5)  # too soon for a line
        clock.now += 30
        shown.update(35, note="loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(r"^train:  40% 40/100 \[00:40<01:00,  1\.00 step/s\] loss 1\.5$", lines[0])


def test_what_was_done_before_counts_but_not_for_the_rate(capsys, clock):
    with Progress("train", total=100, unit="step") as shown:
        shown.begin_at(60)
        clock.now += 40
        shown.update(20)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"80/100 \[00:40<00:40,  2\.00s/ step\]", line)


def test_nothing_new_is_no_line(capsys, clock):
    with Progress("train", total=100) as shown:
        shown.begin_at(60)
    with Progress("train", total=100, quiet=True) as shown:
        clock.now += 100
        shown.update(5)
        shown.message("unheard")
    assert capsys.readouterr().err == ""


def test_a_bar_begins_where_the_work_does(capsys, monkeypatch, clock):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("train", total=100, unit="step") as shown:
        shown.begin_at(60)
        assert (shown._bar.n, shown._bar.initial) == (60, 60)
        shown.update(20)
        shown.message("heard")
        assert shown._bar.n == 80
    assert "heard" in capsys.readouterr().err
