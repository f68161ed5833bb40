"""What the workers of a run must have in common before its first step."""

from __future__ import annotations

import torch
from torch import nn

from dp_ray.config import DataConfig
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import DataError, DpRayError
from dp_ray.training.collective import Collective
from dp_ray.training.layout import ParameterLayout

_LENGTH = 2000
"""Bytes of what a worker tells the others; a longer text is cut off."""


def open_same_dataset(config: DataConfig, collective: Collective) -> Dataset:
    """Opens the data on every worker; all take part, and all fail if one of them does.

    Examples are shared out by their ids, so that all must hold the same ones under the same ids, or
    shards would overlap.

    Args:
        config: the same on all workers, read in the environment of each one's node.
        collective: the other workers.

    Raises:
        ConfigError: the data cannot be used, and all workers are on this machine.
        DataError: some nodes lack the data, or have other data; the message names them.
    """
    dataset, problem = None, None
    try:
        dataset = open_dataset(config)
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


def share_untrained(collective: Collective, model: nn.Module, layout: ParameterLayout) -> None:
    """Frozen parameters and buffers as rank 0 has them, whatever initialised them elsewhere."""
    for name, tensor in model.state_dict().items():
        if name not in layout.shapes:
            collective.broadcast_(tensor)


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
