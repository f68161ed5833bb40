"""The lines of Python that build a network without dp-ray, for those who only have its release."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dp_ray.config.model import ModelConfig
from dp_ray.data.source import DataFacts
from dp_ray.models.build import (
    OWN,
    keeps_frozen_norm,
    take_grey_images,
    torchvision_arguments,
    torchvision_network,
)

_IN_SEQUENCE = ("gn_cnn", "tanh_cnn")
"""Networks of dp-ray's that are torch's layers in sequence; the others have layers of their own."""

_GROUP = """\
for parent in list(model.modules()):  # group norm in the place of batch norm
    for name, layer in list(parent.named_children()):
        if isinstance(layer, torch.nn.BatchNorm2d):
            groups = math.gcd(32, layer.num_features)
            setattr(parent, name, torch.nn.GroupNorm(groups, layer.num_features))"""

_FROZEN = """\
for parent in list(model.modules()):  # batch norm as the fixed map that it was trained with
    for name, layer in list(parent.named_children()):
        if isinstance(layer, torch.nn.BatchNorm2d):
            fixed = torchvision.ops.FrozenBatchNorm2d(layer.num_features, eps=layer.eps)
            setattr(parent, name, fixed)"""


@dataclass(frozen=True)
class Construction:
    """Code that builds a network as ``model``.

    Attributes:
        imports: modules that it needs, as ``import`` takes them.
        lines: statements, of one or several lines each.
    """

    imports: tuple[str, ...]
    lines: tuple[str, ...]


def construction_of(config: ModelConfig, facts: DataFacts) -> Construction | None:
    """Return the code that builds a network; None if that needs dp-ray.

    Imports no code of the user's and allocates no parameters.

    Args:
        config: which network.
        facts: its input shape and number of classes.
    """
    if config.is_users_own:
        return _of_user(config, facts)
    try:
        with torch.device("meta"):
            made = _of_dp_ray if config.name in OWN else _of_torchvision
            return made(config, facts)
    except Exception:  # of a release from elsewhere, whose network cannot be built
        return None


def _of_dp_ray(config: ModelConfig, facts: DataFacts) -> Construction | None:
    if config.name not in _IN_SEQUENCE:
        return None
    shape = {"channels": facts.channels, "image_size": facts.image_size}
    text = _expression(OWN[config.name](num_classes=facts.num_classes, **shape, **config.arguments))
    if text is None:
        return None
    imports = ("collections", "torch") if "collections." in text else ("torch",)
    return Construction(imports, (f"model = {text}",))


def _of_user(config: ModelConfig, facts: DataFacts) -> Construction | None:
    module, _, name = config.name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return None  # it would stand in the code as it is
    arguments = {
        "num_classes": facts.num_classes,
        "channels": facts.channels,
        "image_size": facts.image_size,
        **config.arguments,
    }
    called = f"{module}.{name}({_keywords(arguments)})"
    return Construction(("torch", module), (f"model = {called}",))


def _of_torchvision(config: ModelConfig, facts: DataFacts) -> Construction:
    arguments = {"weights": None, **torchvision_arguments(config, facts)}
    called = f"torchvision.models.get_model({config.name!r}, {_keywords(arguments)})"
    lines, imports = [f"model = {called}"], ["torch", "torchvision"]
    model = torchvision_network(config, facts)
    if facts.channels != 3 and (place := take_grey_images(model, facts.channels)) is not None:
        parent, _, name = place.rpartition(".")
        layer = _layer(model.get_submodule(place))
        holder = f"model.get_submodule({parent!r})" if parent else "model"
        lines.append(f"setattr({holder}, {name!r}, {layer})  # for grey images")
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        frozen = keeps_frozen_norm(config)
        lines.append(_FROZEN if frozen else _GROUP)
        imports += [] if frozen else ["math"]
    return Construction(tuple(imports), tuple(lines))


def _keywords(arguments: dict[str, object]) -> str:
    """Arguments as they are written in a call; names that are no identifiers in a mapping."""
    if all(name.isidentifier() for name in arguments):
        return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"**{arguments!r}"


def _expression(module: nn.Module) -> str | None:
    """A network of torch's layers in sequence as an expression; None if it is another one."""
    if isinstance(module, nn.Sequential):
        parts = [(name, _expression(layer)) for name, layer in module.named_children()]
        if any(text is None for _, text in parts):
            return None
        if [name for name, _ in parts] == [str(i) for i in range(len(parts))]:
            return f"torch.nn.Sequential({_indented([f'{text},' for _, text in parts])})"
        named = [f"{name!r}: {text}," for name, text in parts]
        return f"torch.nn.Sequential(collections.OrderedDict({{{_indented(named)}}}))"
    if type(module).__module__.startswith("torch.nn.modules.") and not list(module.children()):
        return _layer(module)
    return None


def _layer(module: nn.Module) -> str:
    """One of torch's layers as a call, without arguments that have their default."""
    arguments = []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        value = getattr(module, name, parameter.default)
        if name == "bias":
            value = value is not None
        if name in ("device", "dtype") or _same(value, parameter.default):
            continue
        required = parameter.default is parameter.empty
        arguments.append(repr(value) if required else f"{name}={value!r}")
    return f"torch.nn.{type(module).__name__}({', '.join(arguments)})"


def _same(value: object, default: object) -> bool:
    """Whether an argument is its default, which may be written once for all dimensions."""
    return value == default or (isinstance(value, tuple) and set(value) == {default})


def _indented(lines: Sequence[str]) -> str:
    inner = "\n".join(lines).replace("\n", "\n    ")
    return f"\n    {inner}\n"
