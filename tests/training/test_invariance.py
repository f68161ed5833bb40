"""The number of workers and the microbatch size are no part of the mathematics."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shard_workers import CPU, KEY, C, at, workers
from helpers.support import MakeConfig
from torch import Tensor

from dp_ray.config.run import Config
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.data.views import ViewMaker, ViewParameters
from dp_ray.gradients.engines.engine import Sums
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.keys import KeyedStream
from dp_ray.privacy.noise import KeyedNoiseOptimizer
from dp_ray.privacy.sampling import PoissonSampler, Shard
from dp_ray.training.step import STATISTICS, ShardWorker

STEPS = 20


def parameters_after(config: Config, dataset: Dataset, count: int) -> Tensor:
    """[P] after 20 noised steps with W workers."""
    group = list(workers(config, dataset, count))
    layout = group[0].layout
    vector = layout.join(dict(group[0].model.named_parameters()))
    views = [torch.nn.Parameter(p) for p in layout.split(vector).values()]
    optimizer = KeyedNoiseOptimizer(
        torch.optim.SGD(views, lr=0.5, momentum=0.5),
        expected_batch_size=config.data.expected_batch_size,
    )
    for step in range(STEPS):
        sums = [w.clipped_sum(vector, at(step)) for w in group]
        total = torch.stack([s.vector for s in sums]).sum(dim=0)
        stream = KeyedStream(KEY.derive("noise"), incarnation=0, step=step)
        optimizer.release(
            layout.split(total),
            noise_multiplier=1.0,
            sensitivity=C,
            stream=stream,
        )
    return vector


def test_parameters_do_not_depend_on_workers_or_microbatches(make_config: MakeConfig) -> None:
    config = make_config(model={"arguments": {"widths": [8, 8]}})
    dataset = open_dataset(config.data)
    torch.set_num_threads(1)
    settings = [(1, 32), (2, 32), (4, 32), (1, 8), (4, 128)]
    found = {}
    for count, size in settings:
        changed = config.model_copy(
            update={"train": config.train.model_copy(update={"microbatch_size": size})}
        )
        found[count, size] = parameters_after(changed, dataset, count)
    reference = found[1, 32]
    for vector in found.values():
        assert float((vector - reference).norm() / reference.norm()) < 1e-5


def draws(step: int) -> KeyedStream:
    return KeyedStream(KEY.derive("draw"), incarnation=0, step=step)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_draws_do_not_depend_on_workers(count: int) -> None:
    sampler = PoissonSampler(1437, 64)
    for step in range(STEPS):
        parts = [sampler.draw(draws, step, Shard.of(r, count, 1437)) for r in range(count)]
        whole = sampler.draw(draws, step, Shard(0, 1437))
        assert np.array_equal(np.concatenate(parts), whole)


def test_views_do_not_depend_on_the_batch(make_config: MakeConfig) -> None:
    config = make_config()
    dataset = open_dataset(config.data)
    maker = ViewMaker(config.augment, dataset.facts, CPU)
    stream = KeyedStream(KEY.derive("views"), incarnation=0, step=3)

    def views(ids: list[int]) -> Tensor:
        images = torch.from_numpy(dataset.train.images[ids])
        parameters: ViewParameters = maker.draw(stream, np.array(ids))
        return maker.make(images, parameters)

    together = views([3, 700, 42])
    for position, example in enumerate([3, 700, 42]):
        torch.testing.assert_close(views([example])[0], together[position])


def test_dropout_masks_do_not_depend_on_workers(make_config: MakeConfig) -> None:
    """A network with dropout gives the same sum for any W and any microbatch size."""
    config = make_config()
    dataset = open_dataset(config.data)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 10)
    )
    sums = []
    for count, size in product((1, 3), (16, 64)):
        changed = config.model_copy(
            update={"train": config.train.model_copy(update={"microbatch_size": size})}
        )
        total: Tensor | None = None
        for worker in workers(changed, dataset, count):
            own = ShardWorker(
                **{**vars(worker), "model": model, "layout": ParameterLayout.of(model)}
            )
            vector = own.layout.join(dict(model.named_parameters()))
            piece = own.clipped_sum(vector, at(1)).vector
            total = piece if total is None else total + piece
        assert total is not None
        sums.append(total)
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-4, atol=1e-5)


def test_dropout_masks_differ_between_examples(make_config: MakeConfig) -> None:
    config = make_config(train={"microbatch_size": 8})
    dataset = open_dataset(config.data)
    seen: list[Tensor] = []

    class Noting(Vmap):
        """Keeps the seeds that it is given."""

        def microbatch_sum(self, *arguments: Any, **keywords: Any) -> Sums:
            seen.append(keywords["dropout_seeds"][keywords["mask"]])
            return super().microbatch_sum(*arguments, **keywords)

    [worker] = workers(config, dataset, 1)
    vector = worker.layout.join(dict(worker.model.named_parameters()))
    for step in (0, 1):
        noting = ShardWorker(**{**vars(worker), "engine": Noting()})
        noting.clipped_sum(vector, at(step))
    seeds = torch.cat(seen)
    assert len(seeds) > 64
    assert len(torch.unique(seeds)) == len(seeds)


def test_an_empty_draw_is_a_zero_sum(make_config: MakeConfig) -> None:
    config = make_config(data={"expected_batch_size": 1})
    dataset = open_dataset(config.data)
    [worker] = workers(config, dataset, 1)
    vector = worker.layout.join(dict(worker.model.named_parameters()))
    empty = [step for step in range(20) if not len(worker.drawn(at(step)))]
    assert empty  # with B̄ = 1 about 37% of the steps
    found = worker.clipped_sum(vector, at(empty[0]))
    assert float(found.vector.abs().max()) == 0
    assert found.statistics.tolist() == [0] * len(STATISTICS)


def test_padding_never_reads_as_data(make_config: MakeConfig) -> None:
    """Example 0 fills the padding's ids; the sum must not contain it."""
    config = make_config(train={"microbatch_size": 512})
    dataset = open_dataset(config.data)
    [worker] = workers(config, dataset, 1)
    vector = worker.layout.join(dict(worker.model.named_parameters()))
    small = ShardWorker(**{**vars(worker), "microbatch_size": 1})
    padded = worker.clipped_sum(vector, at(2))
    exact = small.clipped_sum(vector, at(2))
    torch.testing.assert_close(padded.vector, exact.vector, rtol=1e-4, atol=1e-5)
    assert padded.statistics[0] == exact.statistics[0] < 512
