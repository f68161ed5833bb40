"""The keyed digest of a sum, which the ledger has on record before noise is added to the sum."""

from __future__ import annotations

import hmac

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_NONCE = bytes(12)
"""One is enough: no key has two digests on record."""


def digest_of_sum(
    key: bytes, vector: Tensor, rest: bytes, *, incarnation: int, step: int, version: int
) -> str:
    """Return the digest of a sum and of what else decides its release.

    It shows whether a step that is repeated has the sum on record. In version 1 of a run it is an
    HMAC. Later it is a GMAC of 128 bits under a key of the incarnation and step, which costs a
    tenth: two sums of n bytes that differ have equal digests with probability n · 2⁻¹³² at most,
    for whoever does not know the key. Only the first sum of a key is ever on record, so the
    ledger shows one digest a key, which tells nothing of the sum.

    Args:
        key: 32 bytes.
        vector: [P] float64, contiguous.
        rest: of a length that is the same in all steps of a run.
        incarnation: which invocation of the step.
        step: the logical step.
        version: of the run, one of :data:`dp_ray.keys.VERSIONS`.
    """
    data = vector.cpu().numpy().view(np.uint8).data
    if version == 1:
        whole = hmac.new(key, data, "sha256")
        whole.update(rest)
        return whole.hexdigest()
    own = hmac.digest(key, f"incarnation {incarnation} step {step}".encode(), "sha256")
    mac = Cipher(algorithms.AES(own), modes.GCM(_NONCE)).encryptor()
    mac.authenticate_additional_data(data)
    mac.authenticate_additional_data(rest)
    mac.finalize()
    return mac.tag.hex()
