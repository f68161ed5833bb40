"""Mistakes in a call of the functional step, in words of its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dp_ray

VIEWS = torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))


def step(model: nn.Module, views: Any = VIEWS, labels: Any = LABELS, **options: Any) -> Any:
    params = {name: p.detach() for name, p in model.named_parameters()}
    return dp_ray.clipped_gradient_sum(model, params, views, labels, max_grad_norm=1.0, **options)


def each_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "batch norm": ({"model": network(nn.BatchNorm2d(1))}, r"layer 0 \(BatchNorm2d\) mixes"),
    "without statistics": (
        {"model": network(nn.BatchNorm2d(1, track_running_stats=False)).eval()},
        "replace it by nn.GroupNorm",
    ),
    "float labels": ({"labels": LABELS.float()}, r"labels = torch.float32 .*class indices"),
    "labels in columns": ({"labels": LABELS[:, None]}, r"shape \[3, 1\]: class indices"),
    "one output too few": ({"labels": LABELS + 1}, "outside of 0 to 2.*returns 3 outputs"),
    "negative labels": ({"labels": LABELS - 1}, "outside of 0 to 2"),
    "another shape": ({"views": VIEWS[..., :7]}, r"float32 of shape \[2, 1, 8, 7\]"),
    "bytes": ({"views": VIEWS.to(torch.uint8)}, "uint8 of shape"),
    "no tensor": ({"labels": [0, 1, 2]}, "labels must be a tensor, not list"),
    "a loss a view": ({"loss_fn": each_loss}, r"shape \[2\] for one unit; return one number"),
    "a loss that fails": ({"loss_fn": lambda *_: 1 / 0}, "loss_fn: fails .*division by zero"),
    "clipping": ({"clipping": "flot"}, "clipping = 'flot': use flat, automatic, per_layer"),
}


@pytest.mark.parametrize(("options", "problem"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(dp_ray.DpRayError, match=problem) as caught:
        step(**{"model": network(), **options})
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_frozen_batch_norm_is_taken() -> None:
    model = network(nn.BatchNorm2d(1)).eval()
    assert step(model).sensitivity == 1.0


def test_an_error_that_only_the_transform_has_is_torch_s() -> None:
    class Branches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(RuntimeError, match="data-dependent"):
        step(Branches(64, 3))
