"""Networks by name, checked for what would break per-example gradients."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from dp_ray.config.model import ModelConfig
from dp_ray.config.section import OBJECT
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError, ModelError, unknown_name
from dp_ray.imports import import_object
from dp_ray.libraries import LibraryError, import_torchvision
from dp_ray.models.current_layer import current_layer
from dp_ray.models.networks import GroupNormCNN, TanhCNN
from dp_ray.models.nf_resnet import NormFreeResNet
from dp_ray.models.passed import built_by, passed_model
from dp_ray.models.trainable import choose_trainable
from dp_ray.models.wide_resnet import WideResNet

OWN: dict[str, Callable[..., nn.Module]] = {
    "gn_cnn": GroupNormCNN,
    "tanh_cnn": TanhCNN,
    "wrn_16_4": partial(WideResNet, depth=16, width=4),
    "wrn_40_4": partial(WideResNet, depth=40, width=4),
    "wrn_28_10": partial(WideResNet, depth=28, width=10),
    "nf_resnet_50": NormFreeResNet,
}
"""Networks of dp-ray's by name."""

_FROM_FACTS: dict[str, Callable[[DataFacts], dict[str, Any]]] = {
    # Their second heads give several rows of logits an image, in training only.
    "googlenet": lambda _: {"aux_logits": False, "init_weights": True},
    "inception_v3": lambda _: {"aux_logits": False, "init_weights": True},
    "vit_*": lambda facts: {"image_size": facts.image_size},
    "maxvit_*": lambda facts: {"input_size": [facts.image_size] * 2},
}
"""Arguments of torchvision's networks, by patterns of their names, that suit the images."""

_SIZES = (32, 64, 75, 96, 128, 224, 256, 384)
"""Of images, tried in this order to say which a network takes."""


def build_model(config: ModelConfig, facts: DataFacts, *, init_seed: int = 0) -> nn.Module:
    """The configured network in training mode, freshly initialised.

    Its architecture, and what of it is trained, depend on the configuration alone. Pretrained
    weights are not needed here: :func:`~dp_ray.models.pretrained.load_pretrained` puts them in.

    Args:
        config: which network.
        facts: its input shape and number of classes.
        init_seed: seed of the initial parameters; torch's global generator is left as it was.

    Raises:
        ConfigError: no such network, it does not take the arguments, or it has no such parameters
            to train.
        ModelError: see :func:`check_model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        model = _construct(config, facts).train()
        _fill_lazy_layers(model, config, facts)
    choose_trainable(model, config.trainable, facts.num_classes)
    check_model(model)
    _check_output(model, config, facts)
    return model


def _construct(config: ModelConfig, facts: DataFacts) -> nn.Module:
    shape = {"channels": facts.channels, "image_size": facts.image_size}
    try:
        if config.name in OWN:
            return OWN[config.name](num_classes=facts.num_classes, **shape, **config.arguments)
        if config.name == OBJECT:
            return passed_model(config, num_classes=facts.num_classes, **shape)
        if config.is_users_own:
            build = import_object(config.name, "model.name")
            return built_by(build, config, num_classes=facts.num_classes, **shape)
        return _torchvision_model(config, facts)
    except (ConfigError, LibraryError):
        raise
    except Exception as error:  # builders, the user's own among them, raise anything
        raise ConfigError(
            "model.arguments",
            config.arguments,
            f"{config.name} cannot be built for {facts.channels}×{facts.image_size}×"
            f"{facts.image_size} images: {str(error).rstrip('.!')}",
            _larger_images(config, facts) or "Check the arguments and the image size",
        ) from error


def _torchvision_model(config: ModelConfig, facts: DataFacts) -> nn.Module:
    model = torchvision_network(config, facts)
    if facts.channels != 3:
        take_grey_images(model, facts.channels)
    return _with_frozen_norm(model) if keeps_frozen_norm(config) else _with_group_norm(model)


def torchvision_network(config: ModelConfig, facts: DataFacts) -> nn.Module:
    """One of torchvision's networks as it is there.

    Raises:
        ConfigError: there is none of that name.
    """
    torchvision = import_torchvision()
    names = torchvision.models.list_models(module=torchvision.models)
    if config.name not in names:
        near = difflib.get_close_matches(config.name, names, n=4, cutoff=0.0)
        raise unknown_name(
            "model.name",
            config.name,
            "no such network",
            [*OWN, *names],
            listed=[*OWN, f"one of torchvision's ({', '.join(near)}, …)"],
            own="my_pkg.my_module:build",
        )
    arguments = torchvision_arguments(config, facts)
    model: nn.Module = torchvision.models.get_model(config.name, weights=None, **arguments)
    return model


def torchvision_arguments(config: ModelConfig, facts: DataFacts) -> dict[str, Any]:
    """Arguments of torchvision's builder: those that suit the images, and those that are given."""
    arguments = {"num_classes": facts.num_classes, **config.arguments}
    for pattern, from_facts in _FROM_FACTS.items():
        if fnmatchcase(config.name, pattern):
            arguments = {**from_facts(facts), **arguments}
    return arguments


def keeps_frozen_norm(config: ModelConfig) -> bool:
    """Whether batch norm of torchvision's networks is frozen, and not replaced by group norm."""
    return config.pretrained is not None and config.pretrained_norm != "group"


def take_grey_images(model: nn.Module, channels: int) -> str | None:
    """Give the first convolution as many input channels as images have.

    Weights for RGB are added up over the channels when they are loaded, so the network computes
    what it would of a grey image that is repeated in all three.

    Returns:
        The name of that layer; None if there is none for RGB.
    """
    for place, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.in_channels == 3:
                kernel, stride, padding = child.kernel_size, child.stride, child.padding
                assert not isinstance(padding, str)
                first = nn.Conv2d(
                    channels,
                    child.out_channels,
                    (kernel[0], kernel[1]),
                    (stride[0], stride[1]),
                    (padding[0], padding[1]),
                    bias=child.bias is not None,
                )
                with torch.no_grad():
                    first.weight.copy_(child.weight.sum(1, keepdim=True))
                    if child.bias is not None and first.bias is not None:
                        first.bias.copy_(child.bias)
                setattr(parent, name, first)
                return f"{place}.{name}" if place else name
    return None


def _larger_images(config: ModelConfig, facts: DataFacts) -> str:
    """A way out for images that are too small for a network, tried; empty if there is none."""
    if config.name in OWN or config.is_users_own:
        return ""
    for size in (size for size in _SIZES if size > facts.image_size):
        try:
            model = _torchvision_model(config, replace(facts, image_size=size)).eval()
            with torch.no_grad():
                model(torch.zeros(1, facts.channels, size, size))
        except Exception:  # of this size
            continue
        return (
            f"It takes {size}×{size} images: set data.image_size={size} where the data set allows "
            "it, or choose another network"
        )
    return ""


def _with_group_norm(model: nn.Module) -> nn.Module:
    """Replace normalisation layers as Opacus does, and no other layer.

    Given the whole network, Opacus also replaces attention, which torch.func needs not.
    """
    from opacus.validators import ModuleValidator

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm | _InstanceNorm):
                setattr(parent, name, ModuleValidator.FIXERS[type(child)](child))
    return model


def _with_frozen_norm(model: nn.Module) -> nn.Module:
    """Batch norm as an affine map of each channel, which mixes no examples.

    Statistics, scale and shift are buffers of the names that they had, so each takes what a trained
    batch norm held and computes what that one does in evaluation.
    """
    frozen_norm = import_torchvision().ops.FrozenBatchNorm2d
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, frozen_norm(child.num_features, eps=child.eps))
    return model


def check_model(model: nn.Module) -> None:
    """Refuses a network whose per-example gradients would be wrong or would leak.

    Raises:
        ModelError: it has batch statistics, was hooked by Opacus or another library, or has
            nothing to train; the message says what to do.
    """
    for name, module in model.named_modules():
        place = name or type(module).__name__
        if isinstance(module, _BatchNorm):
            # Opacus's validator lets BatchNorm without affine parameters pass; it mixes examples
            # and keeps running statistics of private data all the same.
            groups = _groups_of_several(module)
            raise ModelError(
                f"model layer {place} ({type(module).__name__}) mixes the examples of a batch: "
                f"replace it by nn.GroupNorm({groups}, {module.num_features}), whose groups hold "
                "several values each"
            )
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            raise ModelError(
                f"model layer {place} keeps running statistics of private data: set "
                "track_running_stats=False"
            )
        _check_hooks(module, f"model layer {place} ({type(module).__name__})")
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("the model has no parameter with requires_grad: nothing to train")


def _groups_of_several(norm: _BatchNorm) -> int:
    """Groups for a group norm in its place; one where an image may have one value a channel."""
    if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
        return 1
    return math.gcd(32, norm.num_features)


def _check_hooks(module: nn.Module, place: str) -> None:
    """Refuses hooks, and says whose they are.

    Raises:
        ModelError: a hook may keep state from call to call, or clashes with torch.func.
    """
    kinds = {
        "forward": module._forward_hooks,
        "forward_pre": module._forward_pre_hooks,
        "full_backward": module._backward_hooks,
        "full_backward_pre": module._backward_pre_hooks,
    }
    found = [(kind, hook) for kind, hooks in kinds.items() for hook in hooks.values()]
    owners = [type(module).__module__, *(_owner(hook) for _, hook in found)]
    if any(owner.partition(".")[0] == "opacus" for owner in owners):
        raise ModelError(
            f"{place} carries hooks of Opacus, which clash with "
            "torch.func (Opacus #626: 'Tensor' object has no attribute '_forward_counter'): "
            "pass the plain model, before GradSampleModule or make_private touches it, or "
            "call its remove_hooks() and pass its _module"
        )
    for kind, hook in found:
        owner = _owner(hook)
        if owner in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            name = owner.rpartition(".")[2]
            raise ModelError(
                f"{place} has the old {name}, which computes its weight in a hook: use "
                f"torch.nn.utils.parametrizations.{name}"
            )
        if owner == "torch.nn.utils.prune":
            raise ModelError(
                f"{place} is pruned by a hook: call torch.nn.utils.prune.remove on its parameters"
            )
        named = getattr(hook, "__qualname__", type(hook).__qualname__)
        raise ModelError(
            f"{place} has a {kind} hook, {named} of {owner}, which may keep state from call to "
            f"call: remove it by the handle that register_{kind}_hook returned"
        )


def _owner(hook: Any) -> str:
    """The module that a hook is defined in."""
    hook = getattr(hook, "func", hook)  # of a functools.partial
    owner = getattr(hook, "__self__", hook)
    named = owner if callable(owner) and hasattr(owner, "__qualname__") else type(owner)
    return str(getattr(named, "__module__", ""))


def _fill_lazy_layers(model: nn.Module, config: ModelConfig, facts: DataFacts) -> None:
    """Runs one blank image through a network that has lazy layers, which gives them shapes."""
    parameters = [*model.parameters(), *model.buffers()]
    if not any(nn.parameter.is_lazy(parameter) for parameter in parameters):
        return
    try:
        with torch.no_grad():
            model(torch.zeros(1, facts.channels, facts.image_size, facts.image_size))
    except Exception as error:  # the network may be the user's own, and raise anything
        raise ConfigError(
            "model.name",
            config.name,
            f"has lazy layers, and does not take an image that would give them shapes: {error}",
            "Give the layers their sizes",
        ) from error


class _NormsOfSeveral(TorchFunctionMode):
    """Refuses normalisation over one value, which is 0 whatever the image.

    torch refuses it too, but only where a batch has one image.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        values, over = 2, ""
        if func is F.group_norm:
            x, groups = args[0], args[1] if len(args) > 1 else kwargs["num_groups"]
            values, over = x[0].numel() // groups, f"each of its {groups} groups"
        elif func is F.instance_norm:
            values, over = args[0][0, 0].numel(), "each channel of an image"
        elif func is F.layer_norm:
            shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            values, over = math.prod(shape), "what it normalises"
        if values == 1:
            raise ModelError(
                f"{current_layer()}{func.__name__} gives nothing: {over} has one value, which it "
                "turns into 0. Use fewer groups, so that each has several values, or "
                "nn.LayerNorm over all features"
            )
        return func(*args, **kwargs)


def _check_output(model: nn.Module, config: ModelConfig, facts: DataFacts) -> None:
    """Runs one blank image through: shapes are checked before any data is read."""
    image = torch.zeros(1, facts.channels, facts.image_size, facts.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _NormsOfSeveral():
            output = model(image)
    except ModelError:
        raise
    except Exception as error:  # the network may be the user's own, and raise anything
        raise ConfigError(
            "model.name",
            config.name,
            f"does not take images of shape {tuple(image.shape[1:])}: {str(error).rstrip('.!')}",
            _larger_images(config, facts) or "Choose another network or image size",
        ) from error
    if isinstance(output, tuple) and "aux_logits" in config.arguments:
        raise ConfigError(
            "model.arguments.aux_logits",
            config.arguments["aux_logits"],
            f"{config.name} returns {type(output).__name__} in training, several rows an image",
            "Set it to false",
        )
    shape = tuple(getattr(output, "shape", ()))
    if shape != (1, facts.num_classes):
        raise ConfigError(
            "model.name",
            config.name,
            f"returns {shape or type(output).__name__} where (1, {facts.num_classes}) is needed",
            "A classifier returns one row of logits an image",
        )
