"""Jobs of a batch cluster while they run: started, counted, replaced when they end."""

from __future__ import annotations

import getpass
import logging
import math
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from wsiad.compute.jobs import JobsConfig, cluster_class, job_options
from wsiad.compute.lifetimes import begun
from wsiad.core.errors import ClusterError

logger = logging.getLogger(__name__)

GONE_SECONDS = 20.0
"""A job whose workers have all been away for so long has ended: a worker that was killed for
memory is started anew by its job within seconds."""

EARLY_ENDS = 3
"""After so many jobs that ended before they had a worker, and none that has one, it is given up:
the next would end so too."""

_LOOK_SECONDS = 2.0
_QUEUE_SECONDS = 10.0


class Jobs:
    """Jobs that work for one dask scheduler, in this process.

    Parameters
    ----------
    config : JobsConfig
    tasks : int
        Slides to work on: never more jobs than they need are asked for.

    Raises
    ------
    ClusterError
        dask-jobqueue or the command that submits jobs is not at hand.
    """

    def __init__(self, config: JobsConfig, tasks: int) -> None:
        self._refused: list[str] = []
        cluster = cluster_class(config.scheduler)
        command = cluster.job_cls.submit_command
        if shutil.which(command) is None:
            raise ClusterError(
                f"its command {command!r} is not on this machine",
                subject=config.scheduler,
                remedy="Run this where jobs are submitted from, or use --workers.",
            )
        scheduler: dict[str, Any] = {
            "dashboard": False,
            "dashboard_address": ":0",
            "port": config.scheduler_port,
        }
        if config.scheduler_interface:
            scheduler["interface"] = config.scheduler_interface
        self.cluster = cluster(
            job_cls=_reporting(cluster.job_cls, self._refused),
            scheduler_options=scheduler,
            **job_options(config),
        )
        self._config = config
        self._looked = time.monotonic()
        self._seen: set[Any] = set()
        self._gone: dict[Any, float] = {}
        self._queue_read = self._looked
        self._early = 0
        self.cluster.scale(jobs=self._wanted(tasks))

    def close(self) -> None:
        """End all jobs."""
        self.cluster.close()

    def _wanted(self, tasks: int) -> int:
        return min(self._config.jobs, math.ceil(tasks / self._config.cores))

    def watch(self, waiting: int) -> int:
        """Replace jobs that have ended, and end those that have nothing left to do.

        Parameters
        ----------
        waiting : int
            Slides that are not done.

        Returns
        -------
        int
            Workers that take slides.

        Raises
        ------
        ClusterError
            The batch system refused a job, or jobs end before they have a worker, and no
            other is at work.
        """
        workers = self.cluster.sync(_workers, self.cluster)
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._keep(workers, waiting)
        return sum(worker.takes for worker in workers)

    def _keep(self, workers: list[_WorkerState], waiting: int) -> None:
        # Workers of a job with several are named after it.
        several = self._config.cores > 1
        busy: dict[str, int] = {}
        for worker in workers:
            job = worker.name.rpartition("-")[0] if several else worker.name
            busy[job] = busy.get(job, 0) + worker.tasks
        if self._refused and not busy:
            raise ClusterError(
                f"a job was refused: {self._refused[0]}",
                subject="--cluster",
                remedy="Mend the file of the cluster.",
            )
        early = self._ended_early()
        self._early = 0 if busy else self._early + len(early)
        if self._early >= EARLY_ENDS:
            raise ClusterError(
                f"{self._early} jobs ended before they had a worker",
                subject="--cluster",
                remedy=f"Their logs in {self._config.log_directory or 'this folder'} say why.",
            )
        if ended := [*self._ended(set(busy)), *early]:
            logger.info("%d jobs have ended", len(ended))
            self.cluster.sync(_forget, self.cluster, ended)
        wanted, there = self._wanted(waiting), list(self.cluster.worker_spec)
        if len(there) < wanted:
            self.cluster.scale(jobs=wanted)
        idle = [job for job in there if not busy.get(job)]
        if excess := idle[: max(0, len(there) - wanted)]:
            self.cluster.sync(self.cluster.scale_down, excess)

    def _ended_early(self) -> list[Any]:
        """Jobs that never had a worker, and that the batch system no longer has."""
        now = time.monotonic()
        if self._config.scheduler != "slurm" or now - self._queue_read < _QUEUE_SECONDS:
            return []
        self._queue_read = now
        pending = {
            name: job.job_id
            for name, job in list(self.cluster.workers.items())
            if name not in self._seen and name in self.cluster.worker_spec and job.job_id
        }
        queue = _slurm_queue() if pending else None
        return [] if queue is None else [name for name, job in pending.items() if job not in queue]

    def _ended(self, alive: set[Any]) -> list[Any]:
        """Jobs whose workers have been away for long."""
        now = time.monotonic()
        self._seen |= alive
        for job in alive:
            self._gone.pop(job, None)
        away = self._seen.intersection(self.cluster.worker_spec) - alive
        ended = [job for job in away if now - self._gone.setdefault(job, now) > GONE_SECONDS]
        for job in ended:
            del self._gone[job]
            self._seen.remove(job)
        return ended


def _slurm_queue() -> set[str] | None:
    """Numbers of the user's jobs that wait or run; ``None`` where it is not known now."""
    command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("the queue cannot be read: %s", error)
        return None
    return set(done.stdout.split())


@dataclass(frozen=True, slots=True)
class _WorkerState:
    name: str
    tasks: int
    takes: bool


async def _workers(cluster: Any) -> list[_WorkerState]:
    """Read the scheduler's books, on its own thread."""
    return [
        _WorkerState(str(state.name), len(state.processing), state.status.name == "running")
        for state in cluster.scheduler.workers.values()
    ]


async def _forget(cluster: Any, names: list[Any]) -> None:
    """Take jobs out of dask's books; it replaces none that has ended by itself."""
    for name in names:
        cluster.worker_spec.pop(name, None)
        if (job := cluster.workers.pop(name, None)) is not None:
            await job.close()


def _reporting(job: type[Any], refused: list[str]) -> type[Any]:
    """Derive a job class that notes why the batch system refused a job; dask only logs it."""

    class Reporting(job):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError) as error:
                refused.append(" ".join(str(error).split()))
                raise

    return Reporting


def running_jobs(config: JobsConfig, tasks: int) -> AbstractContextManager[Jobs]:
    """Start jobs, and end them whatever happens."""
    return begun(lambda: Jobs(config, tasks), Jobs.close)
