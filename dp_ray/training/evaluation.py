"""Metrics on the test split, shared among the workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dp_ray.data.store import Examples
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.objectives.objective import Objective, worst
from dp_ray.privacy.sampling import Shard
from dp_ray.training.collective import Collective

_BATCH = 512


@torch.no_grad()
def outputs_by_batch(
    model: nn.Module,
    params: dict[str, Tensor],
    data: Examples,
    views: ViewMaker,
    device: torch.device,
    shard: Shard,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs [n, …] and labels [n, …] of a shard, by batches; images are not augmented."""
    was_training = model.training
    model.eval()
    try:
        for start in range(shard.start, shard.stop, _BATCH):
            images, labels = data.read(np.arange(start, min(start + _BATCH, shard.stop)))
            normalized = views.normalize(torch.from_numpy(images))
            yield functional_call(model, params, (normalized,)), torch.from_numpy(labels).to(device)
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
    data: Examples,
    views: ViewMaker,
    objective: Objective,
    collective: Collective,
    class_names: Sequence[str] = (),
) -> Evaluation | None:
    """Evaluates parameters [P] with ``untrained`` tensors, as a release has them.

    The result is right on rank 0 only, and None without test examples.
    """
    if len(data) == 0:
        return None
    shard = Shard.of(collective.rank, collective.world_size, len(data))
    params = {**untrained, **layout.split(vector)}
    state = objective.new_state()
    for outputs, labels in outputs_by_batch(model, params, data, views, vector.device, shard):
        state = objective.update(state, outputs, labels)
    collective.reduce_(state)
    return evaluation_of(objective, state, len(data), class_names)


def evaluation_of(
    objective: Objective, state: Tensor, examples: int, class_names: Sequence[str] = ()
) -> Evaluation:
    """Return the metrics of a merged state [S]; one that is no number counts as the worst."""
    metrics = objective.compute(state, examples)
    for name, direction in objective.metrics.items():
        if math.isnan(metrics[name]):
            metrics[name] = worst(direction)
    warn = getattr(objective, "warnings", None)
    return Evaluation(metrics, examples, () if warn is None else tuple(warn(state, class_names)))
