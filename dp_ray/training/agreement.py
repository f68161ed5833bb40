"""What the workers of a run must have in common before its first step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dp_ray.config.data import DataConfig
from dp_ray.data.facts import DataFacts
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import DataError, DpRayError, RunError
from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines.engine import Engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.keys import KeyedStream, SamplingKeys
from dp_ray.objectives.objective import LabelSpec, Objective
from dp_ray.performance.machine import describe_machine
from dp_ray.privacy.sampling import PoissonSampler, Sampler, Shard
from dp_ray.training.collective import Collective
from dp_ray.training.kept_in_c import settings
from dp_ray.training.step import Assignment, ShardWorker

_LENGTH = 2000
"""Bytes of what a worker tells the others; a longer text is cut off."""


def open_same_dataset(
    config: DataConfig, collective: Collective, labels: LabelSpec | None = None
) -> Dataset:
    """Opens the data on every worker; all take part, and all fail if one of them does.

    Examples are shared out by their ids, so that all must hold the same ones under the same ids, or
    shards would overlap.

    Args:
        config: the same on all workers, read in the environment of each one's node.
        collective: the other workers.
        labels: what the objective takes; None means class indices.

    Raises:
        ConfigError: the data cannot be used, and all workers are on this machine.
        DataError: some nodes lack the data, or have other data; the message names them.
    """
    dataset, problem = None, None
    try:
        dataset = open_dataset(config, labels)
    except DpRayError as error:
        problem = error
    problems = _from_all(collective, str(problem or ""))
    shared = _from_all(collective, "" if problem is None else problem.shared)
    digests = _from_all(collective, "" if dataset is None else dataset.digest)
    nodes = _from_all(collective, collective.node or "")
    if dataset is not None and set(digests) == {dataset.digest}:
        return dataset
    if problem is not None and collective.node is None:
        raise problem
    if any(problems):
        raise DataError(_by_node(nodes, problems), shared=_by_node(nodes, shared))
    others = [n for n, digest in zip(nodes, digests, strict=True) if digest != digests[0]]
    where = f" (those on {_list(others)})" if any(others) else ""
    raise DataError(
        f"{len(others)} of {collective.world_size} workers read other training data than the first "
        f"one{where}: every node needs the same files, and a loader of your own must return the "
        "same examples in the same order each time"
    )


def _by_node(nodes: list[str], problems: list[str]) -> str:
    """Each problem once, with the nodes that have it."""
    told = [
        f"On {_list([n for n, p in zip(nodes, problems, strict=True) if p == text])}: "
        f"{text.rstrip('.')}."
        for text in dict.fromkeys(problems)
        if text
    ]
    return f"{' '.join(told)} Each node with workers needs the data"


def share_parameters(collective: Collective, model: nn.Module) -> None:
    """Give all workers rank 0's parameters and buffers, whatever initialised them elsewhere."""
    for tensor in chain(model.parameters(), model.buffers()):
        collective.broadcast_(tensor.detach())


def stop_together(collective: Collective, problem: DpRayError | None) -> None:
    """Raise on all workers if one of them has a problem; all take part.

    Raises:
        DpRayError: this worker's problem, or the first that another one has.
    """
    count = torch.tensor([int(problem is not None)])
    collective.reduce_(count)
    collective.broadcast_(count)
    if not count.item():
        return
    problems = _from_all(collective, str(problem or ""))
    raise problem or RunError(next(text for text in problems if text))


def check_same_arithmetic(
    collective: Collective,
    *,
    model: nn.Module,
    layout: ParameterLayout,
    views: ViewMaker,
    objective: Objective,
    facts: DataFacts,
    clipping: Clipping,
    max_grad_norm: float,
    microbatch_size: int,
    engine: Engine,
    device: torch.device,
    sampler: Sampler,
) -> None:
    """Refuse workers that compute other sums of the same examples, bit for bit; all take part.

    One example more moves the shards' boundaries, so another one may go to another worker. Were its
    gradient rounded otherwise there, it could lie on the other side of a kink, and the sum would
    move by more than C. Each worker sums up one microbatch of the same made-up images, with the
    same views and parameters, as in a step. Switches of torch and numpy are compared as well.

    Args:
        collective: the workers; those that join later are a new group, which is checked again.
        model: with rank 0's parameters.
        layout: order of the parameters.
        views: the K augmentations.
        objective: loss and labels.
        facts: shape of the images.
        clipping: how gradients are brought within C.
        max_grad_norm: C.
        microbatch_size: B.
        engine: computes the sum.
        device: where this worker computes.
        sampler: the mechanism's draw, compared by some of it under a made-up key.

    Raises:
        RunError: the draws or the sums differ; the message names the nodes.
    """
    if collective.world_size == 1:
        return
    _check_same_draws(collective, sampler, facts.num_examples)
    worker = ShardWorker(
        model=model,
        layout=layout,
        data=_MadeUp(facts, objective.labels, microbatch_size),
        shard=Shard(0, microbatch_size),
        sampler=PoissonSampler(microbatch_size, microbatch_size),
        views=views,
        objective=objective,
        keys=SamplingKeys.from_bytes(bytes(96)),  # of made-up images: nothing to keep secret
        clipping=clipping,
        microbatch_size=microbatch_size,
        engine=engine,
        device=device,
    )
    params = layout.join(dict(model.named_parameters()))
    total = worker.clipped_sum(params, Assignment(0, 0, max_grad_norm, done=False))
    content = [tensor.cpu().numpy().tobytes() for tensor in (total.vector, total.statistics)]
    content.append(repr(settings()).encode())  # made-up images need not show all that these do
    digests = _from_all(collective, hashlib.sha256(b"".join(content)).hexdigest())
    nodes = _from_all(collective, collective.node or "")
    machines = _from_all(collective, ", ".join(describe_machine(device).values()))
    others = [i for i, digest in enumerate(digests) if digest != digests[0]]
    if not others:
        return
    where = _list([f"{nodes[i]} ({machines[i]})".strip() for i in others])
    raise RunError(
        f"{len(others)} of {collective.world_size} workers round otherwise than the first one "
        f"({machines[0]}): {where}. One example more could then move others' gradients. Use nodes "
        "of one kind, or set ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS and ONEDNN_MAX_CPU_ISA "
        "to what all of them have, and the settings of torch and numpy alike"
    )


def _check_same_draws(collective: Collective, sampler: Sampler, num_examples: int) -> None:
    everyone, hashed = Shard(0, num_examples), hashlib.sha256()
    for step in range(3):
        drawn = sampler.draw(
            lambda at: KeyedStream(bytes(32), incarnation=0, step=at), step, everyone
        )
        hashed.update(np.asarray(drawn, dtype=np.int64).tobytes() + b"|")
    digests = _from_all(collective, hashed.hexdigest())
    nodes = _from_all(collective, collective.node or "")
    others = [node for node, one in zip(nodes, digests, strict=True) if one != digests[0]]
    if others:
        raise RunError(
            f"privacy.mechanism: {len(others)} of {collective.world_size} workers draw other "
            f"examples than the first one: {_list(others)}. Give all nodes the same version of it"
        )


@dataclass(frozen=True)
class _MadeUp:
    """Examples of random pixels, the same everywhere."""

    facts: DataFacts
    spec: LabelSpec
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> NDArray[Any]:
        """[n, …]."""
        labels: NDArray[Any] = self.spec.made_up(
            self.count, torch.Generator().manual_seed(0)
        ).numpy()
        return labels

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """See :class:`~dp_ray.data.store.Examples`."""
        side = self.facts.image_size
        shape = (self.count, self.facts.channels, side, side)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return pixels[ids], self.labels[ids]


def _from_all(collective: Collective, text: str) -> list[str]:
    """What each worker says, by its rank."""
    rows = torch.zeros(collective.world_size, _LENGTH, dtype=torch.uint8)
    data = text.encode()[:_LENGTH]
    rows[collective.rank, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    collective.reduce_(rows)
    collective.broadcast_(rows)
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in rows]


def _list(nodes: list[str]) -> str:
    return ", ".join(dict.fromkeys(nodes))
