"""K random views of each example, made in batch on the device; no Python loop over images.

Shapes: B examples, K views, V = B·K; images are [C, H, W]. Order of the transforms: mirror, then
one affine map (rotation, zoom, shift), colour, normalisation, cutout. Each follows the convention
of its torchvision counterpart, named in the functions below and compared with in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dp_ray.config.data import AugmentConfig
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError
from dp_ray.keys import KeyedStream


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for each of V views; every field is a [V] tensor.

    Attributes:
        mirror: bool, mirror left and right.
        angle: degrees, clockwise.
        zoom: factor.
        shift_x, shift_y: pixels, to the right and down.
        brightness, contrast, saturation: factors, 1 changes nothing.
        hue: part of the colour circle, 0 changes nothing.
        cutout_x, cutout_y: int64, the square's upper left corner, which may lie outside.
    """

    mirror: Tensor
    angle: Tensor
    zoom: Tensor
    shift_x: Tensor
    shift_y: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    cutout_x: Tensor
    cutout_y: Tensor


class ViewMaker:
    """Makes the views that a configuration asks for.

    Args:
        config: which transforms, and how strong.
        facts: image size and normalisation.
        device: where views are made.

    Raises:
        ConfigError: a transform that these images do not allow.
    """

    _NUMBERS_PER_VIEW = 11

    def __init__(self, config: AugmentConfig, facts: DataFacts, device: torch.device) -> None:
        if config.shift >= facts.image_size:
            raise ConfigError(
                "augment.shift",
                config.shift,
                f"the images have {facts.image_size} pixels a side",
                "Use a smaller shift",
            )
        if facts.channels == 1 and (config.saturation or config.hue):
            field = "saturation" if config.saturation else "hue"
            raise ConfigError(
                f"augment.{field}", getattr(config, field), "the images are grey", "Leave it out"
            )
        self._config = config
        self._size = facts.image_size
        self._device = device
        self._mean = torch.tensor(facts.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(facts.std, device=device).view(-1, 1, 1)

    def draw(self, stream: KeyedStream, ids: NDArray[np.int64]) -> ViewParameters:
        """Random parameters of the K views of each of B examples, in the order of ``ids``.

        A view's parameters are a function of the stream, its example's id and its number.
        """
        return self.parameters(self.numbers(stream, ids).to(self._device))

    def numbers(self, stream: KeyedStream, ids: NDArray[np.int64]) -> Tensor:
        """[11, V] float64 in [0, 1) on the host, from which :meth:`parameters` are made."""
        views = self._config.views
        view_ids: NDArray[np.uint64] = np.add.outer(
            ids.astype(np.uint64) * np.uint64(views), np.arange(views, dtype=np.uint64)
        )
        numbers = stream.uniform(view_ids.reshape(-1), self._NUMBERS_PER_VIEW)
        return torch.from_numpy(numbers.T.copy())

    def parameters(self, u: Tensor) -> ViewParameters:
        """What :meth:`draw` returns, from the numbers [11, V] on the device."""
        config = self._config

        def around(center: float, width: float, row: int) -> Tensor:
            return (center + width * (2 * u[row] - 1)).float()

        def pixels(row: int) -> Tensor:
            if config.subpixel:
                return around(0.0, config.shift, row)
            whole = math.floor(config.shift)
            return (u[row] * (2 * whole + 1)).floor().float() - whole

        def corner(row: int) -> Tensor:
            return (u[row] * self._size).long() - config.cutout // 2

        return ViewParameters(
            mirror=u[0] < config.horizontal_flip,
            angle=around(0.0, config.rotation, 1),
            zoom=around(1.0, config.scale, 2),
            shift_x=pixels(3),
            shift_y=pixels(4),
            brightness=around(1.0, config.brightness, 5),
            contrast=around(1.0, config.contrast, 6),
            saturation=around(1.0, config.saturation, 7),
            hue=around(0.0, config.hue, 8),
            cutout_x=corner(9),
            cutout_y=corner(10),
        )

    def make(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """[B, C, H, W] uint8 → [B, K, C, H, W] float32, normalised."""
        config, views = self._config, self._config.views
        x = images.to(self._device).float() / 255
        x = x[:, None].expand(-1, views, -1, -1, -1).reshape(-1, *x.shape[1:])
        x = self._move(x, parameters)
        if config.brightness:
            x = adjust_brightness(x, parameters.brightness)
        if config.contrast:
            x = adjust_contrast(x, parameters.contrast)
        if config.saturation:
            x = adjust_saturation(x, parameters.saturation)
        if config.hue:
            x = adjust_hue(x, parameters.hue)
        x = (x - self._mean) / self._std
        if config.cutout:
            x = erase_square(x, parameters.cutout_x, parameters.cutout_y, config.cutout)
        return x.view(-1, views, *x.shape[1:])

    def normalize(self, images: Tensor) -> Tensor:
        """[B, C, H, W] uint8 → the same as float32, unchanged but for normalisation."""
        return self.standardize(images.to(self._device).float() / 255)

    def standardize(self, images: Tensor) -> Tensor:
        """[B, C, H, W] from 0 to 1 on the device → the same less the mean, over the divisor."""
        return (images - self._mean) / self._std

    def denormalize(self, images: Tensor) -> Tensor:
        """Normalised images [..., C, H, W] → uint8, as people see them."""
        x = (images * self._std + self._mean).clamp(0, 1)
        return (x * 255).round().to(torch.uint8)

    def _move(self, x: Tensor, parameters: ViewParameters) -> Tensor:
        config = self._config
        if config.horizontal_flip:
            x = torch.where(parameters.mirror.view(-1, 1, 1, 1), x.flip(-1), x)
        if not (config.rotation or config.scale or config.shift):
            return x
        if not (config.rotation or config.scale or config.subpixel):
            margin = math.floor(config.shift)
            return shift_pixels(F.pad(x, (margin,) * 4, mode=config.padding), parameters, margin)
        margin = 0  # affine() takes what lies outside as black
        if config.padding == "reflect":
            margin = min(math.ceil(self._reach()), self._size - 1)
            x = F.pad(x, (margin,) * 4, mode="reflect")
        return affine(x, parameters, margin)

    def _reach(self) -> float:
        """Pixels beyond the image that the strongest draw looks at: a corner, moved the most."""
        turn = math.radians(min(self._config.rotation, 45.0))
        corner = (self._size / 2 + self._config.shift) * (math.cos(turn) + math.sin(turn))
        return corner / (1 - self._config.scale) - self._size / 2 + 1


def shift_pixels(x: Tensor, parameters: ViewParameters, margin: int) -> Tensor:
    """Whole-pixel shift of images that have ``margin`` pixels around them (``v2.crop``)."""
    position = torch.arange(margin, x.shape[-1] - margin, device=x.device)
    rows = position - parameters.shift_y.long()[:, None]
    columns = position - parameters.shift_x.long()[:, None]
    view = torch.arange(len(x), device=x.device)[:, None, None]
    # Advanced indices on both sides of a slice come first: [V, H, W, C].
    return x[view, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def affine(x: Tensor, parameters: ViewParameters, margin: int) -> Tensor:
    """Rotation, zoom and shift about the centre, bilinear, black outside (``v2.affine``)."""
    padded = x.shape[-1]
    size = padded - 2 * margin
    angle = torch.deg2rad(parameters.angle)[:, None, None]
    # For each output pixel, where it comes from: undo the shift, then the rotation and zoom.
    center = torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2
    out_x = center[None, None, :] - parameters.shift_x[:, None, None]
    out_y = center[None, :, None] - parameters.shift_y[:, None, None]
    zoom = parameters.zoom[:, None, None]
    in_x = (angle.cos() * out_x + angle.sin() * out_y) / zoom
    in_y = (-angle.sin() * out_x + angle.cos() * out_y) / zoom
    grid = torch.stack([in_x, in_y], dim=-1) * (2 / padded)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@cache
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copied to a device once: each copy from the host waits for all work before it."""
    return torch.tensor(values, device=device, dtype=dtype)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor.view(-1, 1, 1, 1) * (x - other) + other).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    weights = _constant((0.2989, 0.587, 0.114), x.device, x.dtype)
    return torch.einsum("vchw,c->vhw", x, weights)[:, None]


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Images [V, C, H, W] in [0, 1] scaled by factors [V] (``v2.adjust_brightness``)."""
    return _blend(x, torch.zeros_like(x), factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey (``v2.adjust_contrast``)."""
    return _blend(x, _grey(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image (``v2.adjust_saturation``)."""
    return _blend(x, _grey(x), factor)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Hue of RGB images [V, 3, H, W] turned by [V] parts of the circle (``v2.adjust_hue``)."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (torch.where(chroma == 0, torch.zeros_like(hue), hue) / 6 + turn.view(-1, 1, 1)) % 1
    # A channel is the value, less the chroma as far as the hue lies from that channel's colour.
    offset = _constant((5.0, 3.0, 1.0), x.device, x.dtype).view(1, 3, 1, 1)
    k = (offset + 6 * hue[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def erase_square(x: Tensor, left: Tensor, top: Tensor, side: int) -> Tensor:
    """Zero in a square of ``side`` pixels (``v2.erase``; cutout: DeVries & Taylor 2017)."""
    position = torch.arange(x.shape[-1], device=x.device)
    columns = (position >= left[:, None]) & (position < left[:, None] + side)
    rows = (position >= top[:, None]) & (position < top[:, None] + side)
    return x.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]), 0.0)
