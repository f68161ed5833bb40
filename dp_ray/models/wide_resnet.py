"""The wide residual network of De et al. 2022, without state that crosses examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST_NORM = 1e-2
"""A nearly constant filter is divided by this and not by its own norm."""


class WeightStandardizedConv2d(nn.Conv2d):
    """Convolution whose filters have zero mean and, times a gain, unit norm.

    Each filter is standardised over (in, kh, kw) and divided by √fan-in, with a learnable gain for
    each output channel: ``gain · (w - mean(w)) / √(fan_in · var(w))``. The variance is the biased
    one, so the root is the norm of ``w - mean(w)``; it is taken to be at least 0.01. This is the
    scaled weight standardisation of Brock et al. 2021 (arXiv 2101.08692), as in the code published
    with De et al. 2022 (google-deepmind/jax_privacy, ``WSConv2D``). ``weight`` stays as it is.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.gain = nn.Parameter(torch.ones(out_channels))

    def standardized_weight(self) -> Tensor:
        """[out, in, kh, kw] filters, each of zero mean and of norm ``gain``."""
        filters = self.weight.flatten(1)
        centred = filters - filters.mean(dim=1, keepdim=True)
        unit = F.normalize(centred, dim=1, eps=_SMALLEST_NORM)
        return (self.gain[:, None] * unit).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, H, W] to [n, out, H', W']."""
        return F.conv2d(x, self.standardized_weight(), self.bias, self.stride, self.padding)


class _ResidualBlock(nn.Module):
    """Two 3×3 layers and the shortcut around them, a 1×1 layer where the shape changes."""

    def __init__(
        self, conv: type[nn.Conv2d], groups: int, in_channels: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()

        def layer(in_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.ReLU(),
                nn.GroupNorm(groups, in_channels),
                conv(in_channels, out_channels, kernel_size, stride, kernel_size // 2),
            )

        self.residual = nn.Sequential(layer(in_channels, 3, stride), layer(out_channels, 3, 1))
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else layer(in_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, H, W] to [n, out, H / stride, W / stride], rounded up."""
        total: Tensor = self.shortcut(x) + self.residual(x)
        return total


class WideResNet(nn.Sequential):
    """WRN-depth-width of De et al. 2022 (arXiv 2204.13650), a network made for DP-SGD.

    Zagoruyko & Komodakis's wide residual network (2016, arXiv 1605.07146) with group norm for batch
    norm and weight-standardised convolutions, in the order ReLU → norm → convolution, on projection
    shortcuts too. Parameters start as in the published code: weights normal with variance
    1 / fan-in, gains one, biases zero. Strided convolutions pad both sides alike, as torch does.

    Args:
        channels: colour channels of the images.
        image_size: their side in pixels, at least 8.
        num_classes: outputs.
        depth: 4 + 6 · blocks in each of the three groups; counts the projection shortcuts.
        width: factor k of the three groups' widths 16k, 32k, 64k.
        groups: groups of the normalisation; must divide 16.
        standardized: whether convolutions standardise their weights; False gives plain ones.

    Raises:
        ValueError: there is no network of this depth, or the images are too small.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        *,
        depth: int = 16,
        width: int = 4,
        groups: int = 16,
        standardized: bool = True,
    ) -> None:
        num_blocks, rest = divmod(depth - 4, 6)
        if num_blocks < 1 or rest:
            raise ValueError(f"depth must be 10, 16, 22, …, not {depth}")
        if image_size < 8:
            raise ValueError(f"images must be at least 8×8, not {image_size}×{image_size}")
        conv = WeightStandardizedConv2d if standardized else nn.Conv2d
        layers: list[nn.Module] = [conv(channels, 16, 3, 1, 1)]
        in_channels = 16
        for out_channels, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for stride in (first_stride, *[1] * (num_blocks - 1)):
                layers.append(_ResidualBlock(conv, groups, in_channels, out_channels, stride))
                in_channels = out_channels
        layers += [nn.ReLU(), nn.GroupNorm(groups, in_channels), nn.AdaptiveAvgPool2d(1)]
        layers += [nn.Flatten(), nn.Linear(in_channels, num_classes)]
        super().__init__(*layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
