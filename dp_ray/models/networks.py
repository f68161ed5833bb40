"""Small networks without state that crosses examples."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class GroupNormCNN(nn.Sequential):
    """Convolution → GroupNorm → ReLU blocks, max pooling between them, and a linear head.

    Args:
        channels: colour channels of the images.
        image_size: their side in pixels.
        num_classes: outputs.
        widths: output channels of each block; each must be a multiple of ``groups``.
        groups: groups of the normalisation (Wu & He 2018, arXiv 1803.08494).
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        widths: tuple[int, ...] = (16, 32),
        groups: int = 4,
    ) -> None:
        layers: list[nn.Module] = []
        side = image_size
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(groups, width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels, side = width, side // 2
        layers += [nn.Flatten(), nn.Linear(channels * side * side, num_classes)]
        super().__init__(*layers)


class TanhCNN(nn.Sequential):
    """The tanh networks of Papernot et al. 2021 (arXiv 2007.14191, section 5), by image size.

    Grey images get the two-convolution network (26,010 parameters at 28×28 with 10 classes),
    RGB ones the six-convolution one (550,570 at 32×32); sizes as tabulated in Tramèr & Boneh 2021
    (arXiv 2011.11660, appendix C).

    Args:
        channels: colour channels of the images.
        image_size: their side in pixels.
        num_classes: outputs.
    """

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        side = image_size
        if channels == 1:
            for kernel, stride, padding in ((8, 2, 3), (2, 1, 0), (4, 2, 0), (2, 1, 0)):
                side = (side + 2 * padding - kernel) // stride + 1
            features = nn.Sequential(
                nn.Conv2d(1, 16, 8, stride=2, padding=3),
                nn.Tanh(),
                nn.MaxPool2d(2, stride=1),
                nn.Conv2d(16, 32, 4, stride=2),
                nn.Tanh(),
                nn.MaxPool2d(2, stride=1),
            )
            hidden, flat = 32, 32 * side**2
        else:
            blocks: list[nn.Module] = []
            for width in (32, 64, 128):
                blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.Tanh()]
                blocks += [nn.Conv2d(width, width, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)]
                channels = width
            features = nn.Sequential(*blocks)
            side //= 8
            hidden, flat = 128, 128 * side**2
        if side < 1:
            raise ValueError(f"images of {image_size} pixels a side are too small for its layers")
        head = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)
        )
        super().__init__(OrderedDict(features=features, head=head))
