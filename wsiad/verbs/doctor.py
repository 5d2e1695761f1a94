"""``wsiad doctor``: check what is installed, and suggest how to get what is missing."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from wsiad.core.config import Config, verb
from wsiad.core.errors import WsiadError
from wsiad.core.packages import versions
from wsiad.core.terminal import json_text

OK, NOTE, PROBLEM = "ok", "note", "problem"


class DoctorConfig(Config):
    """Check the installation: packages, device, slide formats and available weights."""

    flags: ClassVar[Mapping[str, str]] = {"as_json": "json"}

    weights: Path | None = None
    """Weights file to check, as `wsiad train --weights` would read it."""
    as_json: bool = False
    """Print JSON, for programs."""


@dataclass(frozen=True, slots=True)
class Check:
    """Check of one part of the installation.

    Parameters
    ----------
    name : str
        Name of the part.
    state : str
        ``"ok"``, ``"note"`` (something optional is missing) or ``"problem"``.
    finding : str
        Result of the check.
    remedy : str
        Suggestion for the user; empty if there is nothing to do.
    """

    name: str
    state: str
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """All checks, and their text for the terminal."""

    checks: tuple[Check, ...]
    summary: str

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if there is a problem, else 0."""
        return int(any(check.state == PROBLEM for check in self.checks))


@verb(DoctorConfig)
def doctor(config: DoctorConfig) -> DoctorResult:
    """Check what wsiad needs, and report what is missing; nothing is changed or downloaded."""
    steps: list[Callable[[], Iterator[Check]]] = [
        _packages,
        _compiled,
        _openslide,
        _torch,
        _torchvision,
        _detectors,
        lambda: _weights(config.weights),
        _encoders,
        _machine,
    ]
    checks = tuple(check for step in steps for check in _guarded(step))
    if config.as_json:
        text = json_text([asdict(check) for check in checks])
    else:
        text = "\n".join(_lines(checks))
    return DoctorResult(checks, text)


def _guarded(step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from step()
    except (ImportError, OSError) as error:
        name = getattr(error, "name", None) or type(error).__name__
        yield Check(name, PROBLEM, f"cannot be loaded: {error}", "Reinstall: pip install wsiad")


def _lines(checks: tuple[Check, ...]) -> Iterator[str]:
    mark = {OK: "ok  ", NOTE: "note", PROBLEM: "FAIL"}
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{mark[check.state]}  {check.name:<{width}}  {check.finding}"
        if check.remedy:
            yield f"{'':6}{'':<{width}}  → {check.remedy}"


def _packages() -> Iterator[Check]:
    found = versions()
    missing = [name for name, version in found.items() if version == "not installed"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if missing:
        # A conda environment has OpenSlide and OpenCV under other names.
        yield Check("packages", NOTE, text, "This is fine under conda; else: pip install wsiad")
    else:
        yield Check("packages", OK, text)


def _compiled() -> Iterator[Check]:
    """Yield where the compiled loops over pixels are kept."""
    from wsiad.core.compiled import kept_in

    if folder := kept_in():
        yield Check("compiled loops", OK, f"kept in {folder}")
    else:
        yield Check(
            "compiled loops",
            NOTE,
            "cannot be kept: each process compiles them again, which takes seconds",
            "Set NUMBA_CACHE_DIR to a folder that you may write to.",
        )


def _openslide() -> Iterator[Check]:
    import openslide

    version = openslide.__library_version__
    if int(version.split(".")[0]) < 4:
        yield Check("slides", PROBLEM, f"OpenSlide {version}", "pip install openslide-bin")
        return
    from wsiad.slides.slide_files import SUFFIXES

    yield Check("slides", OK, f"OpenSlide {version}: {' '.join(sorted(SUFFIXES))}")


def _torch() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Check("device", OK, f"{torch.cuda.device_count()} × {', '.join(sorted(names))}")
    else:
        yield Check(
            "device",
            NOTE,
            f"no GPU; {torch.get_num_threads()} CPU threads",
            "Training the deep methods takes hours on this machine; gaussian and knn take minutes.",
        )


def _torchvision() -> Iterator[Check]:
    torchvision = importlib.import_module("wsiad.networks.torchvision_models")
    if torchvision.operators_load():
        yield Check("torchvision", OK, "models and compiled operators load")
    else:
        yield Check(
            "torchvision",
            NOTE,
            "models load; its compiled operators do not (built for another torch)",
            "Nothing in wsiad needs them. To repair: install torch and torchvision together.",
        )


def _detectors() -> Iterator[Check]:
    """Yield checks that the detectors of plug-ins load; those of wsiad come with it."""
    from wsiad.detectors import registry

    plugins = registry.plugins()
    own = len(registry.names()) - len(plugins)
    yield Check("detectors", OK, f"{own} of wsiad, {len(plugins)} of plug-ins")
    for name, plugin in sorted(plugins.items()):
        try:
            registry.load(name)
        except WsiadError as error:
            yield Check(name, PROBLEM, error.problem, error.remedy or "")
        else:
            yield Check(name, OK, f"detector of the plug-in {plugin.distribution}")
    for fault in registry.plugin_faults():
        yield Check(fault.name or "plug-in", PROBLEM, str(fault), "Uninstall or update the package")


def _weights(path: Path | None) -> Iterator[Check]:
    import torch

    weights = importlib.import_module("wsiad.networks.weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = sorted(file.name for file in folder.glob("*.pth")) if folder.exists() else []
    yield Check(
        "weights",
        OK if cached else NOTE,
        f"in {folder}: {', '.join(cached) or 'none'}",
        ""
        if cached
        else "With an internet connection they are downloaded on first use. Without, the network "
        "that comes with wsiad is used, or that of --weights FILE.",
    )
    shipped = weights.SHIPPED_FILE
    if shipped.is_file():
        yield Check("wsiad's network", OK, f"{shipped.name}, {shipped.stat().st_size >> 10} KiB")
    else:
        yield Check("wsiad's network", PROBLEM, "is missing", "Install wsiad again.")
    if path is not None:
        try:
            source = weights.read_file(path)
        except WsiadError as error:
            yield Check(path.name, PROBLEM, error.problem, error.remedy or "")
        else:
            yield Check(path.name, OK, f"{len(source.tensors)} tensors")


def _encoders() -> Iterator[Check]:
    """Yield the encoders whose weights are on this machine, and where they were looked for."""
    from wsiad.networks.encoder_inventory import inventory

    for one in inventory():
        yield Check(one.name, one.state, one.finding, one.remedy)


def _machine() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check("machine", OK, f"{os.cpu_count()} cores, {free:.0f} GiB free here")
