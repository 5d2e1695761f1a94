"""Names of weights in the files of encoders, and their translation to the names of timm.

A translation renames tensors, joins or splits them without loss, and leaves off what it states.
It says nothing about whether the result fits a network; see
:func:`wsiad.networks.encoder_network.loaded`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from wsiad.core.errors import WeightsError

KeyFormat = Literal[
    "timm", "hf-vit", "hf-dinov2", "dinov2", "hf-clip", "ctranspath", "conch", "torchvision"
]
"""Origin of the names: timm, transformers (ViT, DINOv2 with or without registers, CLIP), the
DINOv2 repository, CTransPath, CONCH, or torchvision."""

_QKV = re.compile(r"(blocks\.\d+\.attn)\.(q|k|v)\.(weight|bias)$")
_GATED = re.compile(r"(blocks\.\d+\.mlp)\.(gate|up)\.(weight|bias)$")

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Translation:
    """Rules of one format.

    Parameters
    ----------
    left_off : str
        Regular expression of the names that are left off, as a whole name.
    renamed : tuple of (str, str)
        Regular expressions and replacements; all are applied, in this order.
    after : callable
        Steps on the renamed tensors.
    """

    left_off: str = r"(?!)"
    renamed: tuple[tuple[str, str], ...] = ()
    after: tuple[Callable[[Tensors], Tensors], ...] = field(default=())


def _joined(tensors: Tensors, pattern: re.Pattern[str], parts: Iterable[str], to: str) -> Tensors:
    """Join tensors whose names differ in one part, in the order of the parts, along axis 0."""
    order, out = list(parts), {}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = pattern.match(name)
        if match is None:
            out[name] = tensor
        else:
            groups.setdefault(f"{match[1]}.{to}.{match[3]}", {})[match[2]] = tensor
    for name, found in groups.items():
        if found.keys() != set(order):
            raise WeightsError(f"{name} has only the parts {', '.join(sorted(found))}")
        out[name] = torch.cat([found[part] for part in order])
    return out


def _with_qkv(tensors: Tensors) -> Tensors:
    return _joined(tensors, _QKV, "qkv", "qkv")


def _with_gates(tensors: Tensors) -> Tensors:
    return _joined(tensors, _GATED, ("gate", "up"), "fc1")


def _class_position_added(tensors: Tensors) -> Tensors:
    """Add the position of the class token to it, for networks whose class token has none.

    Networks of DINOv2 with registers have a position for the class token, those of timm do not.
    """
    if "reg_token" not in tensors or not {"cls_token", "pos_embed"} <= tensors.keys():
        return tensors
    positions = tensors["pos_embed"]
    if positions.ndim != 3:
        return tensors
    return {
        **tensors,
        "cls_token": tensors["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


def _as_tokens(tensors: Tensors) -> Tensors:
    """Give CLIP's class token (C) and positions (T, C) the axes that timm's have."""
    out = dict(tensors)
    if "cls_token" in out:
        out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in out:
        out["pos_embed"] = out["pos_embed"][None]
    return out


def _with_zero_bias(tensors: Tensors) -> Tensors:
    """Add the bias that timm's projection has and CLIP's has not: zeros."""
    if "head.weight" not in tensors:
        return tensors
    return {**tensors, "head.bias": torch.zeros(len(tensors["head.weight"]))}


def _moved_downsampling(tensors: Tensors) -> Tensors:
    """Move the downsampling of a stage to the start of the next one, as in timm since 0.9."""

    def moved(name: str) -> str:
        match = re.match(r"layers\.(\d+)\.downsample\.(.+)", name)
        return f"layers.{int(match[1]) + 1}.downsample.{match[2]}" if match else name

    return {moved(name): tensor for name, tensor in tensors.items()}


def _pooler(tensors: Tensors) -> Tensors:
    """Give CONCH's attention pooler one layout, whichever of its two the file has.

    Either the queries, keys and values come from linear layers without biases (``to_q``,
    ``to_kv``, ``to_out``), or from PyTorch's multi-head attention with biases.
    """
    out = dict(tensors)
    bias = out.pop("pooler.in_proj_bias", None)
    if bias is not None:
        query, key, value = bias.chunk(3)
        out["pooler.q.bias"], out["pooler.kv.bias"] = query, torch.cat([key, value])
    if "pooler.k.weight" in out and "pooler.v.weight" in out:
        out["pooler.kv.weight"] = torch.cat(
            [out.pop("pooler.k.weight"), out.pop("pooler.v.weight")]
        )
    for part in ("q", "kv", "out"):
        weight = out.get(f"pooler.{part}.weight")
        if weight is not None:
            out.setdefault(f"pooler.{part}.bias", torch.zeros(len(weight)))
    return out


_TRANSFORMERS_BLOCKS: Final = (
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^layernorm\.", "norm."),
)

_TRANSLATIONS: Final[Mapping[KeyFormat, _Translation]] = {
    "timm": _Translation(left_off=r"mask_token|(?:head|fc)\.(?:weight|bias)"),
    "torchvision": _Translation(left_off=r"(?:fc|classifier)\.(?:weight|bias)"),
    "hf-vit": _Translation(
        left_off=r"(?:vit\.)?(?:embeddings\.mask_token|pooler\..*)|classifier\..*",
        renamed=(
            (r"^vit\.", ""),
            *_TRANSFORMERS_BLOCKS,
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
        after=(_with_qkv,),
    ),
    "hf-dinov2": _Translation(
        left_off=r"(?:dinov2(?:_with_registers)?\.)?(?:embeddings\.mask_token|pooler\..*)"
        r"|classifier\..*",
        renamed=(
            (r"^dinov2(?:_with_registers)?\.", ""),
            *_TRANSFORMERS_BLOCKS,
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
            (r"\.mlp\.gate_proj\.", ".mlp.gate."),
            (r"\.mlp\.up_proj\.", ".mlp.up."),
        ),
        after=(_with_qkv, _with_gates, _class_position_added),
    ),
    "dinov2": _Translation(
        left_off=r"(?:teacher\.)?(?:(?:backbone\.)?mask_token|(?:dino|ibot)_head\..*)",
        renamed=(
            (r"^teacher\.", ""),
            (r"^backbone\.", ""),
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
            (r"^register_tokens$", "reg_token"),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        after=(_class_position_added,),
    ),
    "hf-clip": _Translation(
        left_off=r"text_model\..*|text_projection\..*|logit_scale"
        r"|(?:vision_model\.)?embeddings\.position_ids",
        renamed=(
            (r"^vision_model\.", ""),
            (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
            (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"\.layer_norm(\d)\.", r".norm\1."),
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^pre_layrnorm\.", "norm_pre."),
            (r"^post_layernorm\.", "norm."),
            (r"^visual_projection\.", "head."),
        ),
        after=(_with_qkv, _as_tokens, _with_zero_bias),
    ),
    "ctranspath": _Translation(
        left_off=r"head\..*|.*\.(?:attn_mask|relative_position_index)",
        after=(_moved_downsampling,),
    ),
    "conch": _Translation(
        left_off=r"text\..*|text_decoder\..*|logit_scale"
        r"|(?:visual\.)?(?:attn_pool_caption\..*|ln_caption\..*|proj_contrast)",
        renamed=(
            (r"^visual\.", ""),
            (r"^trunk\.", ""),
            (r"^attn_pool_contrast\.attn\.in_proj_bias$", "pooler.in_proj_bias"),
            (r"^attn_pool_contrast\.attn\.(q|k|v)_proj_weight$", r"pooler.\1.weight"),
            (r"^attn_pool_contrast\.attn\.out_proj\.", "pooler.out."),
            (r"^attn_pool_contrast\.to_(q|kv|out)\.", r"pooler.\1."),
            (r"^attn_pool_contrast\.", "pooler."),
            (r"^ln_contrast\.", "pooler.norm."),
        ),
        after=(_pooler,),
    ),
}

_MAY_LACK: Final = "num_batches_tracked"
"""Last part of the names of counters, which weights can lack and which have no effect."""


def translated(tensors: Mapping[str, Tensor], origin: KeyFormat) -> tuple[Tensors, list[str]]:
    """Return tensors by timm's names, and the names in the file that are left off.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Tensors of a file.
    origin : KeyFormat
        Format of their names.

    Raises
    ------
    WeightsError
        Two tensors get the same name, or a part of one that is to be joined is missing.
    """
    rules = _TRANSLATIONS[origin]
    left_off = re.compile(rf"(?:{rules.left_off})|(?:.*\.)?{_MAY_LACK}")
    patterns = [(re.compile(pattern), to) for pattern, to in rules.renamed]
    out: Tensors = {}
    over = []
    for name, tensor in tensors.items():
        if left_off.fullmatch(name):
            over.append(name)
            continue
        new = name
        for pattern, to in patterns:
            new = pattern.sub(to, new)
        if new in out:
            raise WeightsError(f"{name[:80]} and another tensor are both {new[:80]}")
        out[new] = tensor
    for step in rules.after:
        out = step(out)
    return out, over
