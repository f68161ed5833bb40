"""Accuracy on the test split, shared among the workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dp_ray.data.sampling import Shard
from dp_ray.data.store import StoredSplit
from dp_ray.data.views import ViewMaker
from dp_ray.training.collective import Collective
from dp_ray.training.layout import ParameterLayout

_BATCH = 512


@torch.no_grad()
def count_correct(
    model: nn.Module,
    params: dict[str, Tensor],
    data: StoredSplit,
    views: ViewMaker,
    device: torch.device,
    shard: Shard,
) -> int:
    """Examples of the shard whose largest logit is their label's; images are not augmented."""
    correct = 0
    was_training = model.training
    model.eval()
    try:
        for start in range(shard.start, shard.stop, _BATCH):
            part = slice(start, min(start + _BATCH, shard.stop))
            images = views.normalize(torch.from_numpy(data.images[part].copy()))
            labels = torch.from_numpy(data.labels[part].copy()).to(device)
            logits = functional_call(model, params, (images,))
            correct += int((logits.argmax(dim=1) == labels).sum())
    finally:
        model.train(was_training)
    return correct


def shared_accuracy(
    model: nn.Module,
    layout: ParameterLayout,
    vector: Tensor,
    data: StoredSplit,
    views: ViewMaker,
    collective: Collective,
) -> float | None:
    """Accuracy at parameters [P]; right on rank 0 only, None without test examples."""
    if len(data) == 0:
        return None
    shard = Shard.of(collective.rank, collective.world_size, len(data))
    params = layout.split(vector)
    correct = count_correct(model, params, data, views, vector.device, shard)
    total = torch.tensor([float(correct)], dtype=torch.float64)
    collective.reduce_(total)
    return float(total.item()) / len(data)
