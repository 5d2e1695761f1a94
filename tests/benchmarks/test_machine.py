"""What every benchmark says of its machine, and peers that are not there."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import modules of the benchmarks, which are not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: __import__(name)


@pytest.mark.parametrize(
    ("load", "state"), [(0.1, "at rest"), (0.5, "busy"), (7.25, "busy"), (float("nan"), "unknown")]
)
def test_the_processor_and_whether_others_use_it_are_said(module, monkeypatch, capsys, load, state):
    machine = module("machine")
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    machine.print_machine()
    said = capsys.readouterr().out
    assert said.startswith(f"machine: {machine.processor()}, ")
    assert said.strip().endswith(state)
    assert machine.processor().strip()


@pytest.mark.skipif(sys.platform != "linux", reason="the files of processes are Linux's")
def test_processes_that_were_started_count(module):
    machine = module("machine")
    code = "print('x' if sum(range(10**6)) else '', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        spent = machine._seconds(child.pid)
        assert spent > 0
        assert child.pid in machine._children(machine.os.getpid())
        before = time.process_time()
        assert machine.processor_seconds() >= before + spent
        child.communicate(b"\n")
    assert machine._seconds(child.pid) == 0


def test_a_peer_that_is_not_there_is_left_out_with_the_reason(module, monkeypatch, capsys):
    peers = module("peers")
    for name, _, _ in peers.NORMALISERS.values():
        monkeypatch.setitem(sys.modules, name, None)
    assert peers.normalisers() == {}
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": left out (")[0] for line in said] == list(peers.NORMALISERS)
    assert all("torchstain" in line or "staintools" in line for line in said)


def test_colours_are_counted_once(module):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1, 0, :2] = (255, 255, 255)
    pixels[0, 3, 3] = (0, 0, 1)
    assert module("tile").number_of_colours(pixels) == 3
