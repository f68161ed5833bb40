"""Networks, data and objectives that are passed as Python objects, put into a configuration.

A function or class that can be imported is named by its import path, as in a file: it reaches Ray's
workers, and the release names it. Any other object is used as it is, in this process alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dp_ray.config.data import DataConfig
from dp_ray.config.run import Config
from dp_ray.data.source import Source
from dp_ray.data.splits import Splits
from dp_ray.errors import ConfigError
from dp_ray.imports import agree_to
from dp_ray.objectives.objective import Objective

Model = nn.Module | Callable[..., nn.Module]
"""A network, whose tensors are what training starts from; or what builds one, called with
``num_classes``, ``channels``, ``image_size`` and ``model.arguments``."""

Data = tuple[Any, Any] | Source | Callable[[DataConfig], Source | Splits]
"""The training and the test split, or a source, or what makes one of the data section. A split is a
map-style data set of (image, label) pairs, a pair of arrays or tensors (images, labels), or a
Hugging Face data set; None for no test examples."""

AnyObjective = Objective | Callable[..., Objective]
"""What is learnt; or what makes it, called with ``num_classes`` and ``objective.arguments``."""


@dataclass(frozen=True)
class Objects:
    """What was passed as Python objects; None for what the configuration names."""

    model: Model | None = None
    data: Data | None = None
    objective: AnyObjective | None = None

    def put_into(self, config: Config) -> Config:
        """Return the configuration with the objects in place of what it names.

        Raises:
            ConfigError: an object is none of its kind, or cannot travel to Ray's workers.
        """
        sections: dict[str, Any] = {}
        for name in ("model", "data", "objective"):
            value = getattr(self, name)
            if value is None:
                continue
            _check_kind(name, value)
            section, path = getattr(config, name), import_path_of(value)
            if path is not None:
                sections[name] = section.model_copy(update={"name": path})
                continue
            if config.cluster.max_workers > 0:
                raise _cannot_travel(name, value, config.cluster.num_workers)
            sections[name] = section.passing(value)
        return config.model_copy(update=sections)

    def put_into_this_process(self, config: Config) -> Config:
        """Return the same for what this process does by itself, whatever the run's workers were."""
        alone = config.cluster.model_copy(update={"num_workers": 0})
        config = config.model_copy(update={"cluster": alone})
        return self.put_into(config)

    def put_into_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the plain values of a search's training configuration, likewise.

        Raises:
            ConfigError: an object cannot travel to the processes that trials run in.
        """
        named = {}
        for name in ("model", "data", "objective"):
            value = getattr(self, name)
            if value is not None:
                _check_kind(name, value)
                path = import_path_of(value)
                if path is None:
                    raise _cannot_travel(name, value, "of a search")
                named[name] = {**(values.get(name) or {}), "name": path}
        return {**values, **named}


def import_path_of(value: object) -> str | None:
    """Return ``module:name`` of a function or class that other processes can import.

    None for what lives in a script or notebook itself, in a function, or in an object.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    if getattr(sys.modules.get(module), name, None) is not value:
        return None
    agree_to(f"{module}:{name}")  # the user passes it
    return f"{module}:{name}"


_KINDS: dict[str, tuple[tuple[type, ...], str, str]] = {
    "model": ((nn.Module,), "", "a torch.nn.Module, or a function that builds one"),
    "data": (
        (tuple, list, Source),
        "",
        "a pair (train, test) of data sets, a Source, or a function that makes one",
    ),
    "objective": ((), "losses", "a dp_ray.Objective, or a class or function that makes one"),
}
"""Argument → the types of its objects, a member that they have, and both in words."""


def _check_kind(field: str, value: object) -> None:
    types, member, words = _KINDS[field]
    if isinstance(value, types) or callable(value) or (member and hasattr(value, member)):
        return
    named = f"a name goes into {field}.name: --set {field}.name=…" if isinstance(value, str) else ""
    raise ConfigError(
        field,
        value,
        f"{words} is expected, not {type(value).__name__}",
        named or "Pass one, or leave it out for what the configuration names",
    )


def _cannot_travel(field: str, value: object, workers: object) -> ConfigError:
    name = getattr(value, "__qualname__", None) or type(value).__name__
    return ConfigError(
        field,
        name,
        f"this object cannot travel to Ray's workers (cluster.num_workers = {workers})",
        "Define a function that makes it in a module of its own (a .py file beside the script), "
        "import it from there and pass the function; or set cluster.num_workers to 0",
    )
