"""Files of encoders' weights: where they are looked for, and how they are recognised.

They are looked for in the folder ``$WSIAD_ENCODERS``, in the cache of Hugging Face, which is read
without its library, and in the folder of torch hub. Nothing is ever downloaded.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from wsiad.core.errors import WeightsError
from wsiad.core.terminal import counted
from wsiad.networks import encoder_network
from wsiad.networks.encoder import ENCODERS_VARIABLE, Encoder, Table, encoders_folder, table
from wsiad.networks.torchvision_models import torchvision_models
from wsiad.networks.weights import (
    Weights,
    file_sha256,
    naming,
    read_file,
    tensors_sha256,
)

logger = logging.getLogger(__name__)

SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt", ".torch")
"""Ends of the names of files of weights."""

HUGGING_FACE_VARIABLES: Final = (
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"),
    *("HF_HUB_OFFLINE", "HF_TOKEN_PATH"),
)
"""Environment variables of Hugging Face that decide where its files are."""

_MODELS = "models--"
_NAMED_DIGITS = 8
_CLASSIFIERS = frozenset({"classifier", "fc", "head", "heads"})
_OPEN = {
    "684b3558eb633a90788dafccd0b7e079c12db4270bc4700633bab2c6037484e6": "squeezenet1_1, ImageNet",
    "f4ec3a92cf4662fbdba260f28f86cc9c41ea90bd577f5a8fa604fe3e30f26eb0": "densenet121, ImageNet",
    "4078a37c3ce146046e4a8228ef170a381422551bfadc76c411504c1f4c7d6753": "slim vgg19 (MIT)",
}
"""SHA-256 of the tensors of open networks (:func:`tensors_sha256`), without their classifiers."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place where an encoder's weights can be.

    Parameters
    ----------
    what : str
        Description of the place, such as ``"the cache of Hugging Face"``.
    path : Path
        Its folder.
    files : tuple of Path
        Files of weights of the encoder in it, the preferred ones first.
    dangling : tuple of Path
        Links to files that are not there.
    """

    what: str
    path: Path
    files: tuple[Path, ...] = ()
    dangling: tuple[Path, ...] = ()


def places(encoder: Encoder) -> Iterator[Place]:
    """Yield the places where the weights of an encoder are looked for, in their order."""
    folder = encoders_folder()
    if folder is not None:
        yield _own_folder(encoder, folder)
    cache = hugging_face_cache()
    for repository in encoder.repositories:
        yield _cached(encoder, repository, cache)
    if encoder.hub_files:
        hub = Path(torch.hub.get_dir()) / "checkpoints"
        yield _sorted_out("torch hub's folder", hub, [hub / name for name in encoder.hub_files])


def find(encoder: Encoder) -> Path:
    """Return the file of an encoder's weights on this machine.

    Raises
    ------
    WeightsError
        There is no such file, it is a link to nothing, or there are several in one place.
    """
    looked: list[str] = []
    dangling: list[Path] = []
    for place in places(encoder):
        if place.files[1:] and place.what.startswith("$"):
            raise WeightsError(
                f"has {len(place.files)} files in {place.path}: "
                + ", ".join(path.name for path in place.files[:5]),
                subject=encoder.name,
                remedy="Pass one of them by --weights FILE, or keep one.",
            )
        if place.files:
            return place.files[0]
        dangling += place.dangling
        looked.append(f"{place.what} ({place.path})")
    if dangling:
        raise WeightsError(
            f"links to {dangling[0].readlink()}, which is not there: the cache has been purged "
            "or was copied without its blobs",
            subject=str(dangling[0]),
            remedy=f"Download it again, or pass --weights FILE. {source_of(encoder)}",
        )
    if not any(place.startswith("$") for place in looked):
        looked.insert(0, f"${ENCODERS_VARIABLE} (not set)")
    raise WeightsError(
        f"its weights are not on this machine; looked in {'; '.join(looked)}",
        subject=encoder.name,
        remedy=f"{source_of(encoder)} Then pass --weights FILE, or put it into the folder "
        f"${ENCODERS_VARIABLE} as {encoder.name}.bin or .safetensors.",
    )


def source_of(encoder: Encoder) -> str:
    """Return the source of an encoder's weights and their terms, as sentences."""
    terms = f"licence: {encoder.licence}".rstrip(".")
    if encoder.gated:
        terms += "; access must be requested"
    if not encoder.repositories and not encoder.citation:
        return f"Its terms: {terms}."
    if not encoder.repositories:
        files = ", ".join((*encoder.files, *encoder.hub_files)[:2])
        return f"The file is {files} of its publication, {encoder.citation} ({terms})."
    repository, file = encoder.repositories[0], encoder.files[0]
    return (
        f"It is {repository}, {file} ({terms}): on a machine with internet, "
        f"`hf download {repository} {file}`."
    )


def read(encoder: Encoder, asked: str | None, *, quiet: bool = False) -> Weights:
    """Read the weights of an encoder, by timm's names, after all checks.

    Parameters
    ----------
    encoder : Encoder
    asked : str or None
        Path of a file, or of a folder that holds it; ``None`` to look for it.
    quiet : bool
        Do not warn about a file that is not verified.

    Raises
    ------
    WeightsError
        The weights are not on this machine, are damaged, belong to another encoder, or are not
        exactly those of the network.
    DetectorError
        The network cannot be made.
    """
    path = find(encoder) if asked is None else in_folder(encoder, Path(asked))
    _check_owner(encoder, path)
    found = read_file(path, wrappers=encoder.unwrap)
    verified = known(encoder, found.sha256, path)
    with naming(str(path)):
        tensors, left_off = encoder_network.fitting(encoder, found.tensors)
    if not verified and not quiet:
        logger.warning(
            "%s: %s is not verified: no SHA-256 of its weights is known here (this file has %s)",
            *(encoder.name, path, found.sha256),
        )
    return Weights(
        tensors,
        str(path),
        found.sha256,
        {},
        encoder=encoder.name,
        verified=verified,
        licence=encoder.licence,
        left_off=tuple(left_off),
    )


def known(encoder: Encoder, sha256: str, path: Path) -> bool:
    """Tell whether a SHA-256 is known to be that of an encoder's weights.

    Raises
    ------
    WeightsError
        It is known to be that of another encoder, or is none of the encoder's own.
    """
    if sha256 in encoder.sha256:
        return True
    other = table().of_sha256(sha256)
    if other is not None and other.name != encoder.name:
        raise WeightsError(
            f"is the file of {other.name}, not of {encoder.name}, by its SHA-256",
            subject=str(path),
            remedy=f"Set --option backbone={other.name}, or pass the file of {encoder.name}.",
        )
    return False


def again(encoder: Encoder | None, source: str, sha256: str) -> Weights:
    """Return the weights that a training used, read again from their file.

    They are looked for where they were, then where an encoder's weights are looked for; for other
    files, by their name in ``$WSIAD_ENCODERS`` and in torch hub's folder.

    Parameters
    ----------
    encoder : Encoder or None
        Encoder that they are of, if any.
    source : str
        Path of the file at the training.
    sha256 : str
        SHA-256 of the file.

    Raises
    ------
    WeightsError
        There is no such file, or those that there are have another SHA-256.
    """
    then = Path(source)
    candidates = [then]
    if encoder is not None:
        candidates += [path for place in places(encoder) for path in place.files]
    else:
        folders = [encoders_folder(), Path(torch.hub.get_dir()) / "checkpoints"]
        candidates += [folder / then.name for folder in folders if folder is not None]
    others = []
    for path in dict.fromkeys(candidates):
        if not path.is_file():
            continue
        if file_sha256(path) == sha256:
            return read_file(path) if encoder is None else read(encoder, str(path), quiet=True)
        others.append(str(path))
    name = encoder.name if encoder else then.name
    found = (
        f"{' and '.join(others[:3])} {'has' if len(others) == 1 else 'have'} another SHA-256"
        if others
        else f"{then} is not there"
    )
    where = f" {source_of(encoder)}" if encoder else ""
    raise WeightsError(
        f"the run does not hold the weights of {name}, and {found}",
        remedy=f"Put the file with the SHA-256 {sha256} there, or into the folder "
        f"${ENCODERS_VARIABLE} as {_name_there(encoder, then)}.{where}",
    )


def _name_there(encoder: Encoder | None, then: Path) -> str:
    return f"{encoder.name}{then.suffix}" if encoder else then.name


def is_open(found: Weights) -> bool:
    """Tell whether weights may be passed on with a run, by what is known about them.

    They may if they are random, of torchvision, made by ``wsiad pretrain``, or one of a few open
    files that are recognised by their content, in whatever format and with or without their
    classifier (:data:`_OPEN`). A file of torchvision is recognised by the start of its SHA-256,
    which is part of its published name.
    """
    if found.encoder:
        return False
    if found.random or found.shipped or found.source.startswith("torchvision "):
        return True
    if found.metadata.get("made_by", "").startswith("wsiad pretrain"):
        return True
    if found.sha256[:_NAMED_DIGITS] in _torchvision_marks():
        return True
    trunk = {
        name: tensor
        for name, tensor in found.tensors.items()
        if name.partition(".")[0] not in _CLASSIFIERS
        and name.rpartition(".")[2] != "num_batches_tracked"
    }
    return tensors_sha256(trunk) in _OPEN


def in_folder(encoder: Encoder, path: Path) -> Path:
    """Return the file of weights at a path: the file itself, or that in a folder.

    Raises
    ------
    WeightsError
        The folder holds no file of weights, or several of which none has a known name.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in (*encoder.files, *encoder.hub_files)]
    place = _sorted_out("the folder", path, found)
    if place.files:
        return place.files[0]
    if place.dangling:
        return place.dangling[0]  # whose reading says what is wrong
    others = _weights_in(path)
    if len(others) == 1:
        return others[0]
    raise WeightsError(
        f"holds {counted(len(others), 'file')} of weights, none of them called "
        + " or ".join(one.name for one in found),
        subject=str(path),
        remedy=f"Pass the file by --weights FILE. {source_of(encoder)}",
    )


def hugging_face_cache() -> Path:
    """Return the folder in which Hugging Face keeps repositories, whether it exists or not."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    if value := os.environ.get("HF_HOME"):
        return Path(value).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _own_folder(encoder: Encoder, folder: Path) -> Place:
    """Return what ``$WSIAD_ENCODERS`` holds of an encoder: files, or a folder with its file."""
    encoders = table()
    if encoders.get(encoder.name) is None:  # of a run that states it
        encoders = Table([*encoders.encoders, encoder.model_copy(update={"aliases": ()})])
    what = f"${ENCODERS_VARIABLE}"
    found: list[Path] = []
    for path in sorted(_entries(folder)):
        owner = encoders.owner(path.name)
        if owner is None or owner.name != encoder.name:
            continue
        if path.is_dir():
            named = [path / name for name in encoder.files]
            inside = [one for one in named if _there(one)] or _weights_in(path)
            found += inside[:1]
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return _sorted_out(what, folder, found)


def _cached(encoder: Encoder, repository: str, cache: Path) -> Place:
    """Return what the cache of Hugging Face holds of a repository, whatever the case of its name.

    The snapshot of the branch ``main`` comes first, then the others, the newest first.
    """
    folder_name = _MODELS + repository.replace("/", "--")
    what = f"the cache of Hugging Face, {repository}"
    found: list[Path] = []
    for folder in _entries(cache):
        if folder.name.lower() != folder_name.lower():
            continue
        try:
            main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            main = ""
        snapshots = _entries(folder / "snapshots")
        snapshots.sort(key=lambda one: (one.name != main, -_modified(one), one.name))
        for snapshot in snapshots:
            named = [snapshot / name for name in encoder.files]
            inside = [one for one in named if _there(one)]
            if not inside:
                others = _weights_in(snapshot)
                inside = others if len(others) == 1 else []
            found += inside
    return _sorted_out(what, cache / folder_name, found)


def _check_owner(encoder: Encoder, path: Path) -> None:
    """Refuse a file in the cached repository of another encoder.

    Raises
    ------
    WeightsError
        The path leads through the repository of another encoder.
    """
    own = {repository.lower() for repository in encoder.repositories}
    for part in path.absolute().parts:
        if not part.startswith(_MODELS):
            continue
        repository = part.removeprefix(_MODELS).replace("--", "/", 1)
        other = table().of_repository(repository)
        if repository.lower() not in own and other is not None:
            raise WeightsError(
                f"is in the repository of {other.name}, and not of {encoder.name}",
                subject=str(path),
                remedy=f"Set --option backbone={other.name}, or pass the file of {encoder.name}.",
            )


def _sorted_out(what: str, folder: Path, paths: list[Path]) -> Place:
    files = tuple(path for path in paths if path.is_file())
    return Place(what, folder, files, tuple(path for path in paths if _dangles(path)))


def _weights_in(folder: Path) -> list[Path]:
    return [one for one in sorted(_entries(folder)) if one.suffix.lower() in SUFFIXES]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _there(path: Path) -> bool:
    return path.is_file() or _dangles(path)


@functools.cache
def _torchvision_marks() -> frozenset[str]:
    """Return the first digits of the SHA-256 of torchvision's files of weights."""
    models = torchvision_models()
    marks = set()
    for name in models.list_models(module=models):
        for one in models.get_model_weights(name):
            if match := re.search(r"-([0-9a-f]{8})[0-9a-f]*\.pth$", one.url):
                marks.add(match[1])
    return frozenset(marks)
