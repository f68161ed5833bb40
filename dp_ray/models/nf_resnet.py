"""Normalizer-free residual networks: signals keep their variance by construction, not by norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dp_ray.models.wide_resnet import WeightStandardizedConv2d

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""γ: times this, the ReLU of a standard normal number has variance 1 (arXiv 2101.08692)."""


class _ScaledReLU(nn.Module):
    """γ · scale · max(x, 0)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.factor = RELU_GAIN * scale

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.factor * x.relu()


class _ResidualBlock(nn.Module):
    """x + α · skip_gain · f(β · x), or a 1×1 shortcut of the activation where the shape changes.

    f is the bottleneck 1×1 → 3×3 → 1×1, a scaled ReLU before each; β is one over the expected
    standard deviation of x.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        alpha: float,
        beta: float,
        skip_gain: float,
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        conv = WeightStandardizedConv2d
        self.alpha = alpha
        self.activation = _ScaledReLU(beta)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else conv(in_channels, out_channels, 1, stride, 0)
        self.residual = nn.Sequential(
            conv(in_channels, inner, 1, 1, 0),
            _ScaledReLU(),
            conv(inner, inner, 3, stride, 1),
            _ScaledReLU(),
            conv(inner, out_channels, 1, 1, 0),
        )
        self.skip_gain = nn.Parameter(torch.tensor(skip_gain))

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, H, W] to [n, out, H / stride, W / stride], rounded up."""
        activated = self.activation(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        total: Tensor = shortcut + self.alpha * self.skip_gain * self.residual(activated)
        return total


class NormFreeResNet(nn.Sequential):
    """NF-ResNet of Brock et al. 2021 (arXiv 2101.08692), which De et al. 2022 train on ImageNet.

    Pre-activation bottleneck blocks of weight-standardised convolutions. A block adds
    ``α · skip_gain`` times a branch of variance 1, so with gains of 1 the variance grows by α² a
    block; it starts again from 1 with the shortcut of each stage. The layout is that of the
    published code (google-deepmind/deepmind-research, ``nfnets/nf_resnet.py``), whose shortcuts
    are 1×1 convolutions. Strides are padded on both sides alike, as torch does, and stochastic
    depth is left out: no network here is random in other ways than dropout.

    Args:
        channels: colour channels of the images.
        image_size: their side in pixels; any.
        num_classes: outputs.
        depths: blocks of each stage; those of ResNet-50 by default.
        widths: output channels of each stage; the bottleneck and the stem have a quarter.
        alpha: α, the weight of a block's branch.
        skip_gain: where the learnable gain of each branch starts (SkipInit): 0 as published, 1 in
            the configuration published with De et al. 2022 (arXiv 2204.13650).
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        alpha: float = 0.2,
        skip_gain: float = 0.0,
    ) -> None:
        del image_size
        in_channels = widths[0] // 4
        layers: list[nn.Module] = [WeightStandardizedConv2d(channels, in_channels, 7, 2, 3)]
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        variance = 1.0
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                beta = variance**-0.5
                layers.append(
                    _ResidualBlock(
                        in_channels, width, stride, alpha=alpha, beta=beta, skip_gain=skip_gain
                    )
                )
                variance = (1.0 if block == 0 else variance) + alpha**2
                in_channels = width
        head = nn.Linear(in_channels, num_classes)
        super().__init__(*layers, _ScaledReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(head.weight, std=0.01)
