"""Networks of the product, their parameters, and how far two gradients are apart."""

from __future__ import annotations

from torch import Tensor, nn

from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.models.build import build_model

GREY = DataFacts(1000, 10, 28, 1, (0.5,), (0.5,))
RGB = DataFacts(1000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3)


def make(name: str, facts: DataFacts) -> nn.Module:
    return build_model(ModelConfig(name=name), facts, init_seed=3)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference over the largest number, tensor by tensor, the worst of them."""
    scale = max(float(t.abs().max()) for t in expected.values())
    worst = max(float((found[n].double() - expected[n]).abs().max()) for n in expected)
    return worst / max(scale, 1e-12)
