"""The workers of a run, one after the other, in one process and without a coordinator."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dp_ray.config.run import Config
from dp_ray.data.store import Dataset
from dp_ray.data.views import ViewMaker
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.models.build import build_model
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.privacy.sampling import PoissonSampler, Shard
from dp_ray.training.step import Assignment, ShardWorker
from helpers.support import key_of

KEY = key_of(5)
CPU = torch.device("cpu")
C = 1.0


def at(step: int) -> Assignment:
    """What rank 0 would ask for."""
    return Assignment(step, incarnation=0, max_grad_norm=C, done=False)


def workers(config: Config, dataset: Dataset, count: int) -> Iterator[ShardWorker]:
    """What W processes would hold, one after the other."""
    model = build_model(config.model, dataset.facts, init_seed=1)
    for rank in range(count):
        yield ShardWorker(
            model=model,
            layout=ParameterLayout.of(model),
            data=dataset.train,
            shard=Shard.of(rank, count, len(dataset.train)),
            sampler=PoissonSampler(len(dataset.train), config.data.expected_batch_size),
            views=ViewMaker(config.augment, dataset.facts, CPU),
            objective=SingleLabel(dataset.facts.num_classes),
            keys=KEY.sampling_keys(),
            clipping=config.privacy.clipping,
            microbatch_size=config.train.microbatch_size or 32,
            engine=build_engine(),
            device=CPU,
        )
