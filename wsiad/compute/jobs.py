"""The jobs of a batch cluster: their YAML file, and the script that each of them runs."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from wsiad.core.config import Config, build, read_yaml
from wsiad.core.errors import ClusterError

WORKER_CLASS = "wsiad.compute.job_worker.SlideWorker"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which libraries choose their threads: N workers of N threads fight."""

MEMORY = {f"distributed.worker.memory.{key}": False for key in ("target", "spill", "pause")}
"""Settings of dask. A worker has no data of dask's to move to disk, and one that waits at 80 % of
its memory for some to be freed would wait for ever; at 95 % it is ended and started anew."""

_DAYS = re.compile(r"(?:(\d+)-)?(\d+):(\d{2})(?::(\d{2}))?")


class JobsConfig(Config):
    """Jobs of a batch cluster; each is one or more workers, each of one thread and one slide."""

    scheduler: Literal["slurm", "pbs", "lsf", "sge", "local"]
    """Batch system; `local` starts the workers on this machine, to try a file out."""
    jobs: Annotated[int, Field(ge=1)]
    """The most jobs at once. There are never more than slides need that are not done: a job
    with nothing left to do is ended, one that has ended too early is replaced."""
    cores: Annotated[int, Field(ge=1)] = 1
    """Cores of a job: slides that it works on at once."""
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]i?B$")]
    """Memory of a job, as `8GB`, shared out evenly among its cores."""
    walltime: str | None = None
    """Time after which the batch system ends a job: `HH:MM:SS`, `HH:MM` for LSF, `D-HH:MM:SS`
    for SLURM. In quotes."""
    margin_minutes: Annotated[float, Field(ge=0)] | None = None
    """No slide is begun in this last part of the walltime: the time that a slide takes. By
    default a tenth of the walltime, at least 5 minutes, at most half of it."""
    queue: str | None = None
    """Queue, or partition."""
    account: str | None = None
    """Account, or project, to charge."""
    resource_spec: str | None = None
    """What is asked of PBS or SGE by `-l`, where cores and memory are not enough."""
    interface: str | None = None
    """Network interface of workers and scheduler, as `ib0`."""
    scheduler_interface: str | None = None
    """That of the scheduler, where the machine which runs this command has another."""
    scheduler_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on which workers reach this command; 0 takes any."""
    local_directory: str | None = None
    """Folder on each node for dask's own files."""
    log_directory: str | None = None
    """Folder for the jobs' logs."""
    job_script_prologue: tuple[str, ...] = ()
    """Lines of shell before the worker starts, as `module load` and `conda activate`."""
    job_extra_directives: tuple[str, ...] = ()
    """Further directives, as `--qos=short`."""
    job_directives_skip: tuple[str, ...] = ()
    """Directives to leave out, by a part of their text, as `--mem`."""
    python: str | None = None
    """Python of the nodes; by default the one that runs this command."""
    name: str = "wsiad"
    """Name of the jobs."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _is_quoted(cls, value: object) -> object:
        # YAML 1.1 reads 12:30 as a number in base 60.
        if isinstance(value, int):
            raise ValueError("should be in quotes, as '12:00:00'")  # noqa: TRY004
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
            raise ValueError("`margin_minutes` are of a `walltime`: give one")
        if self.resource_spec is not None and self.scheduler not in ("pbs", "sge"):
            raise ValueError("`resource_spec` is for PBS and SGE: use `job_extra_directives`")
        return self

    @property
    def lifetime_minutes(self) -> tuple[float, float] | None:
        """Minutes after which a worker begins no more slides, and by how many they vary.

        They vary so that not all jobs end, and queue again, at once. ``None`` without a
        walltime.
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
        The text is not of that form.

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
        raise ValueError(f"`walltime` {text!r} is no time at all")
    return total


def read_jobs(path: Path) -> JobsConfig:
    """Read the YAML file of a batch cluster.

    Raises
    ------
    ConfigError
        It is missing, is not YAML, or has an unknown key or a value that is not valid.
    """
    return build(JobsConfig, read_yaml(path), source=str(path))


def job_script(config: JobsConfig) -> str:
    """Return the script of a job, as the batch system gets it.

    Raises
    ------
    ClusterError
        dask-jobqueue is not installed, or the scheduler is ``local``, which has no jobs.
    """
    cluster = cluster_class(config.scheduler)
    job = cluster.job_cls(scheduler="tcp://SCHEDULER:PORT", name="NAME", **job_options(config))
    return str(job.job_script())


def job_options(config: JobsConfig) -> dict[str, Any]:
    """Return a config as keywords of dask-jobqueue."""
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
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ClusterError(
            f"needs a package that cannot be imported ({error})",
            subject="--cluster",
            remedy="Install it: pip install 'wsiad[hpc]' (or: pip install dask-jobqueue).",
        ) from error
    return dask_jobqueue
