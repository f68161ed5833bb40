"""The public functions as another project uses and type-checks them (``make check``)."""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

import dp_ray


def clipped_sum(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the sum of one clipped gradient an example, for each parameter."""
    result = dp_ray.clipped_gradient_sum(
        model,
        {name: parameter.detach() for name, parameter in model.named_parameters()},
        images[:, None],  # one view of each
        labels,
        max_grad_norm=1.0,
    )
    assert_type(result, dp_ray.ClippedSum)
    assert_type(result.sensitivity, float)
    return result.gradients


def steps_of(name: str, changes: list[str]) -> int | None:
    """Return the steps of a configuration; None where it cannot be used."""
    try:
        config = dp_ray.load_config(name, changes)
    except dp_ray.DpRayError as error:
        print(f"not used: {error}")
        return None
    assert_type(config, dp_ray.Config)
    assert_type(config.privacy.steps, int | None)
    return config.privacy.steps


def main() -> None:
    """Use both."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    total = clipped_sum(model, torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1]))
    norm = sum(float(gradient.square().sum()) for gradient in total.values()) ** 0.5
    assert 0 < norm <= 5  # examples, each clipped to 1
    assert steps_of("digits", ["privacy.steps=7"]) == 7
    assert steps_of("digits", ["privacy.step=7"]) is None


if __name__ == "__main__":
    main()
