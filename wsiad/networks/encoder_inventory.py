"""Inventory of the encoders whose weights are on this machine, and of what is wrong with others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsiad.core.errors import WsiadError
from wsiad.networks import encoder_files
from wsiad.networks.encoder import ENCODERS_VARIABLE, Encoder, encoders_folder, table
from wsiad.networks.weights import check_pointer, file_sha256

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """An encoder in the inventory, or the place where encoders are looked for.

    Parameters
    ----------
    name : str
        Name of the encoder.
    state : {"ok", "note", "problem"}
        ``"ok"`` if it is at hand, ``"note"`` if it is not, ``"problem"`` if its file is wrong.
    finding : str
        File, size and terms, or the reason why there is none.
    remedy : str
        Suggestion for the user; empty if there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    finding: str
    remedy: str = ""


def inventory() -> Iterator[Item]:
    """Yield where encoders are looked for, then every encoder of which something is there.

    Files are not read, but for the SHA-256 of encoders for which one is known.
    """
    folder = encoders_folder()
    own = f"${ENCODERS_VARIABLE}" + (f"={folder}" if folder else " is not set")
    variables = [
        f"{name}={os.environ[name]}"
        for name in encoder_files.HUGGING_FACE_VARIABLES
        if os.environ.get(name)
    ]
    where = f"{own}; cache of Hugging Face: {encoder_files.hugging_face_cache()}"
    if variables:
        where += f" ({', '.join(variables)})"
    if folder is not None and not folder.is_dir():
        remedy = "Create it, or correct the variable."
        yield Item("encoders' folder", "problem", f"{own} is not a folder", remedy)
    try:
        known = table().encoders
    except WsiadError as error:
        yield Item("encoders", "problem", str(error), "Correct the table of the team's encoders.")
        return
    found = [item for one in known for item in _items(one)]
    count = sum(item.state == "ok" for item in found)
    yield Item(
        "encoders",
        "ok" if count else "note",
        f"{count} of {len(known)} at hand; {where}",
        "" if count else "They are optional; docs/encoders.md says how to get one.",
    )
    yield from found


def _items(encoder: Encoder) -> Iterator[Item]:
    """Yield what is there of an encoder; nothing where nothing is."""
    places = list(encoder_files.places(encoder))
    path = next((file for place in places for file in place.files), None)
    dangling = [link for place in places for link in place.dangling]
    if path is None:
        if dangling:
            finding = f"{dangling[0]} links to {dangling[0].readlink()}, which is not there"
            yield Item(encoder.name, "note", finding, encoder_files.source_of(encoder))
        return
    try:
        check_pointer(path)
        finding = f"{path}, {path.stat().st_size / _MIB:,.0f} MiB, {_verified(encoder, path)}"
    except (WsiadError, OSError) as error:
        problem = error.problem if isinstance(error, WsiadError) else str(error)
        remedy = error.remedy if isinstance(error, WsiadError) else None
        yield Item(encoder.name, "problem", f"{path}: {problem}", remedy or "")
        return
    others = f"{len(dangling)} other links lead nowhere, such as {dangling[0]}." if dangling else ""
    yield Item(encoder.name, "ok", f"{finding}; {_about(encoder)}", others)


def _verified(encoder: Encoder, path: Path) -> str:
    if not encoder.sha256:
        return "no SHA-256 is known, so that it cannot be verified"
    if encoder_files.known(encoder, file_sha256(path), path):
        return "verified"
    return "not verified: not a file whose SHA-256 is known"


def _about(encoder: Encoder) -> str:
    """Return the features, the scale and the terms of an encoder, as text."""
    scale = " or ".join(f"{mpp:g}" for mpp in encoder.mpp)
    at = f" at {scale} µm/px" if scale else ""
    gated = ", gated" if encoder.gated else ""
    return (
        f"{encoder.dim} features by {encoder.embedding}, {encoder.px} px{at}; "
        f"licence: {encoder.licence}{gated}"
    )
