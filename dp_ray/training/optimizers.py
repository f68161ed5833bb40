"""The torch optimizer and learning-rate schedule that a configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dp_ray.config import Config, OptimizerConfig
from dp_ray.errors import ConfigError

_NEEDS_LENGTH = {
    "CosineAnnealingLR": "T_max",
    "OneCycleLR": "total_steps",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "ConstantLR": "total_iters",
}
"""Schedulers that must know how long training lasts, and by which argument."""

_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")
"""Need a closure over the data, or sparse gradients."""


def depends_on_length(section: OptimizerConfig) -> bool:
    """Whether the schedule is laid out for T steps, and would not fit more."""
    argument = _NEEDS_LENGTH.get(section.scheduler or "")
    return argument is not None and argument not in section.scheduler_arguments


def build_optimizer(
    config: Config, params: list[nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """The configured torch optimizer and learning-rate schedule.

    Raises:
        ConfigError: torch has none of that name, or it does not take the arguments.
    """
    section = config.optimizer
    factory = getattr(torch.optim, section.name, None)
    if (
        not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer))
        or section.name in _UNFIT
    ):
        raise ConfigError(
            "optimizer.name",
            section.name,
            "no optimizer of torch.optim that fits",
            "Use SGD, Adam, …",
        )
    try:
        optimizer: torch.optim.Optimizer = factory(
            params, **{"lr": section.lr, **section.arguments}
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "optimizer.arguments", section.arguments, f"{section.name}: {error}", "See torch.optim"
        ) from error
    return optimizer, _build_scheduler(config, optimizer, steps)


def _build_scheduler(
    config: Config, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    name, arguments = config.optimizer.scheduler, dict(config.optimizer.scheduler_arguments)
    if name is None:
        return None
    factory = getattr(torch.optim.lr_scheduler, name, None)
    base = torch.optim.lr_scheduler.LRScheduler
    if not (isinstance(factory, type) and issubclass(factory, base)) or name in (
        "LRScheduler",
        "ReduceLROnPlateau",  # would steer by a loss, which is private
    ):
        raise ConfigError(
            "optimizer.scheduler",
            name,
            "no scheduler of torch.optim.lr_scheduler that needs the step alone",
            "Use CosineAnnealingLR, LinearLR, MultiStepLR, …",
        )
    if name in _NEEDS_LENGTH:
        arguments.setdefault(_NEEDS_LENGTH[name], steps)
    try:
        _try_schedule(factory, arguments)
        return factory(optimizer, **arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            "optimizer.scheduler_arguments", arguments, f"{name}: {error}", "See torch's page of it"
        ) from error


def _try_schedule(
    factory: type[torch.optim.lr_scheduler.LRScheduler], arguments: dict[str, Any]
) -> None:
    """Some arguments fail only when the schedule is stepped: better before data is read."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.5)
    scheduler = factory(optimizer, **arguments)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
