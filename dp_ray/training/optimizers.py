"""The torch optimizer and learning-rate schedule that a configuration names."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dp_ray.config.run import Config, OptimizerConfig
from dp_ray.errors import ConfigError, unknown_name
from dp_ray.imports import cause_of

_NEEDS_LENGTH = {
    "CosineAnnealingLR": "T_max",
    "OneCycleLR": "total_steps",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "ConstantLR": "total_iters",
}
"""Schedulers that must know how long training lasts, and by which argument."""

_UNFIT = ("Optimizer", "LBFGS", "SparseAdam", "LRScheduler", "ReduceLROnPlateau")
"""Base classes, and those that need a closure over the data, sparse gradients, or a loss, which is
private."""


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
    known = _classes(torch.optim, torch.optim.Optimizer)
    if section.name not in known:
        raise unknown_name(
            "optimizer.name",
            section.name,
            "no optimizer of torch.optim that fits",
            known,
            listed=("SGD", "Adam", "…"),
        )
    try:
        optimizer: torch.optim.Optimizer = known[section.name](
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
    known = _classes(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    if name not in known:
        raise unknown_name(
            "optimizer.scheduler",
            name,
            "no scheduler of torch.optim.lr_scheduler that needs the step alone",
            known,
            listed=("CosineAnnealingLR", "LinearLR", "MultiStepLR", "…"),
        )
    if name in _NEEDS_LENGTH:
        arguments.setdefault(_NEEDS_LENGTH[name], steps)
    try:
        scheduler: torch.optim.lr_scheduler.LRScheduler = known[name](optimizer, **arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            "optimizer.scheduler_arguments", arguments, f"{name}: {error}", "See torch's page of it"
        ) from error
    return scheduler


def _classes(module: ModuleType, base: type) -> dict[str, Callable[..., Any]]:
    """Name → public class of a module that derives from ``base`` and can be used."""
    return {
        name: found
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, base) and not name.startswith("_")
        if name not in _UNFIT
    }


def rehearse_optimizer(config: Config, params: Sequence[Tensor], steps: int) -> None:
    """Take the optimizer and the schedule through a run, as far as it can fail.

    Tensors of one or two numbers a dimension stand for the parameters: what the optimizer accepts
    depends on their dimensions alone. The schedule takes all T steps, and those that a resumed run
    adds: some end. The optimizer takes two, the second with state, and that state is written and
    read as a checkpoint's.

    Args:
        config: names both.
        params: the trained parameters.
        steps: T.

    Raises:
        ConfigError: they fail, or a learning rate is no finite number.
    """
    section = config.optimizer
    small = [nn.Parameter(torch.zeros([min(n, 2) for n in p.shape])) for p in params]
    optimizer, scheduler = build_optimizer(config, small, steps)
    try:
        for _ in range(2):
            for parameter in small:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    except Exception as error:  # torch's optimizers raise what they like
        raise ConfigError(
            "optimizer.arguments",
            section.arguments,
            f"{section.name} fails when it is used: {cause_of(error)}",
            "See torch.optim",
        ) from error
    if scheduler is not None:
        _rehearse_schedule(config, optimizer, scheduler, steps)


def _rehearse_schedule(
    config: Config,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
) -> None:
    section, taken = config.optimizer, 0
    try:
        for step in range(steps):
            taken = step + 1
            scheduler.step()
            if not all(math.isfinite(group["lr"]) for group in optimizer.param_groups):
                raise OverflowError("the learning rate is no finite number")
    except Exception as error:  # torch's schedules raise what they like
        raise ConfigError(
            "optimizer.scheduler_arguments",
            section.scheduler_arguments,
            f"{section.scheduler} fails at step {taken} of {steps}: {cause_of(error)}",
            "Lay it out for as many steps as the run takes, or leave its length out",
        ) from error
