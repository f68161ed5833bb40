"""Which parameters of a network are trained; all others stay as they are."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from dp_ray.errors import ConfigError


def find_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The last ``nn.Linear``, in the order in which the network holds its layers, with its name."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return layers[-1] if layers else None


def choose_trainable(
    model: nn.Module, trainable: Literal["all", "head"] | list[str], num_classes: int
) -> None:
    """Freezes what is not to be trained: such parameters require no gradient.

    Args:
        model: changed in place.
        trainable: ``all`` leaves the network as its builder made it; ``head`` is the last
            ``nn.Linear``; else patterns (``fnmatch``) of the names of those that are trained.
        num_classes: outputs that a head must have.

    Raises:
        ConfigError: there is no head, or a pattern matches no parameter.
    """
    if trainable == "all":
        return
    patterns = [f"{_head_name(model, num_classes)}.*"] if trainable == "head" else trainable
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.0)
            raise ConfigError(
                "model.trainable",
                pattern,
                "matches no parameter",
                f"There are {', '.join(near)}, …; a * stands for any text",
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def _head_name(model: nn.Module, num_classes: int) -> str:
    head = find_head(model)
    if head is not None and head[1].out_features == num_classes:
        return head[0]
    if head is None:
        problem = "the network has no nn.Linear"
    else:
        problem = f"the last nn.Linear, {head[0]}, has {head[1].out_features} outputs and is none"
    raise ConfigError(
        "model.trainable", "head", problem, "Give patterns of parameters' names, such as [fc.*]"
    )
