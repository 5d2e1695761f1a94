"""Blocks of transformers that restore tokens: linear, intrinsic and neighbour-masked attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPSILON = 1e-8  # of the layer normalisations
_RATIO = 4  # of the hidden width of a perceptron to its inputs
_HEAD = 64  # channels of an attention head, as in vision transformers


def heads_of(width: int) -> int:
    """Return the number of attention heads of a width: one for 64 channels, if they divide."""
    heads = max(1, width // _HEAD)
    return heads if width % heads == 0 else 1


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them; the hidden one is four times as wide.

    Parameters
    ----------
    width : int
        Number of channels C.
    bias : bool
    dropout : float
        Share of the inputs, hidden values and outputs that a training step leaves out.
    """

    def __init__(self, width: int, *, bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(width, _RATIO * width, bias=bias)
        self.outer = nn.Linear(_RATIO * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens of the same shape."""
        hidden = functional.gelu(self.inner(self.dropout(tokens)))
        found: Tensor = self.dropout(self.outer(self.dropout(hidden)))
        return found


class _Attention(nn.Module):
    """Queries of some tokens, and keys and values of others, by head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.query, self.both = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def parts(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (N, heads, T, C / heads) each."""
        key, value = self.both(asked).chunk(2, dim=-1)
        return self._by_head(self.query(asking)), self._by_head(key), self._by_head(value)

    def joined(self, values: Tensor) -> Tensor:
        """Return tokens (N, T, C) of values by head."""
        found: Tensor = self.out(values.transpose(1, 2).flatten(2))
        return found

    def _by_head(self, values: Tensor) -> Tensor:
        n, tokens, width = values.shape
        return values.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)


class LinearAttention(_Attention):
    """Attention by φ(q)(φ(k)ᵀ v) with φ = elu + 1, which cannot focus on single tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens of the same shape."""
        query, key, value = self.parts(tokens, tokens)
        query, key = functional.elu(query) + 1, functional.elu(key) + 1
        weight = query @ key.sum(dim=2, keepdim=True).transpose(2, 3)
        return self.joined(query @ (key.transpose(2, 3) @ value) / weight)


class SoftmaxAttention(_Attention):
    """Attention by the softmax of scaled products, with an optional mask."""

    def forward(self, asking: Tensor, asked: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map asking tokens (N, T, C) to mixtures of asked ones; ``mask`` is True where seen."""
        query, key, value = self.parts(asking, asked)
        return self.joined(
            functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        )


class PrototypeAttention(_Attention):
    """Attention to prototypes by the ReLU of cosines, each head with a scale that is learnt."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = nn.Parameter(torch.ones(self.heads, 1, 1))

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Map tokens (N, T, C) to sums of prototypes (N, P, C)."""
        query, key, value = self.parts(tokens, prototypes)
        cosines = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(
            2, 3
        )
        return self.joined(torch.relu(cosines * self.scale) @ value)


class LinearBlock(nn.Module):
    """Linear attention and a perceptron, each after a normalisation and beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attention, self.perceptron = LinearAttention(width), Perceptron(width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens of the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        found: Tensor = tokens + self.perceptron(self.norm2(tokens))
        return found


class AggregationBlock(nn.Module):
    """Learnt tokens that become prototypes of an image by attention to its own tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attention, self.perceptron = SoftmaxAttention(width), Perceptron(width, bias=False)

    def forward(self, learnt: Tensor, tokens: Tensor) -> Tensor:
        """Return prototypes (N, P, C) of learnt tokens of that shape and tokens (N, T, C)."""
        found = learnt + self.attention(self.norm1(learnt), self.norm1(tokens))
        prototypes: Tensor = found + self.perceptron(self.norm2(found))
        return prototypes


class PrototypeBlock(nn.Module):
    """Attention to prototypes without a skip, so that nothing strange can pass beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attention, self.perceptron = PrototypeAttention(width), Perceptron(width, bias=False)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens of the same shape made of prototypes (N, P, C)."""
        found = self.attention(self.norm1(tokens), self.norm1(prototypes))
        made: Tensor = found + self.perceptron(self.norm2(found))
        return made


class MaskedBlock(nn.Module):
    """Attention of tokens, or of a layer's own query, to tokens that are not neighbours.

    Normalisations follow the skips, as in the first transformers.

    Parameters
    ----------
    width : int
        Number of channels C.
    queries : int
        Number of learnt queries of a decoder's layer; 0 for a layer of the encoder.
    dropout : float
    """

    def __init__(self, width: int, *, queries: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.norm1 = SoftmaxAttention(width), nn.LayerNorm(width)
        self.perceptron, self.norm2 = Perceptron(width, bias=True), nn.LayerNorm(width)
        self.learnt = nn.Parameter(torch.randn(queries, width)) if queries else None
        if queries:
            self.second, self.norm3 = SoftmaxAttention(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Return tokens (N, T, C) of the layer before, memory (N, T, C) and a mask (T, T)."""
        asking = tokens if self.learnt is None else self.learnt.expand(len(tokens), -1, -1)
        found = self.norm1(asking + self.dropout(self.attention(asking, memory, mask)))
        if self.learnt is not None:
            found = self.norm3(found + self.dropout(self.second(found, tokens, mask)))
        made: Tensor = self.norm2(found + self.dropout(self.perceptron(found)))
        return made


def neighbours_hidden(edge: int, width: int) -> Tensor:
    """Return a mask, bool (edge², edge²), that hides the square of a width around each token.

    A token that would see nothing sees everything.

    Parameters
    ----------
    edge : int
        Edge of the grid of tokens.
    width : int
        Odd edge of the hidden square; 0 hides nothing.
    """
    along = torch.arange(edge)
    y, x = (axis.flatten() for axis in torch.meshgrid(along, along, indexing="ij"))
    far = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    seen = far > width // 2 if width else torch.ones_like(far, dtype=torch.bool)
    return seen | ~seen.any(dim=1, keepdim=True)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=_EPSILON)
