"""A released model, loaded again and evaluated on the test split."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dp_ray.artifacts.released_model import ReleasedModel
from dp_ray.config.run import Config
from dp_ray.data.store import Dataset, Examples, open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DataError, DpRayError
from dp_ray.imports import reading
from dp_ray.json_text import finite
from dp_ray.objectives.registry import build_objective
from dp_ray.privacy.sampling import Shard
from dp_ray.training.evaluation import evaluation_of, outputs_by_batch


@dataclass(frozen=True)
class ScoredRun:
    """An evaluation of the test split, exact.

    Attributes:
        figures: metrics, the objective's details and warnings, as plain values.
        examples: columns [N] or [N, …] by name, a row for each test example in the order of the
            source: what the objective notes of it, and its loss.
        test: the test split.
    """

    figures: dict[str, Any]
    examples: dict[str, NDArray[Any]]
    test: Examples


def evaluate_run(
    location: str,
    overrides: list[str],
    put_objects: Callable[[Config], Config] | None = None,
    *,
    own_code: bool = False,
) -> ScoredRun:
    """Evaluate on the test split what a run released, and keep what is known of each example.

    Args:
        location: path or URI of a run, or of a release folder that was copied elsewhere.
        overrides: ``a.b=value``, for example where the data is on this machine.
        put_objects: puts what was passed as Python objects into the configuration.
        own_code: see :func:`~dp_ray.imports.reading`.

    Raises:
        OwnCodeError: network, objective or data are code that the user did not agree to run.
        DpRayError: there is no release, or the data cannot be read.
    """
    with reading(own_code=own_code):
        return _score(location, ReleasedModel.open(location, overrides, put_objects))


def _score(location: str, release: ReleasedModel) -> ScoredRun:
    config, facts = release.config, release.preprocess.facts
    objective = build_objective(config.objective, facts.num_classes)
    dataset = open_dataset(config.data, objective.labels)
    names = _same_classes(release, dataset)
    model = release.network()
    if len(dataset.test) == 0:
        raise DpRayError("the data set has no test examples to evaluate on")
    device = torch.device("cpu")
    views = ViewMaker(config.augment, facts, device)
    state, parts = objective.new_state(), []
    everything = Shard(0, len(dataset.test))
    for outputs, labels in outputs_by_batch(model, {}, dataset.test, views, device, everything):
        state = objective.update(state, outputs, labels)
        losses = {"loss": objective.losses(outputs, labels).double().numpy()}
        parts.append({**objective.columns(outputs, labels), **losses})
    evaluation = evaluation_of(objective, state, len(dataset.test), names)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    noted = {name: values for name, values in columns.items() if name != "loss"}
    figures = {
        "run": location,
        "objective": config.objective.name,
        "data_evaluation": config.data.evaluation,
        **{name: finite(value) for name, value in evaluation.metrics.items()},
        "test_examples": evaluation.examples,
        "skipped": dataset.notes[1].skipped,
        "warnings": list(evaluation.warnings),
        "class_names": list(names),
        **objective.details(noted),
    }
    return ScoredRun(figures, columns, dataset.test)


def _same_classes(release: ReleasedModel, dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the classes by label.

    Raises:
        DataError: the data has other names, or the same in another order, than the model's outputs.
    """
    ours, theirs = release.class_names, dataset.class_names
    for label, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other):
            raise DataError(
                f"data.name = {release.config.data.name!r}: class {label} of the data is "
                f"{other!r}, and class {label} of the model is {one!r}. Give the data that it was "
                "trained for",
                shared=f"class {label} of the data has another name than class {label} of the "
                "model",
            )
    return ours or theirs
