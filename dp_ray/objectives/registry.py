"""The objectives by name, and a user's own by import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dp_ray.config.model import ObjectiveConfig
from dp_ray.config.section import OBJECT
from dp_ray.errors import ConfigError, unknown_name
from dp_ray.imports import USER_ERRORS, cause_of, import_object
from dp_ray.objectives.objective import Objective, is_metric
from dp_ray.objectives.single_label import SingleLabel

OBJECTIVES: dict[str, Callable[..., Objective]] = {"single_label": SingleLabel}

_MEMBERS = [n for n in vars(Objective) if not n.startswith("_") and n != "warnings"]
"""What an objective must have; ``warnings`` came later, and is called where it is there."""


def build_objective(config: ObjectiveConfig, num_classes: int) -> Objective:
    """Build the configured objective.

    Args:
        config: its name and further arguments.
        num_classes: of the data.

    Raises:
        ConfigError: there is none of that name, it cannot be built, or it is none.
    """
    make = _maker(config)
    if isinstance(make, type) or not hasattr(make, "losses"):
        try:
            objective: Objective = make(num_classes=num_classes, **config.arguments)
        except USER_ERRORS as error:
            raise ConfigError(
                "objective.arguments" if config.arguments else "objective.name",
                config.arguments or config.name,
                f"make(num_classes, **arguments) failed: {cause_of(error)}",
                "Give the arguments that it takes",
            ) from error
    elif config.arguments:
        raise ConfigError(
            "objective.arguments",
            config.arguments,
            "the objective was passed as an object, which is made already",
            "Leave them out, or pass the class or function that makes it",
        )
    else:
        objective = make
    if config.is_users_own:
        _check(config.name, objective)
    return objective


def _maker(config: ObjectiveConfig) -> Any:
    """What makes the objective; the objective itself where one was passed."""
    if config.name == OBJECT:
        return config.object_passed_as("objective", "the objective was passed as a Python object")
    if config.is_users_own:
        return import_object(config.name, "objective.name")
    if config.name in OBJECTIVES:
        return OBJECTIVES[config.name]
    raise unknown_name(
        "objective.name",
        config.name,
        "no such objective",
        OBJECTIVES,
        own="my_pkg.my_module:make",
    )


def _check(name: str, objective: Objective) -> None:
    """Call every member of a user's objective once, on made-up outputs."""
    problem = None
    lacking = [member for member in _MEMBERS if not hasattr(objective, member)]
    if lacking:
        problem = f"returns {type(objective).__name__}, which has no {lacking[0]}"
    else:
        try:
            problem = _problem(objective)
        except USER_ERRORS as error:
            problem = f"fails on made-up outputs: {cause_of(error)}"
    if problem is not None:
        raise ConfigError(
            "objective.name", name, problem, "See dp_ray.objectives.objective.Objective"
        )


def _problem(objective: Objective) -> str | None:
    count, generator = 3, torch.Generator().manual_seed(0)
    labels = objective.labels.made_up(count, generator)
    outputs = torch.randn(count, *objective.output_shape, generator=generator)
    wrong = [n for n in objective.metrics if not is_metric(n)]
    if wrong or not objective.metrics:
        return f"metrics are named test_… in small letters, not {wrong[0] if wrong else 'nothing'}"
    if odd := [d for d in objective.metrics.values() if d not in ("max", "min")]:
        return f"a metric's direction is max or min, not {odd[0]}"
    if problem := _problem_of_losses(objective, outputs, labels):
        return problem
    state = objective.update(objective.new_state(), outputs, labels)
    if state.dtype != torch.float64 or state.shape != objective.new_state().shape:
        return f"the state is {state.dtype} {tuple(state.shape)} after an update, not as before"
    found = objective.compute(state, count)
    if list(found) != list(objective.metrics):
        return f"compute returns {', '.join(found)}, and metrics are {', '.join(objective.metrics)}"
    return None


def _problem_of_losses(objective: Objective, outputs: Tensor, labels: Tensor) -> str | None:
    count = len(outputs)
    losses = objective.losses(outputs, labels)
    if losses.shape != (count,):
        return f"losses are {tuple(losses.shape)} for {count} outputs, not ({count},)"
    padding = objective.labels.padding
    try:
        objective.losses(outputs, torch.full_like(labels, padding))
    except USER_ERRORS as error:
        return f"losses do not accept labels.padding = {padding}: {cause_of(error)}"
    mean = objective.loss(outputs, labels)
    for weights in (torch.full((count,), 1 / count), torch.tensor([0.5, 0.3, 0.2])):
        expected = (losses * weights).sum()
        if not torch.allclose(objective.loss(outputs, labels, weights), expected, rtol=1e-3):
            return "the loss by weights is not the weighted sum of losses"
    if not torch.allclose(mean, losses.mean(), rtol=1e-3):
        return "the loss without weights is not the mean of losses"
    return None
