"""Classifiers of bags of feature vectors: a slide is a bag, and only its label is known.

Each classifier gives a bag its logit, whatever the order of its vectors. The logit of a bag of one
vector is the classifier of that vector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BagClassifier(nn.Module):
    """A classifier of bags of vectors, (n, D) each with its own n."""

    def forward(self, bags: Sequence[Tensor]) -> Tensor:
        """Return the logit of each bag, (B,); higher means anomalous."""
        return torch.stack([self.bag(vectors) for vectors in bags])

    @abstractmethod
    def bag(self, vectors: Tensor) -> Tensor:
        """Return the logit, (), of one bag of vectors, (n, D)."""

    @abstractmethod
    def alone(self, vectors: Tensor) -> Tensor:
        """Return the logits, (N,), of vectors (N, D), each as a bag of its own."""


class HighestOfBag(BagClassifier):
    """The mean of the highest logits of a bag's vectors, each from a linear classifier.

    Parameters
    ----------
    width : int
        Number of channels of a vector.
    top : int
        Number of vectors that count; all, in a smaller bag.

    Notes
    -----
    Campanella et al., *Clinical-grade computational pathology using weakly supervised deep
    learning on whole slide images*, Nature Medicine 2019, with ``top`` 1, as in the authors' code,
    which trains the whole network.
    """

    def __init__(self, width: int, *, top: int = 1) -> None:
        super().__init__()
        self.top = top
        self.classifier = nn.Linear(width, 1)

    def bag(self, vectors: Tensor) -> Tensor:
        """Return the mean of the highest logits."""
        logits = self.alone(vectors)
        return logits.topk(min(self.top, len(logits))).values.mean()

    def alone(self, vectors: Tensor) -> Tensor:
        """Return the logit of each vector."""
        found: Tensor = self.classifier(vectors)
        return found[:, 0]


class ExtremesOfBag(BagClassifier):
    """A small network on the highest and the lowest values of a bag.

    Every vector has one linear value. The ``extremes`` highest and as many lowest values, each
    in order, go through two hidden layers. A bag with fewer vectors repeats its last one.

    Parameters
    ----------
    width : int
        Number of channels of a vector.
    extremes : int
        Number of values from each end.
    hidden : sequence of int
        Widths of the hidden layers.
    dropout : float
        Share of hidden units that are left out in training.

    Notes
    -----
    Courtiol et al., *Classification and Disease Localization in Histopathology Using Only Global
    Labels* (CHOWDER), 2018 (arXiv 1802.02212); from general knowledge of the paper: R = 5, layers
    of 200 and 100 with sigmoids, dropout 0.5.
    """

    def __init__(
        self,
        width: int,
        *,
        extremes: int = 5,
        hidden: Sequence[int] = (200, 100),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.extremes = extremes
        self.value = nn.Linear(width, 1)
        layers: list[nn.Module] = []
        before = 2 * extremes
        for units in hidden:
            layers += [nn.Linear(before, units), nn.Sigmoid(), nn.Dropout(dropout)]
            before = units
        self.network = nn.Sequential(*layers, nn.Linear(before, 1))

    def bag(self, vectors: Tensor) -> Tensor:
        """Return the network's logit of the extremes."""
        values: Tensor = self.value(vectors)[:, 0]
        ordered = values.sort(descending=True).values
        places = torch.arange(self.extremes, device=values.device).clamp(max=len(values) - 1)
        found: Tensor = self.network(torch.cat([ordered[places], ordered.flip(0)[places]]))
        return found[0]

    def alone(self, vectors: Tensor) -> Tensor:
        """Return the network's logit of each vector, whose value is all extremes."""
        found: Tensor = self.network(self.value(vectors).expand(-1, 2 * self.extremes))
        return found[:, 0]


class AttentionOfBag(BagClassifier):
    r"""A linear classifier of the mean of a bag's vectors, weighted by gated attention.

    With h = relu(W x), the weights are the softmax over the bag of
    :math:`w^\top (\tanh(V h) \odot \sigma(U h))`.

    Parameters
    ----------
    width : int
        Number of channels of a vector.
    hidden : int
        Number of channels of h.
    attention : int
        Number of channels of the attention.

    Notes
    -----
    Ilse, Tomczak & Welling, *Attention-based Deep Multiple Instance Learning*, ICML 2018 (arXiv
    1802.04712), eq. 7 and 9.
    """

    def __init__(self, width: int, *, hidden: int = 512, attention: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.tanh = nn.Linear(hidden, attention)
        self.gate = nn.Linear(hidden, attention)
        self.attention = nn.Linear(attention, 1)
        self.classifier = nn.Linear(hidden, 1)

    def bag(self, vectors: Tensor) -> Tensor:
        """Return the logit of the weighted mean."""
        found: Tensor = self.classifier(self.weights(vectors) @ self._hidden(vectors))
        return found[0]

    def alone(self, vectors: Tensor) -> Tensor:
        """Return the logit of each vector, whose weight is 1."""
        found: Tensor = self.classifier(self._hidden(vectors))
        return found[:, 0]

    def weights(self, vectors: Tensor) -> Tensor:
        """Return the weights, (n,), of a bag's vectors; they add up to 1."""
        hidden = self._hidden(vectors)
        gated = torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.gate(hidden))
        found: Tensor = self.attention(gated)
        return torch.softmax(found[:, 0], dim=0)

    def _hidden(self, vectors: Tensor) -> Tensor:
        return nn.functional.relu(self.hidden(vectors))
