"""Frozen parameters and buffers: a copy from before the first step, which is what is released.

What is not trained must not change: whatever a network counted, or observed of the data, would be
released without noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dp_ray.errors import ModelError
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.models.pretrained import digest_of_tensors


@dataclass(frozen=True)
class Untrained:
    """The tensors of a network that are not trained, as they were before the first step.

    Attributes:
        tensors: name → copy of each frozen parameter and buffer, on the device of the network.
        saved: name in a file → name of the tensor; two names where parameters are tied. Buffers
            that are not persistent have none.
    """

    tensors: Mapping[str, Tensor]
    saved: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, layout: ParameterLayout) -> Untrained:
        """Copy what ``layout`` does not train."""
        copies = {
            name: t.detach().clone() for name, t in _tensors(model) if name not in layout.shapes
        }
        return cls(copies, _saved_names(model))

    def copy(self) -> dict[str, Tensor]:
        """A fresh copy, for a network that may write to what it is given."""
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def changed(self, current: Mapping[str, Tensor]) -> str | None:
        """The name of the first tensor that is not what it was, bit for bit; None if all are."""
        for name, tensor in self.tensors.items():
            if name not in current or not same_bits(tensor, current[name]):
                return name
        return None

    def changed_in(self, model: nn.Module) -> str | None:
        """See :meth:`changed`; of the network's own tensors."""
        return self.changed(dict(_tensors(model)))

    def digest(self) -> str:
        """SHA-256 of names, types, shapes and contents."""
        return digest_of_tensors(self.tensors)

    def released(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that a file of the network holds: the trained parameters, and the copy of the rest.

        The network is not asked: its own ``state_dict()`` may add what it counted.

        Args:
            params: name → tensor of the trained parameters.
        """
        whole = {**self.tensors, **params}
        return {
            name: whole[own].detach().cpu().contiguous().clone() for name, own in self.saved.items()
        }


def check_saved(model: nn.Module, place: str) -> None:
    """Refuse a network whose ``state_dict()`` is not its parameters and persistent buffers.

    Args:
        model: the network.
        place: how a message names it.

    Raises:
        ModelError: it adds, leaves out, renames or changes a tensor; the message names it.
    """
    own, found = dict(_tensors(model)), model.state_dict()
    saved = _saved_names(model)
    for name in [*saved, *found]:
        tensor = found.get(name)
        if name in saved and isinstance(tensor, Tensor) and same_bits(own[saved[name]], tensor):
            continue
        problem = "adds" if name not in saved else "leaves out" if name not in found else "changes"
        raise ModelError(
            f"{place}: the network's state_dict() {problem} {name}: a release holds parameters and "
            "persistent buffers as they are, and nothing else. Remove what overrides state_dict() "
            "or get_extra_state(), or keep the value in a buffer"
        )


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have equal types, shapes and bits; NaN equals itself."""
    if (first.dtype, first.shape, first.device) != (second.dtype, second.shape, second.device):
        return False
    return torch.equal(_bytes(first), _bytes(second))


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest entry; entries that are NaN in both are equal."""
    differ = ~((expected == found) | (expected.isnan() & found.isnan()))
    if not differ.any():
        return 0.0
    off = (expected - found).abs()[differ]
    largest = expected.abs().nan_to_num(0.0).max().clamp(min=1e-20)
    return float((off.nan_to_num(torch.inf).max() / largest).item())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _saved_names(model: nn.Module) -> dict[str, str]:
    """Name in a state_dict → the name under which :func:`_tensors` has that tensor."""
    names = {id(tensor): name for name, tensor in _tensors(model)}
    saved = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        persistent = module._buffers.keys() - module._non_persistent_buffers_set
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (name in module._parameters or name in persistent):
                saved[f"{prefix}.{name}" if prefix else name] = names[id(tensor)]
    return saved
