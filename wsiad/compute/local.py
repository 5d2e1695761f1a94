"""Run workers on this machine: start, count and replace them, and stop them with the run."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distributed import Client, LocalCluster, SchedulerPlugin
from distributed.worker_memory import parse_memory_limit

from wsiad.compute.jobs import CLOSE_SECONDS, THREADS, close_client
from wsiad.compute.local_worker import MEMORY_EXIT
from wsiad.core.errors import ClusterError
from wsiad.core.signals import begun, postponed

logger = logging.getLogger(__name__)

EARLY_ENDS = 3
"""Number of workers in a row that may exit while they are starting. Then no other is started,
because the next would exit in the same way."""

GONE_SECONDS = 20.0
"""Seconds after which a worker that the scheduler has dropped does not come back; the scheduler
has waited for minutes before."""

_MOMENT_SECONDS = 1.0


class _Arrivals(SchedulerPlugin):  # type: ignore[misc]
    """Records the names of the workers that have connected to a scheduler."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Record a worker, given its address."""
        self.names.add(str(scheduler.workers[worker].name))


@dataclass(slots=True)
class _Place:
    """Slot in which one worker after the other runs.

    The last ``early`` workers exited while they were starting. The scheduler listed the current one
    at ``seen`` (seconds, monotonic).
    """

    process: subprocess.Popen[bytes]
    name: str
    early: int = 0
    given_up: bool = False
    seen: float = 0.0


class LocalWorkers:
    """Processes on this machine that work for a scheduler in this process.

    dask's own local cluster gives up at the first worker that does not start, and does not
    replace it.

    Parameters
    ----------
    cluster : LocalCluster
        Cluster without workers of its own.
    arrivals : _Arrivals
        Plugin of the cluster's scheduler.
    most : int
        Maximum number of workers.
    tasks : int
        Number of slides; no more workers than slides are started.
    folder : str
        Folder for dask's own files.
    """

    def __init__(
        self, cluster: LocalCluster, arrivals: _Arrivals, *, most: int, tasks: int, folder: str
    ) -> None:
        self._scheduler = cluster.scheduler
        self._arrivals = arrivals
        self._most, self._folder = most, folder
        self._share = parse_memory_limit("auto", 1, min(most, tasks), logger=logger) or 0
        self._started = 0
        self._places: list[_Place] = []

    def watch(self, waiting: int) -> int:
        """Replace workers that have exited, and start more if more slides wait.

        Returns
        -------
        int
            Number of workers that accept slides.

        Raises
        ------
        ClusterError
            Several workers in a row exited while they were starting, and none is left.
        """
        while len(self._places) < min(self._most, waiting):
            self._places.append(_Place(*self._start(len(self._places))))
        came, code = set(self._arrivals.names), 0  # before those who are there are asked for
        states = list(self._scheduler.workers.values())
        lost = came - {str(state.name) for state in states}
        for place in self._places:
            if not place.given_up and (ended := self._ended(place, place.name in lost)) is not None:
                code = ended
                self._replace(place, ended)
        if all(place.given_up for place in self._places) and self._places:
            raise ClusterError(
                f"{EARLY_ENDS} workers in a row exited while they were starting, the last "
                f"{_described(code)}",
                subject="--workers",
                remedy="See what they printed above. If the memory is too small, set fewer "
                "--workers. Then run the same command again to continue.",
            )
        return sum(state.nthreads for state in states if state.status.name == "running")

    def close(self) -> None:
        """Stop all workers; slides that they have not finished are lost."""
        for place in self._places:
            place.process.kill()
        for place in self._places:
            with contextlib.suppress(subprocess.TimeoutExpired):  # waits for a disk that is gone
                place.process.wait(CLOSE_SECONDS)
            _let_go(place.process)

    def _ended(self, place: _Place, lost: bool) -> int | None:
        """Return the exit code of a slot's worker if it has exited; kill a lost one that runs."""
        now = time.monotonic()
        if not lost:
            place.seen = now
        elif now - place.seen > GONE_SECONDS:
            place.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # The scheduler knows of an end a moment before the system does.
            place.process.wait(_MOMENT_SECONDS if lost else 0)
        return place.process.returncode

    def _replace(self, place: _Place, code: int) -> None:
        """Start another worker in the slot of one that has exited."""
        came = place.name in self._arrivals.names
        place.early = 0 if came else place.early + 1
        place.given_up = place.early >= EARLY_ENDS
        logger.warning(
            "a worker %s %s; %s",
            "was lost:" if came else "exited while it was starting,",
            _described(code),
            f"so did {EARLY_ENDS} in a row: no other worker replaces it"
            if place.given_up
            else "another worker replaces it",
        )
        if not place.given_up:
            _let_go(place.process)
            place.process, place.name = self._start(self._places.index(place))

    def _start(self, slot: int) -> tuple[subprocess.Popen[bytes], str]:
        self._started += 1
        name = f"local-{self._started}-{slot}"
        given = [self._scheduler.address, name, str(self._share), self._folder]
        with postponed(), _sigint_blocked():
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "wsiad.compute.local_worker", *given],
                stdin=subprocess.PIPE,  # closes when this process ends, however it does
                env=os.environ
                | dict.fromkeys(THREADS, "1")
                | {"PYTHONPATH": os.pathsep.join(sys.path)},  # it finds what this process finds
            )
        return process, name


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Let processes that are started now ignore Ctrl-C; the process that starts them stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_go(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _described(code: int) -> str:
    if code == MEMORY_EXIT:
        return "at its share of the memory"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"killed by {names.get(-code, f'signal {-code}')}"
    return f"with exit code {code}"


@contextlib.contextmanager
def local_workers(most: int, tasks: int) -> Iterator[tuple[Any, Callable[[int], int]]]:
    """Yield a dask client of local workers, and the function that keeps and counts them.

    Parameters
    ----------
    most : int
        Maximum number of workers at a time.
    tasks : int
        Number of slides at the beginning.
    """
    arrivals = _Arrivals()
    cluster = functools.partial(
        LocalCluster,
        n_workers=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
        scheduler_kwargs={"plugins": [arrivals]},
    )
    with (
        tempfile.TemporaryDirectory(prefix="wsiad-", ignore_cleanup_errors=True) as folder,
        begun(cluster, lambda made: made.close(timeout=CLOSE_SECONDS)) as made,
        begun(functools.partial(Client, made), close_client) as client,
        begun(
            lambda: LocalWorkers(made, arrivals, most=most, tasks=tasks, folder=folder),
            LocalWorkers.close,
        ) as workers,
    ):
        yield client, workers.watch
