"""Networks of the user's: passed as a Python object, or built by a function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from dp_ray.config.model import ModelConfig
from dp_ray.config.section import OBJECT
from dp_ray.errors import ConfigError
from dp_ray.imports import cause_of


def built_by(build: Callable[..., Any], config: ModelConfig, **facts: int) -> nn.Module:
    """Call a user's function that builds a network.

    Args:
        build: the function.
        config: has further arguments for it.
        facts: ``num_classes``, ``channels`` and ``image_size``.

    Raises:
        ConfigError: it returns none.
    """
    model = build(**facts, **config.arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError("model.name", config.name, "built no torch module", "Return one")
    return model


def passed_model(config: ModelConfig, **facts: int) -> nn.Module:
    """Return the network that was passed as a Python object, or what the passed function builds.

    The user's own network is copied, its tensors as they are, and left alone.

    Args:
        config: its name is :data:`~dp_ray.config.section.OBJECT`.
        facts: ``num_classes``, ``channels`` and ``image_size``.

    Raises:
        ConfigError: the object is not there, or cannot be copied.
    """
    passed = config.object_passed_as("model", "the network was passed as a Python object")
    if not isinstance(passed, nn.Module):
        return built_by(passed, config, **facts)
    if config.arguments:
        raise ConfigError(
            "model.arguments",
            config.arguments,
            "the network was passed as an object, which is built already",
            "Leave them out, or pass the function that builds it",
        )
    try:
        return copy.deepcopy(passed)
    except Exception as error:  # whatever an attribute of the user's network raises
        raise ConfigError(
            "model.name",
            OBJECT,
            f"the network {type(passed).__name__} cannot be copied: {cause_of(error)}",
            "Pass the function that builds it",
        ) from error
