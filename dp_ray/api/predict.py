"""Predictions of a released model for images, decoded as in training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dp_ray.api.model import open_release
from dp_ray.artifacts.released_model import ReleasedModel
from dp_ray.data.images import find_images
from dp_ray.data.preprocess import Preprocess
from dp_ray.errors import ConfigError, DataError, ModelError
from dp_ray.imports import reading
from dp_ray.objectives.registry import build_objective

if TYPE_CHECKING:
    from dp_ray.data.preprocess import ImageLike

_BATCH = 64
_SHOWN = 10


@dataclass(frozen=True)
class Prediction:
    """What a model gives for one image.

    Attributes:
        image: path of the file, or the place in what was given, counted from 0.
        label: the class with the largest probability.
        class_name: its name; its number as text where classes have no names.
        probability: of that class.
        probabilities: of all classes, by label.
    """

    image: str
    label: int
    class_name: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """Predictions in the order of the images.

    Attributes:
        class_names: by label; numbers as text where classes have no names.
        items: one for each image.
        skipped: entries of folders that are no images, and were not read.
    """

    class_names: tuple[str, ...]
    items: tuple[Prediction, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def predict(
    run_or_release: str | os.PathLike[str] | Any,
    images: ImageLike | Iterable[Any],
    *,
    own_code: bool = False,
) -> Predictions:
    """Predict the classes of images with the model that a run released.

    Images are decoded, resized and normalised as in training, and passed through the network in
    evaluation mode, in batches.

    Args:
        run_or_release: a run or a release; see :func:`dp_ray.load_model`.
        images: files, folders (searched with all below them), Pillow images, or uint8 arrays or
            tensors [H, W] or [C, H, W]; one or any number.
        own_code: run code that the release names; see :func:`dp_ray.load_model`.

    Returns:
        The class of each image with all probabilities, in the order of the images.

    Raises:
        DataError: some are no images that the model takes; the message names them, and nothing is
            predicted.
        DpRayError: there is no release, or it predicts no classes.
    """
    with reading(own_code=own_code):
        release = open_release(run_or_release)
        _check_predicts_classes(release)
        network = release.network()
    given: list[Any] = [images] if _is_one(images) else list(images)  # type: ignore[arg-type]
    pictures: list[tuple[str, Any]] = []
    skipped: list[str] = []
    for number, image in enumerate(given):
        if isinstance(image, str | os.PathLike):
            found = find_images([image])
            pictures += [(str(path), path) for path in found.files]
            skipped += [str(path) for path in found.skipped]
        else:
            pictures.append((str(number), image))
    if not pictures:
        raise DataError("no image was given")
    preprocess = release.preprocess
    names = preprocess.class_names or tuple(map(str, range(preprocess.facts.num_classes)))
    items = tuple(_predictions(network, preprocess, pictures, names))
    return Predictions(names, items, tuple(skipped))


def _check_predicts_classes(release: ReleasedModel) -> None:
    """Refuse a model whose outputs are no logits of classes."""
    config, num_classes = release.config.objective, release.preprocess.facts.num_classes
    objective = build_objective(config, num_classes)
    if not objective.labels.is_class or objective.output_shape != (num_classes,):
        raise ConfigError(
            "objective.name",
            config.name,
            "the outputs of this model are no probabilities of classes",
            "Use dp_ray.load_model, which gives the outputs themselves",
        )


def _is_one(images: Any) -> bool:
    """Whether one image was given, and no collection of them."""
    from PIL.Image import Image

    if isinstance(images, str | os.PathLike | Image):
        return True
    return hasattr(images, "ndim") and images.ndim < 4


@torch.no_grad()
def _predictions(
    network: nn.Module,
    preprocess: Preprocess,
    pictures: list[tuple[str, Any]],
    names: Sequence[str],
) -> Iterator[Prediction]:
    broken: list[str] = []
    queue = iter(pictures)
    while batch := list(islice(queue, _BATCH)):
        inputs = []
        for name, picture in batch:
            try:
                inputs.append(_one_input(preprocess(picture)))
            except DataError as error:
                where = "" if isinstance(picture, Path) else f"image {name}: "
                broken.append(f"{where}{error}")
        if broken:
            continue  # all that are broken are named, and nothing is predicted
        logits = network(torch.cat(inputs)).double()
        for (name, _), row in zip(batch, logits, strict=True):
            yield _prediction(name, row, names)
    if broken:
        raise DataError(_refusal(broken, len(pictures)))


def _one_input(inputs: Tensor) -> Tensor:
    if len(inputs) != 1:
        raise DataError(f"it holds {len(inputs)} images: give them one by one")
    return inputs


def _prediction(name: str, logits: Tensor, names: Sequence[str]) -> Prediction:
    if not bool(logits.isfinite().all()):
        raise ModelError(f"{name}: the network gives no finite outputs for this image")
    probabilities = tuple(logits.softmax(dim=0).tolist())
    label = int(logits.argmax())
    return Prediction(name, label, names[label], probabilities[label], probabilities)


def _refusal(broken: list[str], images: int) -> str:
    if images == 1:
        return broken[0]
    more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    shown = "; ".join(text.rstrip(".") for text in broken[:_SHOWN])
    return f"{len(broken)} of {images} images cannot be used: {shown}{more}. Nothing was predicted"
