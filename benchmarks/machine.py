"""The machine that a benchmark runs on, whether others use it, and processor time.

Times of a busy machine vary; the processor time of a process and of those that it has started
varies less, and ratios of what ran in turn least. Each benchmark therefore says first where it
runs, and relates what it measured in one run.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_BUSY = 0.5
"""Load of the last minute, without the benchmark's own, from which a machine counts as busy."""


def print_machine() -> None:
    """Print the processor, its number of cores, and whether the machine was busy before."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    state = "busy" if load >= _BUSY else "at rest" if load < _BUSY else "load unknown"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"machine: {processor()}, {os.cpu_count()} cores ({usable} usable), "
        f"load {load:.1f} at the start: {state}",
        flush=True,
    )


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.split(":", 1) for line in reversed(lines) if ":" in line]
    facts = {key.strip(): value.strip() for key, value in pairs}
    name = facts.get("model name") or platform.machine()
    kind = [facts[key] for key in ("cpu family", "model") if facts.get(key)]
    return f"{name} (family {', model '.join(kind)})" if kind else name


def processor_seconds() -> float:
    """Return the processor time of this process and of the running ones that it has started.

    OpenSlide works in such a process; its time is counted in steps of 10 ms.
    """
    return time.process_time() + sum(_seconds(child) for child in _children(os.getpid()))


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:  # it has ended, or there is no such file system
        return found
    return [one for child in found for one in (child, *_children(child))]


def _seconds(process: int) -> float:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
