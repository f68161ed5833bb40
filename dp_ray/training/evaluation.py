"""Accuracy and loss on the test split, shared among the workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dp_ray.data.store import StoredSplit
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.sampling import Shard
from dp_ray.training.collective import Collective

_BATCH = 512


@torch.no_grad()
def logits_by_batch(
    model: nn.Module,
    params: dict[str, Tensor],
    data: StoredSplit,
    views: ViewMaker,
    device: torch.device,
    shard: Shard,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [n, classes], labels [n]) of a shard, batch by batch; images are not augmented."""
    was_training = model.training
    model.eval()
    try:
        for start in range(shard.start, shard.stop, _BATCH):
            part = slice(start, min(start + _BATCH, shard.stop))
            images = views.normalize(torch.from_numpy(data.images[part].copy()))
            labels = torch.from_numpy(data.labels[part].copy()).to(device)
            yield functional_call(model, params, (images,)), labels
    finally:
        model.train(was_training)


def evaluation_sizes(num_examples: int, rank: int, world_size: int) -> list[int]:
    """The numbers of images that a worker passes through the network at a time."""
    shard = Shard.of(rank, world_size, num_examples)
    whole, rest = divmod(shard.stop - shard.start, _BATCH)
    return [size for size, there in ((_BATCH, whole), (rest, rest)) if there]


@torch.no_grad()
def gives_numbers(model: nn.Module, params: dict[str, Tensor], images: Tensor) -> bool:
    """Whether the logits of images [n, C, H, W] are finite."""
    was_training = model.training
    model.eval()
    try:
        logits: Tensor = functional_call(model, params, (images,))
    finally:
        model.train(was_training)
    return bool(logits.isfinite().all())


def shared_evaluation(
    model: nn.Module,
    layout: ParameterLayout,
    vector: Tensor,
    untrained: Mapping[str, Tensor],
    data: StoredSplit,
    views: ViewMaker,
    collective: Collective,
) -> Evaluation | None:
    """Evaluates parameters [P] with ``untrained`` tensors, as a release has them.

    The result is right on rank 0 only, and None without test examples.
    """
    if len(data) == 0:
        return None
    shard = Shard.of(collective.rank, collective.world_size, len(data))
    params = {**untrained, **layout.split(vector)}
    total = torch.zeros(2, dtype=torch.float64)
    for logits, labels in logits_by_batch(model, params, data, views, vector.device, shard):
        total[0] += float((logits.argmax(dim=1) == labels).sum())
        total[1] += float(cross_entropy(logits, labels, reduction="sum"))
    collective.reduce_(total)
    correct, losses = total.tolist()
    loss = losses / len(data)
    return Evaluation(correct / len(data), math.inf if math.isnan(loss) else loss, len(data))
