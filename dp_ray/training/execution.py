"""How a run is executed: everything that decides whether a sum repeats bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from dp_ray.keys import KEY_BYTES, KeyedStream
from dp_ray.ledger.execution import Execution
from dp_ray.performance.machine import describe_machine
from dp_ray.training.collective import Collective

NORMALS = "normals"
"""Of a machine's description: a digest of some normal numbers as rank 0 computes them."""

_COUNT = 2**12
"""Of these numbers."""


def with_normals(execution: Execution, version: int) -> Execution:
    """Return the execution with a digest that shows how this machine rounds normal numbers.

    Their words are the same everywhere. Logarithm, sine and cosine may differ in the last bit, by
    torch's version and the processor, so that noise would not be the same noise elsewhere.

    Args:
        execution: of a session, as rank 0 describes it.
        version: of the run; records of version 1 have no such digest.
    """
    if version == 1:
        return execution
    stream = KeyedStream(bytes(KEY_BYTES), incarnation=0, step=0, version=version)
    digest = hashlib.sha256(stream.normal(_COUNT).tobytes()).hexdigest()[:16]
    return replace(execution, machine={**execution.machine, NORMALS: digest})


def describe_execution(
    collective: Collective,
    *,
    threads: int,
    device: torch.device,
    engine: str,
    microbatch_size: int,
) -> Execution:
    """The execution fingerprint; right on rank 0 only, and all workers take part.

    Args:
        collective: the workers; their number and each one's machine count.
        threads: torch threads of this worker.
        device: where this worker computes.
        engine: its name.
        microbatch_size: B.
    """
    machine = describe_machine(device)
    own = {"threads": threads, **machine}
    return Execution(
        workers=collective.world_size,
        threads=threads,
        engine=engine,
        microbatch_size=microbatch_size,
        machine={**machine, "all_workers": _digest_of_all(collective, own)},
    )


def _digest_of_all(collective: Collective, own: dict[str, object]) -> str:
    """One string for what all workers are, in the order of their ranks."""
    word = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).digest()[:7]
    words = torch.zeros(collective.world_size, dtype=torch.int64)
    words[collective.rank] = int.from_bytes(word, "little")
    collective.reduce_(words)
    return hashlib.sha256(words.numpy().tobytes()).hexdigest()[:16]
