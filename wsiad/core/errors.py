"""The errors of the package: each names its subject, what is wrong and the remedy.

Every error that a user can cause or repair derives from :class:`WsiadError`. A class also derives
from the builtin of the same meaning, if there is one, so that callers can catch it without
knowledge of this package.
"""

from __future__ import annotations


class WsiadError(Exception):
    """Base of all errors of the package.

    Parameters
    ----------
    problem : str
        Statement of what is wrong, without a full stop.
    subject : str, optional
        Subject of the problem: a slide's name, a file, a config key.
    remedy : str, optional
        Advice on what to do, as a sentence.

    Examples
    --------
    >>> str(ScaleError("no µm/px is known", subject="a.tif", remedy="Pass --slide-mpp."))
    'a.tif: no µm/px is known. Pass --slide-mpp.'
    """

    def __init__(
        self, problem: str, *, subject: str | None = None, remedy: str | None = None
    ) -> None:
        self.problem = problem
        self.subject = subject
        self.remedy = remedy
        head = f"{subject}: {problem}" if subject else problem
        # Words of other programs, which some problems end with, have a full stop of their own.
        stop = "" if head.endswith((".", "!", "?")) else "."
        super().__init__(f"{head}{stop} {remedy}" if remedy else head)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors
        # travel from worker processes.
        return (_rebuild, (type(self), self.problem, self.subject, self.remedy))


def _rebuild(
    cls: type[WsiadError], problem: str, subject: str | None, remedy: str | None
) -> WsiadError:
    return cls(problem, subject=subject, remedy=remedy)


class ConfigError(WsiadError, ValueError):
    """A configuration that is not valid: unknown key, wrong type, impossible value."""


class InputError(WsiadError, ValueError):
    """An input is not usable: an empty folder, a bad manifest, two slides of one name."""


class ClusterError(WsiadError, RuntimeError):
    """Machines for the work are not available: no batch system, a refused job, no scheduler."""


class SlideError(WsiadError):
    """A slide cannot be used."""


class SlideOpenError(SlideError, OSError):
    """A slide cannot be opened: not a slide, damaged, or a format that is not supported."""


class SlideReadError(SlideError, OSError):
    """A region of a slide cannot be decoded."""


class UnusableSlideError(SlideError):
    """A slide was opened, but could not be looked at; this does not mean that it has no tissue.

    A batch gives such a slide the status ``unusable`` with the reason, instead of ``failed``.
    """


class DamagedTileError(SlideReadError):
    """A tile of a slide's file is damaged, whatever a decoder makes of it."""


class DirectReadError(SlideError):
    """A slide or tile is of a kind that is not decoded directly; OpenSlide then reads it."""


class ScaleError(SlideError, ValueError):
    """The µm/px of a slide is unknown, or does not allow the requested one."""


class StainError(WsiadError, ValueError):
    """Stains cannot be estimated from these pixels."""


class StoreError(WsiadError, OSError):
    """A tile store is missing, damaged or of an unknown format version."""


class StoreMismatchError(StoreError, ValueError):
    """A tile store was made with another configuration or from another slide."""


class WeightsError(WsiadError, OSError):
    """Network weights are not available or do not fit."""


class DetectorError(WsiadError, ValueError):
    """A detector is unknown, or cannot be fitted or applied as requested."""


class PluginError(DetectorError):
    """The package of a plug-in is not installed, or its detector cannot be used."""


class SearchError(WsiadError, RuntimeError):
    """Hyperparameters cannot be searched for, because a package is not installed."""


class RunError(WsiadError, OSError):
    """A run folder is missing, damaged, or was made with another configuration."""


class AnnotationError(WsiadError, ValueError):
    """An annotation file is not valid or not safe to read."""


class EvaluationError(WsiadError, ValueError):
    """Detections, ground truth or reference do not fit together."""


class ExportError(WsiadError, ValueError):
    """A result would not be readable by the program that it is written for."""
