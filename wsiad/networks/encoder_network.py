"""Networks of encoders: built by name, checked, and loaded with weights that fit exactly.

A strict load does not see a wrong activation, a wrong number of heads, another epsilon or another
way of pooling, so these are checked on the network itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError, WeightsError
from wsiad.networks import _timm
from wsiad.networks.encoder import Embedding, Encoder
from wsiad.networks.key_formats import Tensors, translated

logger = logging.getLogger(__name__)

CLASS_LAYER: Final = "norm:cls"
"""Layer of a transformer's class token, after the last normalisation."""

_NAMED = 3
_LAYER_CLASSES: Final = {
    "mlp_layer": frozenset({"Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"}),
    "act_layer": frozenset({"GELU", "SiLU", "QuickGELU"}),
}
"""Arguments that are classes, and the names that an entry can give them."""
_POOLER: Final = "pooler"


class Pooler(nn.Module):
    """Attention pooler of CONCH: one learnt query attends to all tokens.

    Parameters
    ----------
    context : int
        Number of channels of the tokens.
    width : int
        Number of channels of the query and of the result.
    heads : int
        Number of attention heads.

    Notes
    -----
    Lu et al., *A visual-language foundation model for computational pathology*, Nature Medicine
    2024. The result is that before the projection to the space shared with text, and it is not
    scaled to length 1.
    """

    def __init__(self, context: int, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(context)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, (N, width), of tokens (N, T, context)."""
        context = self.ln_k(tokens)
        query = self._by_head(self.q(self.ln_q(self.query))[None].expand(len(tokens), -1, -1))
        key, value = (self._by_head(part) for part in self.kv(context).chunk(2, dim=-1))
        found = functional.scaled_dot_product_attention(query, key, value)
        pooled: Tensor = self.norm(self.out(found.transpose(1, 2).flatten(2)))[:, 0]
        return pooled

    def _by_head(self, values: Tensor) -> Tensor:
        n, tokens, width = values.shape
        return values.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)


class ConvolutionStem(nn.Module):
    """First layer of CTransPath: three convolutions in place of the patches of a Swin transformer.

    Parameters
    ----------
    img_size, patch_size : int or tuple of int
        Edges of the images and of the patches, as timm passes them; patches have 4 px.
    in_chans, embed_dim : int
        Number of channels of the images and of the features.
    norm_layer : type of nn.Module, optional
        Normalisation after the convolutions.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Any = None,
        **_others: Any,
    ) -> None:
        super().__init__()
        image, patch = (
            (edge, edge) if isinstance(edge, int) else edge for edge in (img_size, patch_size)
        )
        grid = image[0] // patch[0]
        self.img_size, self.patch_size = image, patch
        self.grid_size, self.num_patches = (grid, grid), grid**2
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.proj = nn.Sequential(*parts, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, h, w, C), as Swin transformers of timm since 0.9 take them."""
        found: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return found


def build(encoder: Encoder, *, positions: Tensor | None = None) -> nn.Module:
    """Return the network of an encoder, without weights, after its checks.

    Parameters
    ----------
    encoder : Encoder
    positions : Tensor, optional
        Position embeddings of its weights, for encoders whose network follows their grid.

    Raises
    ------
    DetectorError
        timm is not installed or cannot make the network, or the network is not what the encoder
        states: its parameters, heads, epsilon, activation, tokens or patches.
    """
    arguments: dict[str, Any] = dict(encoder.arguments)
    added = 0
    if encoder.positions == "network" and positions is not None and encoder.transformer:
        own = encoder.transformer
        edge = _grid(positions.shape[1] - _with_position(encoder))
        stated = int(arguments.get("img_size", encoder.px)) // own.patch_px
        arguments["img_size"] = edge * own.patch_px
        added = (edge**2 - stated**2) * positions.shape[2]
    network = _timm.made(encoder.network, _with_classes(encoder, arguments))
    if encoder.pooler:
        context = int(network.num_features)  # type: ignore[arg-type]
        pooler = encoder.pooler
        network = _pooled(network, Pooler(context, width=pooler.width, heads=pooler.heads))
    _check(network, encoder, encoder.parameters + added)
    return network.eval()


def loaded(encoder: Encoder, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the network of an encoder with its weights.

    Parameters
    ----------
    encoder : Encoder
    tensors : mapping of str to Tensor
        Weights by timm's names; see :func:`fitting`.

    Raises
    ------
    DetectorError
        The network cannot be made; see :func:`build`.
    WeightsError
        The weights are not exactly those of the network: every name and every shape.
    """
    network: nn.Module | None = None
    # Drawing a billion weights takes longer than loading them, and as much memory again.
    for device in (torch.device("meta"), None):
        with device or nullcontext():
            network = build(encoder, positions=tensors.get("pos_embed"))
        check_fit(encoder, network, tensors)
        network.load_state_dict(dict(tensors), strict=False, assign=True)
        if device is None or not any(
            tensor.is_meta for tensor in (*network.parameters(), *network.buffers())
        ):
            break  # else it computes tensors when it is made
    assert network is not None
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            raise DetectorError(f"{name} of {encoder.name} has no value")
    return network


def check_fit(encoder: Encoder, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are exactly those of a network: every name, and every shape.

    Raises
    ------
    WeightsError
        A name is missing or left over, or a shape differs; the error names the first few.
    """
    own = network.state_dict()
    needed = {name for name in own if name.rpartition(".")[2] != "num_batches_tracked"}
    missing = [name for name in own if name in needed and name not in tensors]
    over = [name for name in tensors if name not in own]
    shapes = [
        f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} holds {str(tensors[name].dtype).removeprefix('torch.')}"
        for name in own
        if name in tensors and tensors[name].is_floating_point() != own[name].is_floating_point()
    ]
    problems = []
    if missing:
        problems.append(f"{_several(missing)} {_is(missing)} missing")
    if over:
        problems.append(f"{_several(over)} {_is(over)} left over")
    if shapes:
        more = f" (and {len(shapes) - 1} more)" if shapes[1:] else ""
        problems.append(shapes[0] + more)
    problems += kinds[:1]
    if problems:
        raise WeightsError(
            f"are not the weights of {encoder.name}: {'; '.join(problems)}",
            remedy=_remedy(encoder, missing, over, shapes),
        )


def fitting(encoder: Encoder, tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Return the tensors of a file by timm's names, checked, and the names that were left off.

    Of several formats that the encoder's files can have, the first is taken that fits.

    Raises
    ------
    WeightsError
        The tensors are not exactly those of the encoder.
    DetectorError
        The network cannot be made; see :func:`build`.
    """
    first: WeightsError | None = None
    for origin in encoder.keys:
        try:
            found, left_off = translated(tensors, origin)
            found = _with_grid(encoder, found)
            with torch.device("meta"):
                network = build(encoder, positions=found.get("pos_embed"))
            check_fit(encoder, network, found)
        except WeightsError as error:
            first = first or error
        else:
            if left_off:
                logger.info("%s: %s not used", encoder.name, _several(left_off))
            return found, left_off
    assert first is not None
    raise first


def random_tensors(encoder: Encoder, seed: int) -> Tensors:
    """Return the weights of a new network of an encoder, drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(build(encoder).state_dict())


def embedding_layers(encoder: Encoder, embedding: Embedding) -> tuple[str, ...]:
    """Return the layers whose features, averaged over their places, are an embedding.

    The class token is a map of one place, the patch tokens are one of many; registers are in
    neither. All are taken after the last normalisation.

    Raises
    ------
    DetectorError
        The encoder has no class token.
    """
    patches = "layer4" if encoder.network.startswith("resnet") else "norm"
    match embedding:
        case "cls":
            return (_class_layer(encoder),)
        case "cls+patch_mean":
            return (_class_layer(encoder), patches)
        case _:
            return (patches,)


def stage_layers(encoder: Encoder, names: Sequence[str]) -> tuple[str, ...]:
    """Return layers from the finest to the deepest: one at each third of the depth, or by stage.

    A transformer of one or two blocks has as many layers.

    Parameters
    ----------
    encoder : Encoder
    names : sequence of str
        Names of its weights.
    """
    if encoder.network.startswith("resnet"):
        return ("layer1", "layer2", "layer3")
    if encoder.transformer is None:
        return ("layers.0", "layers.1", "layers.2")
    blocks = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    depth = len(blocks)
    chosen = (max(0, depth * third // 3 - 1) for third in (1, 2, 3))
    return tuple(f"blocks.{number}" for number in dict.fromkeys(chosen))


def _class_layer(encoder: Encoder) -> str:
    if encoder.pooler:
        return _POOLER
    if encoder.projection:
        return "head"
    if encoder.transformer is None:
        raise DetectorError(
            f"{encoder.name} has no class token",
            remedy="Set --option embedding=patch_mean or places.",
        )
    return CLASS_LAYER


def _with_classes(encoder: Encoder, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with classes in place of the names of layers."""
    plain = {name: one for name, one in arguments.items() if name not in _LAYER_CLASSES}
    out = {**arguments, **_timm.checked(plain)}
    for name, allowed in _LAYER_CLASSES.items():
        value = out.get(name)
        if value is None:
            continue
        if value not in allowed:
            raise DetectorError(
                f"{value!r} is not an {name} of {encoder.name}",
                remedy=f"Choose {', '.join(sorted(allowed))}.",
            )
        out[name] = _timm.layer_class(str(value))
    if encoder.stem == "convolutions":
        out["embed_layer"] = ConvolutionStem
    return {"num_classes": encoder.projection or 0, **out}


def _pooled(network: nn.Module, pooler: Pooler) -> nn.Module:
    """Return a transformer whose output is that of the pooler."""
    network.add_module(_POOLER, pooler)
    features = network.forward_features

    def forward(images: Tensor) -> Tensor:
        pooled: Tensor = pooler(features(images))  # type: ignore[operator]
        return pooled

    network.forward = forward
    return network


def _check(network: nn.Module, encoder: Encoder, parameters: int) -> None:
    """Check a network against what its encoder states."""
    pooler = getattr(network, _POOLER, None)
    extra = sum(p.numel() for p in pooler.parameters()) if pooler is not None else 0
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters()) - extra}
    wanted: dict[str, Any] = {"parameters": parameters}
    blocks: Any = getattr(network, "blocks", None)
    own = encoder.transformer
    if blocks is not None and own is None:
        raise DetectorError(
            f"{encoder.network} is a transformer, and {encoder.name} does not state its heads, "
            "eps, activation, prefix_tokens and patch_px",
            remedy="Add them to its entry, under transformer: a strict load does not see them.",
        )
    if own is not None:
        if blocks is None:
            raise DetectorError(f"{encoder.network} is no transformer of blocks")
        net: Any = network
        found |= {
            "heads": blocks[0].attn.num_heads,
            "eps": net.norm.eps if isinstance(net.norm, nn.LayerNorm) else "no last normalisation",
            "activation": type(blocks[0].mlp.act).__name__,
            "prefix_tokens": net.num_prefix_tokens,
            "patch_px": net.patch_embed.patch_size[0],
        }
        wanted |= own.model_dump()
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong:
        raise DetectorError(
            f"timm {_timm.version()} makes {encoder.name} with "
            + ", ".join(f"{name} {found[name]}, not {wanted[name]}" for name in wrong),
            remedy="Correct the encoder's entry if it is your own; else install another timm.",
        )


def _with_grid(encoder: Encoder, tensors: Tensors) -> Tensors:
    """Resample position embeddings to the network's grid, if the encoder says so."""
    positions = tensors.get("pos_embed")
    if encoder.positions in ("exact", "network") or positions is None or positions.ndim != 3:
        return tensors
    assert encoder.transformer is not None
    grid = int(encoder.arguments.get("img_size", encoder.px)) // encoder.transformer.patch_px
    prefix = _with_position(encoder)
    given = _grid(positions.shape[1] - prefix)
    if given == grid:
        return tensors
    logger.info(
        "%s: position embeddings of %d × %d patches are resampled to %d × %d (%s)",
        *(encoder.name, given, given, grid, grid, encoder.positions),
    )
    patches = positions[:, prefix:].reshape(1, given, given, -1).permute(0, 3, 1, 2)
    resampled = functional.interpolate(
        patches.float(), size=(grid, grid), mode=encoder.positions, align_corners=False
    )
    whole = torch.cat([positions[:, :prefix], resampled.flatten(2).transpose(1, 2)], dim=1)
    return {**tensors, "pos_embed": whole}


def _with_position(encoder: Encoder) -> int:
    """Return the number of prefix tokens that have a position of their own."""
    assert encoder.transformer is not None
    return 1 if encoder.transformer.prefix_tokens == 1 else 0


def _grid(patches: int) -> int:
    edge = math.isqrt(max(patches, 0))
    if edge**2 != patches or not edge:
        raise WeightsError(f"pos_embed has the positions of {patches} patches, which is no square")
    return edge


def _remedy(encoder: Encoder, missing: list[str], over: list[str], shapes: list[str]) -> str:
    scale = (".ls1.gamma", ".ls2.gamma")
    if any(name.endswith(scale) for name in over):
        return "They are of a network with LayerScale: choose the encoder that they are of."
    if any(name.endswith(scale) for name in missing):
        return "They are of a network without LayerScale: choose the encoder that they are of."
    if any(name.startswith("reg_token") for name in (*missing, *over)):
        return "They differ in the registers: choose the encoder that they are of."
    if shapes and shapes[0].startswith("pos_embed "):
        return "They are for images of another size: choose the encoder that they are of."
    where = " or ".join(encoder.repositories) or "its publication"
    return f"Pass the file of {where}, unchanged."


def _several(names: list[str]) -> str:
    named = ", ".join(name[:80] for name in names[:_NAMED])
    return named + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
