"""What identifies a network, an objective and data that were passed as Python objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig
from torch import Tensor, nn

from dp_ray.objectives.single_label import Classification
from dp_ray.training.identity import start_identity


class Net(nn.Module):
    """A network of the test's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("shift", torch.zeros(1))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x * self.scale + self.shift)
        return y


class Smoothed(Classification):
    """Cross-entropy with smoothed labels."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__(3)
        object.__setattr__(self, "smoothing", smoothing)
        object.__setattr__(self, "weights", torch.ones(3))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


def net(seed: int = 0, kind: type[nn.Module] = Net, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**options)


class Loud(Net):
    """Computes what Net does not."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def changed(change: Callable[[Any], object], value: Any) -> Any:
    change(value)
    return value


class Weighted(Smoothed):
    """Smoothed by other code."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 2 * super().losses(outputs, labels)


OTHERS: dict[str, dict[str, Any]] = {
    "tensors": {"model": net(1)},
    "buffer": {"model": changed(lambda m: m.shift.fill_(1.0), net())},
    "attribute": {"model": net(scale=2.0)},
    "layers": {"model": changed(lambda m: m.body.__setitem__(1, nn.Tanh()), net())},
    "code": {"model": net(kind=Loud)},
    "objective": {"objective": Weighted()},
    "its attribute": {"objective": Smoothed(0.2)},
    "its tensor": {"objective": changed(lambda o: o.weights.fill_(2.0), Smoothed())},
    "test split": {"test_digest": "other"},
    "weights": {"weights": "other"},
}


@pytest.fixture
def identity(make_config: MakeConfig) -> Callable[..., str | None]:
    config = make_config()
    sections = {n: getattr(config, n).passing(object()) for n in ("model", "data", "objective")}
    passed = config.model_copy(update=sections)

    def identify(**values: Any) -> str | None:
        parts = {"weights": None, "model": net(), "objective": Smoothed(), "test_digest": "a"}
        return start_identity(passed, **(parts | values))

    return identify


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
def test_another_object_has_another_identity(
    identity: Callable[..., str | None], other: dict[str, Any]
) -> None:
    assert identity(**other) != identity()


def test_equal_objects_made_anew_have_the_same_identity(
    identity: Callable[..., str | None],
) -> None:
    assert identity() == identity()
    assert identity(model=net().eval()) == identity()


def test_what_the_configuration_names_is_identified_by_it(make_config: MakeConfig) -> None:
    config = make_config()
    for weights in (None, "digest"):
        assert start_identity(config, weights, net(), Smoothed(), "a") == weights


def test_code_is_compared_without_comments(identity: Callable[..., str | None]) -> None:
    space: dict[str, Any] = {"nn": nn, "__name__": "__main__"}
    for text in ("return x", "return  (x)", "return x + x"):
        exec(f"class Own(nn.Linear):\n    def forward(self, x):\n        {text}", space)
        space[text] = net(kind=space["Own"], in_features=2, out_features=2)
    first, same, other = (identity(model=space[t]) for t in list(space)[-3:])
    assert first == same
    assert first != other
