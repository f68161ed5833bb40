"""Random numbers that must come out alike on every machine, with those of the one that packed them.

python reference.py FILE.npz    # writes what this machine draws
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp_ray.keys import KeyedStream, RunKey
from dp_ray.privacy.sampling import PoissonSampler, Shard


def fixed_key() -> RunKey:
    """A key that protects nothing: the numbers of two machines are to be compared."""
    return RunKey(hashlib.sha256(b"the GPU bundle").digest())


def drawn() -> dict[str, NDArray[np.generic]]:
    """Cipher words, a Poisson draw and normal numbers of a fixed key."""
    key = fixed_key()

    def stream(purpose: str) -> KeyedStream:
        return KeyedStream(key.derive(purpose), incarnation=1, step=7)

    everyone = Shard(0, 50_000)
    return {
        "words": stream("views").words(np.arange(2_000, dtype=np.uint64), 11),
        "ids": PoissonSampler(50_000, 4096).draw(lambda _: stream("draw"), 7, everyone),
        "normals": stream("noise").normal(100_000),
    }


if __name__ == "__main__":
    np.savez_compressed(Path(sys.argv[1]), **drawn())
