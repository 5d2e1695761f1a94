"""Pretrained weights of torchvision, of a file or of wsiad, or random ones."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wsiad.core.errors import WeightsError, WsiadError
from wsiad.networks.torchvision_models import torchvision_models

logger = logging.getLogger(__name__)

RANDOM, IMAGENET, SHIPPED = "random", "imagenet", "wsiad"

SHIPPED_FILE = Path(__file__).parent / "shipped" / "lymph_node.safetensors"
"""A slim VGG19 that ``wsiad pretrain`` made of healthy PatchCamelyon tiles; docs/pretrain.md."""

SHIPPED_SOURCE = f"wsiad {SHIPPED_FILE.name}"
"""The value of :attr:`Weights.source` for the shipped file."""

_CHUNK_BYTES = 1 << 20

_DENSE_LAYER = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names such as ``denselayer1.norm.1.weight`` in torchvision's own files of DenseNets, from before
its modules were called ``norm1``."""

_WRAPPED = (
    *("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model"),
    *("module", "network", "net", "backbone", "encoder", "student"),
)
"""Keys under which checkpoints hold a state dict, the preferred ones first."""

_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that stands for one of Git LFS."""

_DEEPEST = 3
_MOST_TIMES = 10
"""Maximum size that a file can claim to hold, in its own sizes: weights hardly shrink."""


@contextmanager
def naming(source: str | None) -> Iterator[None]:
    """Name the source of weights in errors about them."""
    try:
        yield
    except WeightsError as error:
        if error.subject or source is None:
            raise
        raise WeightsError(error.problem, subject=source, remedy=error.remedy) from error


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights and their source.

    Parameters
    ----------
    tensors : dict of str to Tensor
        State dict, float32, on the CPU.
    source : str
        Path of a file, ``"torchvision …"`` or ``"random"``.
    sha256 : str
        SHA-256 of the file, or of the tensors for random weights.
    metadata : mapping of str to str
        Metadata of a safetensors file; empty for other sources.
    encoder : str
        Name of the encoder that they are of, whose tensors have timm's names; empty for others.
    verified : bool
        True if the SHA-256 is known to be that of the encoder.
    licence : str
        Licence of the encoder's weights.
    left_off : tuple of str
        Names in the encoder's file that its network does not use.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    metadata: Mapping[str, str]
    encoder: str = ""
    verified: bool = False
    licence: str = ""
    left_off: tuple[str, ...] = ()

    @property
    def random(self) -> bool:
        """True for random weights, with which nothing was learnt."""
        return self.source == RANDOM

    @property
    def shipped(self) -> bool:
        """True for the weights that come with wsiad."""
        return self.source == SHIPPED_SOURCE

    def note(self, *, trained: bool = False) -> dict[str, Any]:
        """Return the facts about its weights that a run records, as JSON values.

        Parameters
        ----------
        trained : bool
            True if the network is trained further: then scores from random weights mean something.
        """
        source = f"{RANDOM}, and then trained" if self.random and trained else self.source
        note: dict[str, Any] = {"source": source, "sha256": self.sha256}
        if self.encoder:
            note |= {"encoder": self.encoder, "licence": self.licence, "verified": self.verified}
        if self.random and not trained:
            note["warning"] = "random weights: scores mean nothing but that the pipeline runs"
        return note


def warn_of_random(name: str, *, trained: bool) -> None:
    """Log that a network has random weights, and what that means for its scores."""
    if trained:
        logger.warning("%s has random weights, with which its training begins", name)
    else:
        logger.warning("%s has random weights: its scores mean nothing", name)


def resolve(
    weights: str | None,
    *,
    model: str,
    random_tensors: Callable[[], dict[str, Tensor]],
    trained: bool = False,
) -> Weights:
    """Return the weights that were requested.

    Parameters
    ----------
    weights : str or None
        ``"imagenet"`` for torchvision's ImageNet weights of ``model``, ``"wsiad"`` for the
        network that comes with wsiad (a VGG19), the path of a file (safetensors, or a state
        dict that ``torch.load(weights_only=True)`` reads), or ``"random"``. ``None`` is
        ``"imagenet"``, or ``"wsiad"`` for a VGG19 whose ImageNet weights are not on this machine.
    model : str
        Name of a torchvision model, or of one of timm (``"timm/…"``), which needs a file.
    random_tensors : callable
        Function that draws random weights.
    trained : bool
        True if the network is trained further.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or the file does not hold such weights.
    """
    if weights == RANDOM:
        warn_of_random(model, trained=trained)
        tensors = random_tensors()
        return Weights(tensors, RANDOM, tensors_sha256(tensors), {})
    if weights == SHIPPED:
        if model not in (SHIPPED, "vgg19"):
            raise WeightsError(
                f"the network that comes with wsiad is a slim VGG19, not a {model}",
                remedy="Leave the backbone out, or set it to wsiad.",
            )
        return shipped()
    if weights is None and model == SHIPPED:
        return shipped()
    if weights not in (None, IMAGENET):
        return read_file(Path(weights or ""))
    try:
        return official(model)
    except WeightsError as error:
        if weights == IMAGENET or model != "vgg19":
            raise
        logger.warning(NOT_AT_HAND, model, error.problem)
        return shipped()


NOT_AT_HAND = "%s: %s; the network that comes with wsiad is used instead"
"""Warning, with the network and the reason, where the usual network is replaced."""


def official(model: str) -> Weights:
    """Return torchvision's ImageNet weights, downloaded if necessary.

    Raises
    ------
    WeightsError
        There are no such weights, or they are not in torch's cache and cannot be downloaded.
    """
    if model == SHIPPED:
        raise WeightsError("has no ImageNet weights", subject=model)
    if model.startswith("timm/"):
        raise WeightsError(
            "weights of timm's networks are not downloaded",
            subject=model,
            remedy="Pass --weights FILE: its model.safetensors from https://huggingface.co/timm.",
        )
    path = _official(model)
    found = read_file(path)
    return Weights(
        found.tensors, f"torchvision {model} IMAGENET1K_V1 ({path.name})", found.sha256, {}
    )


def shipped() -> Weights:
    """Return the weights that come with wsiad: a slim VGG19 of four blocks."""
    found = read_file(SHIPPED_FILE)
    return Weights(found.tensors, SHIPPED_SOURCE, found.sha256, found.metadata)


def read_file(path: Path, *, wrappers: tuple[str, ...] | None = None) -> Weights:
    """Read a state dict from a safetensors file or a ``weights_only`` checkpoint.

    If a checkpoint holds more, its state dict is taken: the running average of the weights if
    there is one, as in timm, otherwise the weights (:data:`_WRAPPED`).

    Parameters
    ----------
    path : Path
    wrappers : tuple of str, optional
        Only keys under which the state dict can be; by default those of :data:`_WRAPPED`.

    Raises
    ------
    WeightsError
        The file is missing, a pointer of Git LFS or damaged, or holds something other than
        tensors, or a tensor that is not finite.
    """
    if path.is_symlink() and not path.exists():
        raise WeightsError(
            f"links to {path.readlink()}, which is not there",
            subject=str(path),
            remedy="Copy or download the file again.",
        )
    if not path.is_file():
        raise WeightsError(
            "is a folder, not a file" if path.is_dir() else "there is no such file",
            subject=str(path),
            remedy="Pass the path of a .safetensors or .pth file, or leave --weights out for "
            "torchvision's.",
        )
    metadata: Mapping[str, str] = {}
    try:
        check_pointer(path)
        if path.suffix == ".safetensors":
            tensors, metadata = _read_safetensors(path)
        else:
            tensors = _read_checkpoint(path, _WRAPPED if wrappers is None else wrappers)
        _check_claims(tensors, path)
        tensors = {
            _DENSE_LAYER.sub(r"\1\2", name): t.float() if t.is_floating_point() else t
            for name, t in tensors.items()
        }
        infinite = next((n for n, t in tensors.items() if not torch.isfinite(t).all()), None)
        digest = file_sha256(path)
    except WsiadError:
        raise
    except Exception as error:  # what readers of damaged files raise has no end
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"cannot be read ({what})",
            subject=str(path),
            remedy="It is damaged or not a file of weights: copy or download it again.",
        ) from error
    if infinite is not None:
        raise WeightsError(f"{infinite} holds values that are not finite", subject=str(path))
    return Weights(tensors, str(path), digest, metadata)


def check_pointer(path: Path) -> None:
    """Refuse a pointer that Git LFS leaves where a file of weights should be.

    Raises
    ------
    WeightsError
        The file is one.
    """
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise WeightsError(
            f"is a pointer of Git LFS ({path.stat().st_size} bytes of text), not the weights",
            subject=str(path),
            remedy="Run `git lfs pull` in its folder, or download the file itself.",
        )


def _check_claims(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors are plain, and not larger than a file of that size can hold."""
    total = 0
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise WeightsError(
                f"{name[:80]} is not a plain array of numbers",
                subject=str(path),
                remedy="Save dense tensors of real numbers.",
            )
        total += tensor.numel() * tensor.element_size()
    if total > _MOST_TIMES * path.stat().st_size:
        raise WeightsError(
            f"its tensors claim {total} bytes, which a file of {path.stat().st_size} does not hold",
            subject=str(path),
            remedy="Save the model's state_dict() alone, best as safetensors.",
        )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, dtypes and values, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_checkpoint(path: Path, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what an odd file makes torch say
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "is not a PyTorch file, or holds more than plain tensors (a pickled object may run "
            "code)",
            subject=str(path),
            remedy="Save the model's state_dict() alone, best as safetensors.",
        ) from error
    return _state_dict(values, path, wrappers)


def _check_archive(path: Path) -> None:
    """Check that a zip archive, such as torch's files, unpacks to no more than its size allows."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _MOST_TIMES * path.stat().st_size:
        raise WeightsError(
            f"would unpack to {unpacked} bytes from {path.stat().st_size}",
            subject=str(path),
            remedy="Torch does not compress its files: save the state_dict() again.",
        )


def _state_dict(values: Any, path: Path, wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """Find the state dict in the content of a file, under the keys of wrappers at most."""
    for _ in range(_DEEPEST):
        if not isinstance(values, Mapping):
            break
        inner = [name for name in wrappers if isinstance(values.get(name), Mapping)]
        if not inner:
            break
        if inner[1:]:
            logger.warning("%s: using %s, not %s", path, inner[0], ", ".join(inner[1:]))
        values = values[inner[0]]
    wrapped = values if isinstance(values, Mapping) and wrappers != _WRAPPED else {}
    if named := [name for name in _WRAPPED if isinstance(wrapped.get(name), Mapping)]:
        raise WeightsError(
            f"holds its state dict under {named[0]!r}, unlike the file of this encoder",
            subject=str(path),
            remedy="Pass the encoder's own file, unchanged, or save its state_dict() alone.",
        )
    if (
        not isinstance(values, Mapping)
        or not values
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items())
    ):
        raise WeightsError(
            "is not a state dict of names and tensors",
            subject=str(path),
            remedy="Save the model's state_dict() alone, best as safetensors.",
        )
    return dict(values)


def _official(model: str) -> Path:
    """Return the cached file of torchvision's ImageNet weights; download it if necessary."""
    url: str = torchvision_models().get_model_weights(model)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    checked = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s to %s", url, path)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=checked[1] if checked else None, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the ImageNet weights are not at hand, and {url} could not be downloaded ({error})",
            subject=model,
            remedy=(
                "With internet: run again. Without: download that address on another machine, "
                f"then either put the file at {path} or pass --weights FILE. "
                "(--weights wsiad is a small network that comes with wsiad; --weights random only "
                "tries the pipeline out.)"
            ),
        ) from error
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
