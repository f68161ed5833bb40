"""What fits: workers on nodes, trials at a time, threads of a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dp_ray.config.cluster import FIELDS_OF_RESOURCES, ClusterConfig
from dp_ray.config.search import TuneConfig
from dp_ray.errors import ConfigError
from dp_ray.performance.threads import usable_cores


def is_nested(cluster: ClusterConfig) -> bool:
    """Whether trials need workers of their own; a single one is the trial's own process."""
    return cluster.max_workers > 1


def resources_here(cluster: ClusterConfig) -> dict[str, float]:
    """What a Ray of our own has on this machine, by Ray's names: workers may take turns."""
    cpus = max(usable_cores(), cluster.max_workers * cluster.cpus_per_worker)
    return {"CPU": float(cpus), "GPU": float(torch.cuda.device_count())}


def trials_at_once(tune: TuneConfig, cluster: ClusterConfig, resources: Mapping[str, float]) -> int:
    """How many trials run at a time; the others queue.

    Args:
        tune: may ask for fewer.
        cluster: what a worker needs, and how many a trial has.
        resources: what there is, by Ray's names.

    Raises:
        ConfigError: not even one fits, on a machine that cannot grow.
    """
    workers, needed = max(cluster.max_workers, 1), cluster.worker_resources
    whole = {name: workers * amount for name, amount in needed.items()}
    fits = _how_often(whole, resources)
    if fits < 1 and cluster.address is None:
        there = {name: resources.get(name, 0.0) for name in needed}
        raise ConfigError(
            "cluster.num_workers",
            cluster.num_workers,
            f"a trial needs {workers} × ({_in_words(needed)}), and there is {_in_words(there)}",
            "Lower it, or give cluster.address",
        )
    return max(min(fits, tune.max_concurrent_trials or fits), 1)


def missing_room(
    cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]
) -> ConfigError | None:
    """What to tell of a cluster that can never hold the fewest workers; None of one that can.

    Args:
        cluster: the workers.
        nodes: what each node has in all, by Ray's names.
    """
    needed, wanted = cluster.worker_resources, max(cluster.fewest_workers, 1)
    on_node = [_how_often(needed, node) for node in nodes]
    fit = {
        "STRICT_PACK": max(on_node, default=0),
        "STRICT_SPREAD": sum(1 for number in on_node if number),
    }.get(cluster.placement_strategy, sum(on_node))
    if fit >= wanted:
        return None
    field = _field_of_what_no_node_has(needed, nodes)
    return ConfigError(
        f"cluster.{field}",
        getattr(cluster, field),
        f"a worker needs {_in_words(needed)}, and there is room for {fit} of {wanted} "
        f"({cluster.placement_strategy}) on nodes that have "
        + (" | ".join(_in_words(node) for node in nodes) or "nothing"),
        "Ask for less, or add nodes to the cluster",
    )


def _field_of_what_no_node_has(
    needed: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> str:
    for name, amount in needed.items():
        if all(node.get(name, 0.0) < amount for node in nodes):
            if name.startswith("accelerator_type:"):
                return "accelerator_type"
            return FIELDS_OF_RESOURCES.get(name, "resources_per_worker")
    return "num_workers"


def _how_often(needed: Mapping[str, float], there: Mapping[str, float]) -> int:
    """How many times all of it is there; 0.1 ten times in 1, rounding or not."""
    return min(int(there.get(name, 0.0) / amount + 1e-6) for name, amount in needed.items())


def _in_words(resources: Mapping[str, float]) -> str:
    """``4 CPU, 1 GPU, A100``, by Ray's names; what Ray counts for itself is left out."""
    told = []
    for name, amount in resources.items():
        kind, _, accelerator = name.partition(":")
        if kind == "accelerator_type":
            told += [accelerator] if amount else []
        elif kind not in ("node", "object_store_memory"):
            told.append(f"{amount:g} {name}")
    return ", ".join(told) or "nothing"


def threads_of_worker(cluster: ClusterConfig, at_once: int) -> int:
    """A worker's share of the machine, if it is ours alone.

    Args:
        cluster: how many workers a trial has.
        at_once: how many trials run at a time.
    """
    if cluster.address is not None:
        return cluster.cpus_per_worker
    return max(cluster.cpus_per_worker, usable_cores() // (at_once * max(cluster.max_workers, 1)))
