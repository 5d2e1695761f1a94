"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError

_WIDTHS = (16, 32, 64)


class WideResNet(nn.Module):
    """WRN-d-k: three groups of (d − 4) / 6 pre-activated blocks, k times as wide as a ResNet.

    Parameters
    ----------
    depth : int
        Depth d: 10, 16, 22, 28, …
    width : int
        Width factor k.
    classes : int
        Number of outputs.
    initialisation : {"fan-out", "fan-in"}
        Connections that scale the initial weights of convolutions (He et al. 2015): outgoing ones,
        or incoming ones.

    Raises
    ------
    DetectorError
        No such network has this depth.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        classes: int,
        *,
        initialisation: Literal["fan-out", "fan-in"] = "fan-out",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise DetectorError(
                f"a wide residual network cannot have a depth of {depth}",
                remedy="Choose 10, 16, 22, 28, …",
            )
        channels = _WIDTHS[0]
        modules: list[nn.Module] = [_convolution(3, channels, 1)]
        for group, base in enumerate(_WIDTHS):
            for block in range((depth - 4) // 6):
                stride = 2 if group and not block else 1
                modules.append(WideBlock(channels, base * width, stride))
                channels = base * width
        modules += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*modules, nn.Linear(channels, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan: Literal["fan_out", "fan_in"] = (
                    "fan_out" if initialisation == "fan-out" else "fan_in"
                )
                nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, classes)."""
        logits: Tensor = self.layers(x)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the features in which the logits are linear, (N, C)."""
        found: Tensor = self.layers[:-1](x)
        return found


class WideBlock(nn.Module):
    """Block: normalise, activate, convolve, twice; the skip is activated if widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = _convolution(inputs, outputs, stride)
        self.conv2 = _convolution(outputs, outputs, 1)
        same = inputs == outputs and stride == 1
        self.skip = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C', h', w')."""
        activated = torch.relu(self.norm1(x))
        main: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(activated))))
        return main + (x if self.skip is None else self.skip(activated))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
