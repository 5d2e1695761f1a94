"""The check that a state dict is exactly that of a network: complete, with nothing left over."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from wsiad.core.errors import WeightsError

logger = logging.getLogger(__name__)

WRAPPERS = frozenset(
    {"module", "model", "backbone", "encoder", "net", "network", "teacher", "student", "trunk"}
    | {"visual", "_orig_mod", "feature_extractor", "state_dict"}
)
"""First parts of keys that other programs put before a network's own."""

NOT_LEARNT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Last parts of keys whose values are not weights: a file can hold them or not."""

_UNUSED = frozenset({"mask_token"})
"""Weights of a pre-training that no image of a tile uses."""

_NAMED = 3
_DEEPEST_WRAPPERS = 3


@dataclass(frozen=True, slots=True)
class Fit:
    """A network that weights must fit.

    Parameters
    ----------
    name : str
        Name of the network, for messages.
    whole : mapping of str to Tensor
        State dict of the complete network, in its order.
    needed : collection of str
        Keys of the parts in use.
    head : mapping of str to Tensor
        State dict of its classifier, which is left off. It can be missing, or have any number of
        classes.
    remedy : str
        Remedy for errors: the weights to use instead.
    of_timm : bool
        True if an error should say which arguments make the network of the weights.
    encoders : tuple of str
        Names of encoders with this network, which an error offers as well.
    """

    name: str
    whole: Mapping[str, Tensor]
    needed: Collection[str]
    head: Mapping[str, Tensor]
    remedy: str
    of_timm: bool = False
    encoders: tuple[str, ...] = ()


def unwrapped(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return tensors without prefixes of wrappers before their names, such as ``module.``.

    Prefixes are made of :data:`WRAPPERS`. The one is removed without which most names are those
    of the network, or none, if the names are right. Names without that prefix are unchanged.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    names : collection of str
        Keys of the network.

    Raises
    ------
    WeightsError
        A name occurs with the prefix and without it.
    """
    known = frozenset(names)

    def matches(prefix: str) -> int:
        return sum(key.startswith(prefix) and key.removeprefix(prefix) in known for key in tensors)

    best = max(_prefixes(tensors), key=lambda prefix: (matches(prefix), -len(prefix)))
    if not best or not matches(best):
        return dict(tensors)
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(best)
        if name in renamed:
            raise WeightsError(
                f"{name} occurs twice, with {best} before it and without",
                remedy="Save the state_dict() of the network alone.",
            )
        renamed[name] = tensor
    logger.info("removed %s before the names of weights", best)
    return renamed


def _prefixes(keys: Iterable[str]) -> set[str]:
    found = {""}
    for key in keys:
        prefix = ""
        for part in key.split(".")[:_DEEPEST_WRAPPERS]:
            if part not in WRAPPERS:
                break
            prefix += f"{part}."
            found.add(prefix)
    return found


def fitted(tensors: Mapping[str, Tensor], to: Fit) -> dict[str, Tensor]:
    """Check that tensors are the weights of a network; return the needed ones.

    Every key of the file must belong to the network and have its shape, and every key of the
    network must be present. Exceptions are the classifier, values that are computed and not
    learnt, and the end of a network whose last layers are not used.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Tensors with :func:`unwrapped` names.
    to : Fit

    Raises
    ------
    WeightsError
        A key is missing, left over, or has another shape; the error names such keys.
    """
    missing = _missing(tensors, to)
    over = [key for key in tensors if key not in to.whole and key not in to.head]
    unused = [key for key in over if key.rpartition(".")[2] in _UNUSED]
    over = [key for key in over if key not in unused and not _computed(key)]
    shapes = list(_other_shapes(tensors, to))
    if not (missing or over or shapes):
        if unused:
            logger.info("%s of %s is not used", ", ".join(unused), to.name)
        return {key: tensors[key] for key in to.needed if key in tensors}
    held = [key for key in to.whole if key in tensors]
    cut = bool(held) and held == list(to.whole)[: len(held)]
    if cut and not over and not shapes:
        raise WeightsError(
            f"the weights end with {held[-1]}: a chosen layer of {to.name} lies beyond",
            remedy="Choose layers that are not as deep, or use complete weights.",
        )
    problems = []
    if missing:
        more = f" (and {_several(missing[1:])})" if missing[1:] else ""
        problems.append(f"{missing[0]} is missing{more}")
    if over:
        have = "belongs" if len(over) == 1 else "belong"
        problems.append(f"{_several(over)} {have} to no part of the network")
    problems += shapes[:1]
    if shapes[1:]:
        others = len(shapes) - 1
        problems.append(f"{others} more {'does' if others == 1 else 'do'} not fit")
    raise WeightsError(
        f"{'; '.join(problems)}: these are not the weights of {to.name}",
        remedy=((_hint(over, shapes) if to.of_timm else "") or to.remedy) + _named(to.encoders),
    )


def left_off(tensors: Mapping[str, Tensor], to: Fit) -> list[str]:
    """Return the keys of the classifier that tensors hold."""
    return [key for key in to.head if key in tensors]


def _missing(tensors: Mapping[str, Tensor], to: Fit) -> list[str]:
    """Return missing keys, except those of an end that is not needed."""
    trunk = [key for key in to.whole if key not in to.head and not _computed(key)]
    missing = [key for key in trunk if key not in tensors]
    needed = set(to.needed)
    ends = missing == trunk[len(trunk) - len(missing) :] and needed.isdisjoint(missing)
    return [] if ends else missing


def _other_shapes(tensors: Mapping[str, Tensor], to: Fit) -> Iterator[str]:
    for key, own in {**to.whole, **to.head}.items():
        tensor = tensors.get(key)
        if tensor is None or _computed(key):
            continue
        if key in to.head:  # of any number of classes
            if tensor.shape[1:] != own.shape[1:] or tensor.ndim != own.ndim:
                yield f"{key} has the shape {tuple(tensor.shape)}, not {tuple(own.shape)}"
        elif tensor.shape != own.shape:
            yield f"{key} has the shape {tuple(tensor.shape)}, not {tuple(own.shape)}"
        elif own.is_floating_point() != tensor.is_floating_point():
            yield f"{key} holds {tensor.dtype}, not {own.dtype}".replace("torch.", "")


def _computed(key: str) -> bool:
    return key.rpartition(".")[2] in NOT_LEARNT


def _several(keys: list[str]) -> str:
    """Return the first few of many keys, as text."""
    named = ", ".join(key[:80] for key in keys[:_NAMED])
    return named + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _named(encoders: tuple[str, ...]) -> str:
    if not encoders:
        return ""
    return f" If they are an encoder's, choose it by name: --option backbone={encoders[0]}" + (
        f" (or {', '.join(encoders[1:])})." if encoders[1:] else "."
    )


def _hint(over: list[str], shapes: list[str]) -> str:
    """Return the advice which of timm's arguments makes the network of such weights."""
    if any(key.endswith((".ls1.gamma", ".ls2.gamma")) for key in over):
        return (
            "They are of a transformer with LayerScale: "
            "set --option 'backbone_args={init_values: 1.0}' (the value is loaded)."
        )
    if any(key.startswith("reg_token") for key in over):
        return "They are of one with registers: set --option 'backbone_args={reg_tokens: N}'."
    if shapes and shapes[0].startswith("pos_embed "):
        return (
            "They are for another size of image: set --option 'backbone_args={img_size: N}', "
            "and no_embed_class if the class token has no position."
        )
    return ""
