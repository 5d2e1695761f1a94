"""The benchmark of damaged inputs: a few of each kind, and that it sees what it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

PLANTED = """
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import fuzz
from wsiad.core.errors import InputError

fuzz.LIMIT_SECONDS = 5

def planted(fault):
    def trial(tree, out, damaged):
        return fault() if damaged.read_bytes() != b"1,2,3,4,5,6,7,8" else 0
    return trial

def refused(): raise InputError("is bad", subject="a")
def told():
    print("Traceback (most recent call last):"); return 1
def batch(): raise fuzz.Broken("batch", "another slide")
def hang():
    while True: pass

faults = dict(read=lambda: 0, refused=refused, traceback=lambda: 1 / 0, told=told, hang=hang,
              silent=lambda: 1, crash=os.abort, memory=lambda: bytearray(1 << 40), batch=batch)
with tempfile.TemporaryDirectory() as folder:
    base = Path(folder) / "base"
    fuzz._write(base / "tree" / "a.csv", "1,2,3,4,5,6,7,8")
    for name, fault in faults.items():
        kind = fuzz.Kind("tree", ("*.csv",), planted(fault))
        numbers = [(n, f"{{name}} {{n}}") for n in range(2)]
        verdicts = [v for _, v, _, _ in fuzz.verdicts(kind, base, Path(folder) / name, numbers)]
        print(name, *verdicts)
"""


def run(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.slow
def test_each_way_to_fail_has_its_verdict():
    ended = run("-c", PLANTED.format(benchmarks=str(BENCHMARKS)))
    found = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    expected = {word: word for word in ("read", "refused", "traceback", "silent", "hang", "crash")}
    expected |= {"batch": "batch", "told": "traceback", "memory": "traceback"}
    assert found == {name: f"{word} {word}" for name, word in expected.items()}, ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.slow
def test_damaged_inputs_of_every_kind_are_read_or_refused_in_one_line():
    ended = run(str(BENCHMARKS / "fuzz.py"), "--inputs", "110", "--seed", "0")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    name, inputs, _read, refused, *faults = ended.stdout.splitlines()[-1].split()
    assert name == "all"
    assert int(inputs) > 100
    assert int(refused) > 40  # the damage is not all beside the point
    assert set(faults) == {"0"}
