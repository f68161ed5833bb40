"""A released network as a program that torch alone runs."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from dp_ray.api.model import load_model, location_of
from dp_ray.artifacts.released_model import ClassNames
from dp_ray.artifacts.run_directory import RELEASE
from dp_ray.data.source import DataFacts
from dp_ray.errors import ModelError
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.reporting.output import OutputFile
from dp_ray.storage import open_folder

PROGRAM = "model.pt2"

_AGREES = 1e-4
"""Of the largest logit: an exported program may add in another order."""


class PixelsToLogits(nn.Module):
    """A network behind the normalisation that it was trained with.

    Args:
        network: in evaluation mode.
        facts: of its input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, facts: DataFacts) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(facts.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(facts.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [n, C, S, S], uint8, to outputs [n, …]."""
        outputs: Tensor = self.network((pixels / 255 - self.mean) / self.std)
        return outputs


def export(
    run_or_release: str | os.PathLike[str] | Any,
    output: str | os.PathLike[str] | None = None,
    *,
    own_code: bool = False,
) -> str:
    """Save a released network with ``torch.export``, normalisation included.

    ``torch.export.load(FILE).module()`` takes uint8 pixels [n, C, S, S] and gives logits
    [n, classes], without dp-ray and without the network's own code. torch promises to load such
    files with versions near the one that wrote them, not with all.

    Args:
        run_or_release: a run or a release; see :func:`dp_ray.load_model`.
        output: a .pt2 file; by default model.pt2 in the run's folder, or for a release folder by
            itself, which stays as it was published, in the current one.
        own_code: run code that the release names; see :func:`dp_ray.load_model`.

    Returns:
        Where the file is.

    Raises:
        ModelError: torch.export does not take the network, or its program computes something else.
        DpRayError: there is no release, or the file cannot be written.
    """
    place = location_of(run_or_release)
    file = _file_of(place, output)
    network, preprocess = load_model(run_or_release, own_code=own_code)
    whole = PixelsToLogits(network, preprocess.facts).eval()
    pixels = torch.randint(0, 256, (3, *preprocess.facts.shape), dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(
                whole, (pixels,), dynamic_shapes={"pixels": {0: torch.export.Dim("n", min=1)}}
            )
        # With gradients: without, torch's attention takes a way of its own, and rounds otherwise.
        expected, found = (m(pixels[:2]).detach() for m in (whole, program.module()))
    except USER_ERRORS as error:
        raise ModelError(
            f"torch.export does not take the network of {place}: {cause_of(error)}. Load it by "
            "dp_ray.load_model, or by the lines of its card"
        ) from error
    if not float((expected - found).abs().max()) <= _AGREES * float(expected.abs().max()):
        raise ModelError(
            f"what torch.export made of the network of {place} gives other outputs. Load it by "
            "dp_ray.load_model, or by the lines of its card"
        )
    names = {ClassNames.FILE: json.dumps({"names": list(preprocess.class_names)})}
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=names)
    return file.write(content.getvalue())


def _file_of(place: str, output: str | os.PathLike[str] | None) -> OutputFile:
    if output is not None:
        return OutputFile.given(os.fspath(output), "--output", (".pt2",)).check_unpublished()
    folder = open_folder(place)
    return OutputFile(folder if folder.exists(RELEASE) else open_folder("."), PROGRAM, "--output")
