"""The keyed digest of a sum, which the ledger has on record before noise is added to the sum."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import torch
from torch import Tensor

from dp_ray.parallel import in_threads

_CHUNK = 2**20
"""Bytes of a leaf of the tree."""


def digest_of_sum(key: bytes, vector: Tensor, rest: bytes, *, version: int) -> str:
    """Return the digest of a sum and of what else decides its release.

    In version 1 of a run it is one HMAC of all bytes. Later it is an HMAC of the SHA-256 digests of
    chunks of 1 MiB, so that several threads share the work; their number does not matter.

    Args:
        key: 32 bytes.
        vector: [P] float64, contiguous.
        rest: of a length that is the same in all steps of a run.
        version: of the run, one of :data:`dp_ray.keys.VERSIONS`.
    """
    data = vector.cpu().numpy().view(np.uint8).data
    if version == 1:
        whole = hmac.new(key, data, "sha256")
        whole.update(rest)
        return whole.hexdigest()

    def leaf(start: int) -> bytes:
        return hashlib.sha256(data[start : start + _CHUNK]).digest()

    leaves = in_threads(leaf, range(0, len(data), _CHUNK), torch.get_num_threads())
    head = f"sum of {len(data)} bytes, chunks of {_CHUNK}:".encode()
    return hmac.digest(key, b"".join((head, *leaves, rest)), "sha256").hex()
