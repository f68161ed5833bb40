"""A released model, loaded again and evaluated on the test split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from dp_ray.artifacts.release import MODEL
from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.config.files import apply_override, parse_config
from dp_ray.config.run import Config
from dp_ray.config.validation import check_keys
from dp_ray.config.yaml_text import read_yaml
from dp_ray.data.facts import data_facts
from dp_ray.data.store import open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError, DpRayError, RunError
from dp_ray.gradients.engines.engine import in_one_line
from dp_ray.json_text import finite
from dp_ray.models.build import build_model
from dp_ray.objectives.registry import build_objective
from dp_ray.privacy.sampling import Shard
from dp_ray.storage import Folder, open_folder
from dp_ray.training.evaluation import evaluation_of, outputs_by_batch

_MAY_CHANGE = ("data.root", "data.cache", "data.download", "data.evaluation")
"""Where the data is; what a model was trained as cannot be changed afterwards."""


def evaluate_run(
    location: str, overrides: list[str], put_objects: Callable[[Config], Config] = lambda c: c
) -> dict[str, Any]:
    """Evaluate on the test split what a run released: its metrics, and the objective's details.

    Args:
        location: path or URI of a run, or of a release folder that was copied elsewhere.
        overrides: ``a.b=value``, for example where the data is on this machine.
        put_objects: puts what was passed as Python objects into the configuration.

    Raises:
        DpRayError: there is no release, or the data cannot be read.
    """
    folder = open_folder(location)
    inside = folder.exists(RELEASE)
    release = folder / RELEASE if inside else folder
    config = put_objects(_config(folder, overrides, released=inside))
    objective = build_objective(config.objective, data_facts(config.data).num_classes)
    dataset = open_dataset(config.data, objective.labels)
    model = build_model(config.model, dataset.facts)
    try:
        model.load_state_dict(load(release.read(MODEL)))
    except Exception as error:  # a damaged file, or another network's, fails in any way
        raise RunError(
            f"{release}/{MODEL} cannot be loaded: {in_one_line(error)}. Copy the release anew"
        ) from error
    if len(dataset.test) == 0:
        raise DpRayError("the data set has no test examples to evaluate on")
    device = torch.device("cpu")
    views = ViewMaker(config.augment, dataset.facts, device)
    state, parts = objective.new_state(), []
    everything = Shard(0, len(dataset.test))
    for outputs, labels in outputs_by_batch(model, {}, dataset.test, views, device, everything):
        state = objective.update(state, outputs, labels)
        parts.append(objective.columns(outputs, labels))
    evaluation = evaluation_of(objective, state, len(dataset.test))
    return {
        "run": location,
        "objective": config.objective.name,
        "data_evaluation": config.data.evaluation,
        **{name: finite(value) for name, value in evaluation.metrics.items()},
        "test_examples": evaluation.examples,
        "skipped": dataset.notes[1].skipped,
        **objective.details({n: np.concatenate([p[n] for p in parts]) for n in parts[0]}),
    }


def _config(folder: Folder, overrides: list[str], *, released: bool) -> Config:
    run = RunDirectory(folder)
    if not folder.names():
        raise RunError(f"there is no run {folder}: give its folder, such as runs/digits")
    kept = run.private.exists(CONFIG)  # a search has only what its best trial released
    if kept and not released:
        raise RunError(f"{folder} is unfinished: go on with dp-ray train … --resume")
    try:
        release = folder / RELEASE if released else folder
        values = read_yaml(release.read(CONFIG).decode())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no finished run: {error}") from error
    check_keys(Config, values)
    if kept:  # where the data is, which is not published
        data = run.config().data
        values["data"].update({name: getattr(data, name) for name in ("root", "cache")})
        values["model"]["pretrained"] = run.config().model.pretrained
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field not in _MAY_CHANGE:
            raise ConfigError(
                "--set", override, "not for evaluate", f"It takes {', '.join(_MAY_CHANGE)}"
            )
        apply_override(values, override)
    return parse_config(values)
