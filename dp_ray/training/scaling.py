"""How long a step takes with W workers: a model to plan with.

    T(W, P) = t_mb · E[max over workers of ceil(n_w / B)]        compute, padding, imbalance
            + reduce(8P bytes) + broadcast(4P bytes) + messages   network
            + r · P                                               release: rank 0 alone

n_w is what worker w draws: Binomial(size of its shard, q). The network is modelled by latency and
bandwidth (α and β of Hockney 1994), counted along the paths that gloo takes. How well it fits, and
what it says: docs/scaling.md.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom

from dp_ray.keys import KEY_BYTES, LATEST, KeyedStream
from dp_ray.training.loop import ASSIGNMENT_NUMBERS
from dp_ray.training.step import STATISTICS
from dp_ray.training.sum_digest import digest_of_sum

_SUM_BYTES, _PARAMETER_BYTES = 8, 4
"""Sums are reduced in float64, parameters broadcast in float32."""

_STATISTICS_BYTES = 8 * len(STATISTICS)
_ASSIGNMENT_BYTES = 8 * ASSIGNMENT_NUMBERS

_MAX_SEGMENT_BYTES = 2**20
"""gloo/reduce.h: the most that its ring passes on at a time."""


@dataclass(frozen=True)
class Work:
    """What one step asks for, however many workers do it.

    Attributes:
        num_examples: N.
        expected_batch_size: B̄.
        microbatch_size: B.
        microbatch_seconds: t_mb, of one worker that has a machine to itself.
        parameters: P.
        release_seconds_per_parameter: r: digest, noise and update on rank 0.
    """

    num_examples: int
    expected_batch_size: int
    microbatch_size: int
    microbatch_seconds: float
    parameters: int
    release_seconds_per_parameter: float


@dataclass(frozen=True)
class Traffic:
    """What one collective operation sends.

    Attributes:
        hops: messages that wait for one another.
        link_bytes: what passes one after another where each worker has a link of its own.
        total_bytes: what all workers send.
        at_once: workers that send side by side.
    """

    hops: int
    link_bytes: float
    total_bytes: float
    at_once: int


@dataclass(frozen=True)
class Network:
    """Where the workers are.

    Attributes:
        latency_s: α, seconds of an empty message.
        seconds_per_byte: β.
        cores: None if each worker has a machine and a full-duplex link; else all of them share
            one machine, whose cores take turns at computing, and by twos at a transfer: one
            sends, one receives.
    """

    latency_s: float
    seconds_per_byte: float
    cores: int | None = None

    def seconds(self, traffic: Traffic) -> float:
        """Time of one collective operation."""
        waited = traffic.link_bytes
        if self.cores is not None and traffic.at_once:
            waited = traffic.total_bytes / min(self.cores / 2, traffic.at_once)
        return traffic.hops * self.latency_s + waited * self.seconds_per_byte


@dataclass(frozen=True)
class StepTime:
    """Expected seconds of a step, by what they are spent on.

    Attributes:
        compute: the examples, if workers shared them evenly.
        padding: filling up each worker's last microbatch.
        imbalance: waiting for the worker that drew most.
        network: reduce, broadcast and small messages.
        release: ledger's digest, noise and update, while the other workers wait.
    """

    compute: float
    padding: float
    imbalance: float
    network: float
    release: float

    @property
    def total(self) -> float:
        """All of it: nothing overlaps."""
        return self.compute + self.padding + self.imbalance + self.network + self.release


def step_time(work: Work, workers: int, network: Network) -> StepTime:
    """The model at W workers.

    Args:
        work: one step.
        workers: W ≥ 1.
        network: constants of the network that joins them.
    """
    mean, largest = expected_microbatches(
        work.num_examples, work.expected_batch_size, work.microbatch_size, workers
    )
    even = work.expected_batch_size / (workers * work.microbatch_size)
    turns = 1.0 if network.cores is None else max(1.0, workers / network.cores)
    waited = max(largest, mean * turns)
    messages = (
        reduce_traffic(workers, _SUM_BYTES * work.parameters),
        reduce_traffic(workers, _STATISTICS_BYTES),
        broadcast_traffic(workers, _PARAMETER_BYTES * work.parameters),
        broadcast_traffic(workers, _ASSIGNMENT_BYTES),
    )
    return StepTime(
        compute=work.microbatch_seconds * even * turns,
        padding=work.microbatch_seconds * (mean - even) * turns,
        imbalance=work.microbatch_seconds * (waited - mean * turns),
        network=sum(network.seconds(message) for message in messages),
        release=work.release_seconds_per_parameter * work.parameters,
    )


def expected_microbatches(
    num_examples: int, expected_batch_size: int, microbatch_size: int, workers: int
) -> tuple[float, float]:
    """E[mean over workers] and E[max over workers] of ceil(n_w / B).

    E[X] = Σ_k P(X > k) for X ≥ 0, and the maximum is at most k if all of the independent draws
    are. Draws farther than 12 standard deviations and 50 examples from the mean are left out:
    their probability is below e⁻⁷⁰ (Bernstein).
    """
    rate = min(expected_batch_size / num_examples, 1.0)
    size, larger = divmod(num_examples, workers)  # so many shards have an example more
    mean = (size + 1) * rate
    reach = 12 * math.sqrt(mean) + 50
    first = max(math.floor((mean - rate - reach) / microbatch_size), 0)
    last = math.ceil(min(size + 1, mean + reach) / microbatch_size)
    drawn = np.arange(first, last, dtype=np.float64) * microbatch_size
    at_most = binom.cdf(drawn, size, rate)
    at_most_in_larger = binom.cdf(drawn, size + 1, rate)
    in_all = at_most ** (workers - larger) * at_most_in_larger**larger
    in_one = ((workers - larger) * at_most + larger * at_most_in_larger) / workers
    return first + float(np.sum(1 - in_one)), first + float(np.sum(1 - in_all))


def reduce_traffic(workers: int, size: int) -> Traffic:
    """``size`` bytes summed into rank 0, as gloo does it (gloo/reduce.cc).

    First a ring: each worker passes segments on, to which the next adds its own, until each holds
    one W-th of the sum. The loop ends two segments before a whole round of all data, whatever the
    number of segments, where W-1 of W parts would be enough. Then all send their part to rank 0.
    """
    if workers == 1:
        return Traffic(0, 0.0, 0.0, 0)
    segment = min(math.ceil(size / (2 * workers)), _MAX_SEGMENT_BYTES)
    segments_per_worker = max(2, math.ceil(math.ceil(size / segment) / workers))
    ring = min(size, (segments_per_worker * workers - 2) * segment)
    gathered = size * (workers - 1) / workers
    return Traffic(workers, ring + gathered, workers * ring + gathered, workers)


def broadcast_traffic(workers: int, size: int) -> Traffic:
    """``size`` bytes from rank 0 to all, as gloo does it (gloo/broadcast.cc).

    A binomial tree of depth d = ⌈log₂ W⌉ without pipelining. A worker starts sending to all of its
    children at once, so they share its link and have the data together: the first level takes d
    times the size, the next d-1, and so on.
    """
    depth = (workers - 1).bit_length()
    return Traffic(depth, size * depth * (depth + 1) / 2, size * (workers - 1), workers // 2)


def release_seconds_per_parameter(parameters: int = 2**22) -> float:
    """r, measured here: digest, normal numbers and noised sum of a vector like the coordinator's.

    The stream is a throw-away one: nothing of this is ever added to data.
    """
    stream = KeyedStream(bytes(KEY_BYTES), incarnation=0, step=0)
    total = torch.zeros(parameters, dtype=torch.float64)
    params = torch.zeros(parameters)
    best = math.inf
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        digest_of_sum(bytes(KEY_BYTES), total, b"", incarnation=0, step=0, version=LATEST)
        noise = torch.from_numpy(stream.normal(parameters))
        params -= (total + 1.0 * noise).float() / 1.0
        best = min(best, time.perf_counter() - started)
    return best / parameters
