"""How an image becomes a network's input: decoded and normalised as in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_ray.config.data import AugmentConfig, DataConfig
from dp_ray.data.facts import data_facts
from dp_ray.data.pictures import Background, picture_of, read_picture
from dp_ray.data.source import DataFacts
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = str | os.PathLike[str] | Image | NDArray[Any] | Tensor
    """What :class:`Preprocess` takes."""

_TAKEN = (
    "Give a file, a Pillow image, uint8 of shape [H, W], [C, H, W] or [n, C, H, W] with 1 or 3 "
    "channels, or fractions from 0 to 1 of the shape that the network takes"
)


@dataclass(frozen=True)
class Preprocess:
    """The input that a network was trained for, as a function of an image.

    Attributes:
        facts: size, channels and normalisation of the input.
        background: what shows through transparent parts.
        class_names: names of the network's outputs, by label; empty if they have none.
    """

    facts: DataFacts
    background: Background = "white"
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: DataConfig, class_names: Sequence[str] = ()) -> Preprocess:
        """Return that of a data section; reads no data."""
        return cls(data_facts(config), config.background, tuple(class_names))

    def __call__(self, image: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Return the normalised input [n, C, S, S], float32.

        Args:
            image: a file or a Pillow image (turned upright, put on the background, resized so that
                the shorter side has S pixels, and the centre cut out); uint8 pixels as an array or
                tensor [H, W], [C, H, W] or [n, C, H, W], treated likewise; fractions from 0 to 1,
                [C, S, S] or [n, C, S, S]; or a list of these.

        Raises:
            DataError: it is none of these, or cannot be read.
        """
        if isinstance(image, list | tuple) and image:
            return torch.cat([self(one) for one in image])
        if not isinstance(image, np.ndarray | Tensor):
            return self._normalized(self._decoded(image)[None])
        values = image if isinstance(image, Tensor) else _as_tensor(image)
        if values.is_floating_point():
            return self._views.standardize(self._checked_fractions(values))
        return self._normalized(self._pixels(values))

    @cached_property
    def _views(self) -> ViewMaker:
        """Makes the views of an evaluation, which are not augmented."""
        return ViewMaker(AugmentConfig(), self.facts, torch.device("cpu"))

    def _normalized(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self._views.normalize(torch.tensor(pixels))

    def _decoded(self, image: Any) -> NDArray[np.uint8]:
        """Pixels [C, S, S] of a file or a Pillow image."""
        from PIL.Image import Image

        if isinstance(image, str | os.PathLike):
            path = Path(image)
            try:
                return read_picture(
                    path,
                    channels=self.facts.channels,
                    image_size=self.facts.image_size,
                    background=self.background,
                ).pixels
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{path} is no readable image: {reason}") from error
            except Exception as error:  # Pillow raises a dozen kinds for broken files
                raise DataError(f"{path} is no readable image: {error}") from error
        if not isinstance(image, Image):
            raise DataError(f"an object of type {type(image).__name__} is no image. {_TAKEN}")
        try:
            return picture_of(
                image,
                channels=self.facts.channels,
                image_size=self.facts.image_size,
                background=self.background,
            ).pixels
        except Exception as error:
            raise DataError(f"the image cannot be used: {error}. {_TAKEN}") from error

    def _pixels(self, values: Tensor) -> NDArray[np.uint8]:
        """Pixels [n, C, S, S] of uint8 values of any size."""
        from PIL import Image

        shape = tuple(values.shape)
        if values.dtype != torch.uint8 or not 2 <= values.ndim <= 4 or 0 in shape:
            raise DataError(f"{values.dtype} of shape {shape} is no image. {_TAKEN}")
        images = values[(None,) * (4 - values.ndim)].cpu()
        if images.shape[1] not in (1, 3):
            raise DataError(
                f"uint8 of shape {shape} has {images.shape[1]} channels, before height and width. "
                f"{_TAKEN}"
            )
        if images.shape[1:] == self.facts.shape:
            return images.numpy()
        rows = [i[0] if len(i) == 1 else i.transpose(1, 2, 0) for i in images.numpy()]
        return np.stack([self._decoded(Image.fromarray(row)) for row in rows])

    def _checked_fractions(self, values: Tensor) -> Tensor:
        """Fractions [n, C, S, S] as float32."""
        images = values[None] if values.ndim == 3 else values
        if images.ndim != 4 or images.shape[1:] != self.facts.shape:
            raise DataError(
                f"fractions of shape {tuple(values.shape)} were given, and the network takes "
                f"[n, {', '.join(map(str, self.facts.shape))}]. {_TAKEN}"
            )
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise DataError(
                f"values from {float(images.min()):g} to {float(images.max()):g} are no fractions "
                f"from 0 to 1; the mean is subtracted here. {_TAKEN}"
            )
        return images.cpu().float()


def _as_tensor(values: NDArray[Any]) -> Tensor:
    """A copy of an array, which may be read-only, flipped, or of the other byte order."""
    if values.dtype.kind not in "uif":
        raise DataError(f"{values.dtype} of shape {values.shape} is no image. {_TAKEN}")
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
