"""Weights that a network starts from: trained on public data, by its user's word.

They are read where :func:`load_pretrained` is called and nowhere else: a released model holds all
of its tensors, and workers get theirs from rank 0.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dp_ray.config.model import ModelConfig
from dp_ray.config.weights import SUFFIXES as _SUFFIXES
from dp_ray.errors import ConfigError
from dp_ray.libraries import import_torchvision
from dp_ray.models.trainable import find_head
from dp_ray.storage import user_path

_SHOWN = 3


def _is_file(pretrained: str) -> bool:
    """Whether ``model.pretrained`` is a path, and no name of torchvision's."""
    return Path(pretrained).suffix in _SUFFIXES


def load_pretrained(model: nn.Module, config: ModelConfig) -> str | None:
    """Puts the configured weights into a network.

    A head (the last ``nn.Linear``) of another number of classes keeps what it was initialised with.

    Args:
        model: as :func:`~dp_ray.models.build.build_model` made it of the same configuration.
        config: names the weights.

    Returns:
        A digest of the weights, whatever they were read from; None if none are configured.

    Raises:
        ConfigError: they cannot be had, or do not fit the network.
    """
    if config.pretrained is None:
        return None
    weights = _read(config.name, config.pretrained)
    own = model.state_dict()
    # Of a batch norm that is frozen here; it counts the batches of a training that is over.
    given = {
        name: tensor
        for name, tensor in weights.items()
        if name in own or not name.endswith(".num_batches_tracked")
    }
    given = {
        name: _for_channels(tensor, own[name]) if name in own else tensor
        for name, tensor in given.items()
        # Second heads of googlenet and inception, which are for training only.
        if name in own or not name.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    fresh = _head_of_other_classes(model, given)
    _check_fit(config.pretrained, own, given, fresh)
    with torch.no_grad():
        for name in own.keys() - fresh:
            own[name].copy_(given[name])
    return digest_of_tensors(weights)


def _for_channels(weight: Tensor, own: Tensor) -> Tensor:
    """A convolution's weight for RGB images, added up for grey ones, whose channels are equal."""
    if own.ndim != 4 or own.shape[1] != 1:
        return weight
    fits = weight.shape == (own.shape[0], 3, *own.shape[2:])
    return weight.sum(1, keepdim=True) if fits else weight


def _head_of_other_classes(model: nn.Module, given: Mapping[str, Tensor]) -> set[str]:
    """Names of the head's tensors, if those given differ in the number of classes."""
    head = find_head(model)
    if head is None:
        return set()
    name, layer = head
    weight = given.get(f"{name}.weight")
    if weight is None or weight.shape == layer.weight.shape:
        return set()
    same_inputs = weight.shape[1:] == layer.weight.shape[1:]
    return {f"{name}.weight", f"{name}.bias"} if same_inputs else set()


def _check_fit(
    pretrained: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], fresh: set[str]
) -> None:
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not in the network" for name in given if name not in own]
    problems += [
        f"{name} is {list(given[name].shape)} and not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and name not in fresh and given[name].shape != tensor.shape
    ]
    if problems:
        more = ", …" if len(problems) > _SHOWN else ""
        raise ConfigError(
            "model.pretrained",
            pretrained,
            f"does not fit the network: {', '.join(problems[:_SHOWN])}{more}",
            "Give the state_dict() of the same network, with the same model.arguments, as a file",
        )


def _read(network: str, pretrained: str) -> Mapping[str, Tensor]:
    found = _read_file(pretrained) if _is_file(pretrained) else _fetch(network, pretrained)
    if isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        return found
    raise ConfigError(
        "model.pretrained",
        pretrained,
        "holds something else than tensors by name",
        "Save the network's state_dict(), by itself",
    )


def _read_file(pretrained: str) -> Any:
    path = user_path(pretrained)
    try:
        if not path.is_file():
            raise ConfigError(
                "model.pretrained", pretrained, "there is no such file", "Give the path of one"
            )
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file fails in any way
        raise ConfigError(
            "model.pretrained",
            pretrained,
            f"cannot be read: {_reason(error)}",
            "Give a safetensors file, or what torch.save made of a state_dict()",
        ) from error


def _fetch(network: str, pretrained: str) -> Any:
    """torchvision's weights, from its cache or from where it publishes them."""
    torchvision = import_torchvision()
    if network not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(
            "model.pretrained",
            pretrained,
            f"is no file ({', '.join(_SUFFIXES)}), and {network} is none of torchvision's networks",
            "Give the path of a file",
        )
    known = torchvision.models.get_model_weights(network).__members__
    if pretrained not in known:
        raise ConfigError(
            "model.pretrained",
            pretrained,
            f"is neither a file ({', '.join(_SUFFIXES)}) nor torchvision's weights of {network}",
            f"Use {', '.join(known)}, or the path of a file" if known else "Give a file",
        )
    entry = known[pretrained]
    try:
        return entry.get_state_dict(
            check_hash=True, progress=False, map_location="cpu", weights_only=True
        )
    except Exception as error:  # of the network, the disk, or what was downloaded
        raise ConfigError(
            "model.pretrained",
            pretrained,
            f"cannot be downloaded: {_reason(error)}",
            f"Fetch {entry.url} elsewhere and give the file's path",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # torch's own message advises to run the file's code.
        return "it is damaged, or holds objects other than tensors, which are never loaded"
    return " ".join(str(error).split())[:200] or type(error).__name__


def digest_of_tensors(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
