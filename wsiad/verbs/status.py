"""``wsiad status``: how far a store, a run or results are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from wsiad.core.config import Config, verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsiad.results.job_status import JobStatus


class StatusConfig(Config):
    """Show how far a store, a run or results are: slides done, failed, running and left."""

    flags: ClassVar[Mapping[str, str]] = {"as_json": "json"}

    folder: Path
    """Tile store, run or results folder, complete or not; jobs may work on it meanwhile."""
    as_json: bool = False
    """Print JSON, for programs; it lists all slides, where the text lists 20 of each kind."""


@dataclass(frozen=True, slots=True)
class StatusResult:
    """Result of a look at a folder.

    Parameters
    ----------
    status : JobStatus
        What was found.
    as_json : bool
        True for a summary that programs read.
    """

    status: JobStatus
    as_json: bool

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if something failed, is unusable or is broken."""
        return self.status.exit_code

    @property
    def summary(self) -> str:
        """Lines for the terminal, or JSON."""
        return self.status.to_json() if self.as_json else self.status.text()


@verb(StatusConfig)
def status(config: StatusConfig) -> StatusResult:
    """Look at a folder without writing to it or waiting for anybody.

    Raises
    ------
    InputError
        The folder is neither a store, a run nor results.
    """
    from wsiad.results.job_status import job_status

    return StatusResult(job_status(config.folder), config.as_json)
