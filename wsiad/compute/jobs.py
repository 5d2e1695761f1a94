"""Run the jobs of a batch cluster: read their YAML file, start, count and replace them."""

from __future__ import annotations

import getpass
import logging
import math
import re
import shutil
import signal
import subprocess
import time
import types
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from wsiad.core.config import Config, build, read_yaml
from wsiad.core.errors import ClusterError
from wsiad.core.signals import begun

WORKER_CLASS = "wsiad.compute.job_worker.SlideWorker"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that set the threads of libraries; N workers of N threads are slow."""

MEMORY = {f"distributed.worker.memory.{key}": False for key in ("target", "spill", "pause")}
"""Memory settings of dask. A worker has no data that dask could move to disk, so one that waited
at 80 % of its memory would wait forever. At 95 % it is stopped and restarted."""

CLOSE_SECONDS = 10.0
"""Maximum seconds to close a scheduler, client or worker of dask."""

_DAYS = re.compile(r"(?:(\d+)-)?(\d+):(\d{2})(?::(\d{2}))?")


class JobsConfig(Config):
    """Jobs of a batch cluster. A job has one worker per core; a worker has one slide at a time."""

    scheduler: Literal["slurm", "pbs", "lsf", "sge", "local"]
    """Batch system; `local` starts the workers on this machine, to try out the file."""
    jobs: Annotated[int, Field(ge=1)]
    """Maximum number of jobs at a time. There are never more jobs than the remaining slides need:
    a job with nothing left to do is stopped, and one that stopped too early is replaced."""
    cores: Annotated[int, Field(ge=1)] = 1
    """Cores of a job; it processes as many slides at a time."""
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]i?B$")]
    """Memory of a job, such as `8GB`, divided evenly among its cores."""
    walltime: str | None = None
    """Time after which the batch system stops a job: `HH:MM:SS`, `HH:MM` for LSF, `D-HH:MM:SS`
    for SLURM. In quotes."""
    margin_minutes: Annotated[float, Field(ge=0)] | None = None
    """Last part of the walltime, in which no slide is started: the time that a slide takes. By
    default a tenth of the walltime, at least 5 minutes, at most half of it."""
    queue: str | None = None
    """Queue, or partition."""
    account: str | None = None
    """Account, or project, to charge."""
    resource_spec: str | None = None
    """Resources to request from PBS or SGE with `-l`, if cores and memory are not enough."""
    interface: str | None = None
    """Network interface of workers and scheduler, such as `ib0`."""
    scheduler_interface: str | None = None
    """Network interface of the scheduler, if the machine that runs this command has another."""
    scheduler_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on which workers reach this command; 0 for any free port."""
    local_directory: str | None = None
    """Folder on each node for dask's own files."""
    log_directory: str | None = None
    """Folder for the jobs' logs."""
    job_script_prologue: tuple[str, ...] = ()
    """Shell lines to run before the worker starts, such as `module load` and `conda activate`."""
    job_extra_directives: tuple[str, ...] = ()
    """Further directives, such as `--qos=short`."""
    job_directives_skip: tuple[str, ...] = ()
    """Directives to leave out, by a part of their text, such as `--mem`."""
    python: str | None = None
    """Python interpreter on the nodes; by default the one that runs this command."""
    name: str = "wsiad"
    """Name of the jobs."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _is_quoted(cls, value: object) -> object:
        # YAML 1.1 reads 12:30 as a number in base 60.
        if isinstance(value, int):
            raise ValueError("should be in quotes, such as '12:00:00'")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.walltime is not None:
            lasts = walltime_minutes(self.walltime)
            short = self.scheduler == "lsf"
            if short and self.walltime.count(":") != 1:
                raise ValueError("`walltime` of LSF is HH:MM")
            if not short and self.scheduler != "local" and self.walltime.count(":") != 2:
                raise ValueError("`walltime` is HH:MM:SS")
            if self.margin_minutes is not None and self.margin_minutes >= lasts:
                raise ValueError("`margin_minutes` leave nothing of the `walltime`")
        elif self.margin_minutes is not None:
            raise ValueError("`margin_minutes` needs a `walltime`: set it")
        if self.resource_spec is not None and self.scheduler not in ("pbs", "sge"):
            raise ValueError("`resource_spec` is for PBS and SGE: use `job_extra_directives`")
        return self

    @property
    def lifetime_minutes(self) -> tuple[float, float] | None:
        """Minutes after which a worker starts no more slides, and their variation in minutes.

        They vary so that jobs do not all end, and queue again, at the same time. ``None``
        without a walltime.
        """
        if self.walltime is None:
            return None
        lasts = walltime_minutes(self.walltime)
        margin = self.margin_minutes
        if margin is None:
            margin = min(max(lasts / 10, 5), lasts / 2)
        stagger = (lasts - margin) / 20
        return lasts - margin - stagger, stagger


def walltime_minutes(text: str) -> float:
    """Return the minutes of ``[D-]HH:MM[:SS]``.

    Raises
    ------
    ValueError
        The text does not have this form.

    Examples
    --------
    >>> walltime_minutes("1-02:30:00")
    1590.0
    """
    parts = _DAYS.fullmatch(text)
    if not parts:
        raise ValueError(f"`walltime` {text!r} is not HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    total = (days * 24 + hours) * 60 + minutes + seconds / 60
    if total <= 0:
        raise ValueError(f"`walltime` {text!r} is not above 0")
    return total


def read_jobs(path: Path) -> JobsConfig:
    """Read the YAML file of a batch cluster.

    Raises
    ------
    ConfigError
        The file is missing or not YAML, or it has an unknown key or an invalid value.
    """
    return build(JobsConfig, read_yaml(path), source=str(path))


def job_script(config: JobsConfig) -> str:
    """Return the script of a job in the form that the batch system gets.

    Raises
    ------
    ClusterError
        dask-jobqueue is not installed, or the scheduler is ``local``, which has no jobs.
    """
    cluster = cluster_class(config.scheduler)
    job = cluster.job_cls(scheduler="tcp://SCHEDULER:PORT", name="NAME", **job_options(config))
    return str(job.job_script())


def job_options(config: JobsConfig) -> dict[str, Any]:
    """Return a config as keyword arguments of dask-jobqueue."""
    worker = ["--worker-class", WORKER_CLASS]
    if lifetime := config.lifetime_minutes:
        lasts, stagger = (f"{60 * minutes:.0f}s" for minutes in lifetime)
        worker += ["--lifetime", lasts, "--lifetime-stagger", stagger]
    options: dict[str, Any] = {
        "cores": config.cores,
        "processes": config.cores,
        "memory": config.memory,
        "walltime": config.walltime,
        "queue": config.queue,
        "interface": config.interface,
        "local_directory": config.local_directory,
        "log_directory": config.log_directory,
        "job_script_prologue": [
            *(f"export {name}=1" for name in THREADS),
            *(f"export DASK_{key.replace('.', '__').upper()}=False" for key in MEMORY),
            *config.job_script_prologue,
        ],
        "job_extra_directives": list(config.job_extra_directives),
        "job_directives_skip": list(config.job_directives_skip),
        "python": config.python,
        "job_name": config.name,
        "worker_extra_args": worker,
    }
    charged = "project" if config.scheduler in ("lsf", "sge") else "account"
    options[charged] = config.account
    if config.scheduler in ("pbs", "sge"):
        options["resource_spec"] = config.resource_spec
    return options


def cluster_class(scheduler: str) -> Any:
    """Return dask-jobqueue's class for a batch system.

    Raises
    ------
    ClusterError
        dask-jobqueue is not installed, or has no such class.
    """
    jobqueue = _jobqueue()
    cluster = getattr(jobqueue, f"{scheduler.upper()}Cluster", None)
    if cluster is None:
        raise ClusterError(
            "has no job script", subject=scheduler, remedy="Choose slurm, pbs, lsf or sge."
        )
    return cluster


def _jobqueue() -> types.ModuleType:
    before = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ClusterError(
            f"needs a package that cannot be imported ({error})",
            subject="--cluster",
            remedy="Install it: pip install 'wsiad[hpc]' (or: pip install dask-jobqueue).",
        ) from error
    finally:
        # Its import lets Ctrl-C end the process with code 0, whoever handled it before.
        if before is not None and signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)
    return dask_jobqueue


logger = logging.getLogger(__name__)

GONE_SECONDS = 20.0
"""Seconds without any worker after which a job counts as ended. A job restarts a worker that was
killed for memory within seconds."""

EARLY_ENDS = 3
"""Number of jobs that may end before they have a worker, while no job has one. Then the work is
given up, because the next job would end in the same way."""

_LOOK_SECONDS = 2.0
_QUEUE_SECONDS = 10.0


class Jobs:
    """Jobs that work for a dask scheduler in this process.

    Parameters
    ----------
    config : JobsConfig
        Options of the jobs.
    tasks : int
        Number of slides; no more jobs are requested than they need.

    Raises
    ------
    ClusterError
        dask-jobqueue or the command that submits jobs is not available.
    """

    def __init__(self, config: JobsConfig, tasks: int) -> None:
        self._refused: list[str] = []
        cluster = cluster_class(config.scheduler)
        command = cluster.job_cls.submit_command
        if shutil.which(command) is None:
            raise ClusterError(
                f"its command {command!r} is not on this machine",
                subject=config.scheduler,
                remedy="Run this on a machine that submits jobs, or use --workers.",
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
        try:
            self.cluster.close()
        except AssertionError as error:  # dask's, of a job that was refused and never began
            logger.info("closing the jobs: %s", error)

    def _wanted(self, tasks: int) -> int:
        return min(self._config.jobs, math.ceil(tasks / self._config.cores))

    def watch(self, waiting: int) -> int:
        """Replace jobs that have ended, and stop those with nothing left to do.

        Parameters
        ----------
        waiting : int
            Number of slides that are not done.

        Returns
        -------
        int
            Number of workers that accept slides.

        Raises
        ------
        ClusterError
            The batch system refused a job, or jobs end before they have a worker, and no
            other job works.
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
                remedy="Correct the YAML file of the cluster.",
            )
        early = self._ended_early()
        self._early = 0 if busy else self._early + len(early)
        if self._early >= EARLY_ENDS:
            raise ClusterError(
                f"{self._early} jobs ended before they had a worker",
                subject="--cluster",
                remedy=f"See their logs in {self._config.log_directory or 'this folder'}.",
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
        """Return the jobs that never had a worker and that the batch system no longer lists."""
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
        """Return the jobs that have had no worker for a long time."""
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
    """Return the numbers of the user's jobs that wait or run; ``None`` if they are not known."""
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
    """Read the state of the scheduler's workers, on the scheduler's own thread."""
    return [
        _WorkerState(str(state.name), len(state.processing), state.status.name == "running")
        for state in cluster.scheduler.workers.values()
    ]


async def _forget(cluster: Any, names: list[Any]) -> None:
    """Remove jobs from dask's records; dask does not replace jobs that have ended."""
    for name in names:
        cluster.worker_spec.pop(name, None)
        if (job := cluster.workers.pop(name, None)) is not None:
            await job.close()


def close_client(client: Any) -> None:
    """Close a dask client; what it has handed out and not got back is lost."""
    client.close(timeout=CLOSE_SECONDS)


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
    """Start jobs, and stop them in every case."""
    return begun(lambda: Jobs(config, tasks), Jobs.close)
