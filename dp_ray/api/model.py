"""A released model, ready for use."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import nn

from dp_ray.artifacts.released_model import ReleasedModel
from dp_ray.data.preprocess import Preprocess
from dp_ray.imports import reading


class LoadedModel(NamedTuple):
    """A network and its input.

    Attributes:
        network: in evaluation mode, on the CPU; takes what ``preprocess`` returns and gives logits.
        preprocess: turns an image into the network's input, as in training; its ``class_names``
            are those of the network's outputs.
    """

    network: nn.Module
    preprocess: Preprocess


def load_model(
    run_or_release: str | os.PathLike[str] | Any, *, own_code: bool = False
) -> LoadedModel:
    """Load the model that a run released.

    Args:
        run_or_release: path or URI of a finished run, of a search, or of a release folder by
            itself; or a :class:`dp_ray.Run`, whose network may have been passed as an object.
        own_code: run code that the release names, though you have not trained with it on this
            machine; only if you trust who wrote both.

    Returns:
        The network in evaluation mode, and its preprocessing::

            network, preprocess = dp_ray.load_model("runs/digits")
            logits = network(preprocess(image))  # a Pillow image, a file, an array, or a list

    Raises:
        DpRayError: there is no release, it is damaged, or the network cannot be built here.
    """
    with reading(own_code=own_code):
        release = open_release(run_or_release)
        return LoadedModel(release.network(), release.preprocess)


def location_of(run_or_release: Any) -> str:
    """Return the path or URI of a run, given as such or as an object that has one."""
    if isinstance(run_or_release, str | os.PathLike):
        return os.fspath(run_or_release)
    return str(getattr(run_or_release, "path", run_or_release))


def open_release(run_or_release: Any) -> ReleasedModel:
    """Read a release, with the objects that a :class:`dp_ray.Run` was passed."""
    put_objects = getattr(run_or_release, "put_objects", None)
    return ReleasedModel.open(location_of(run_or_release), put_objects=put_objects)
