"""The digest of a sum: of all of it; and that of version 1 as it was."""

from __future__ import annotations

import hmac

import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from dp_ray.keys import VERSIONS
from dp_ray.training.sum_digest import digest_of_sum

KEY = bytes(range(32))


def vector(size: int = 200) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def digest(
    total: Tensor,
    rest: bytes = b"rest",
    key: bytes = KEY,
    *,
    version: int,
    incarnation: int = 0,
    step: int = 7,
) -> str:
    return digest_of_sum(key, total, rest, incarnation=incarnation, step=step, version=version)


def test_version_1_is_one_hmac_of_all_bytes() -> None:
    data = vector().numpy().tobytes() + b"rest"
    expected = hmac.digest(KEY, data, "sha256").hex()
    assert digest(vector(), version=1) == digest(vector(), version=1, step=8) == expected


def test_version_2_is_a_gmac_of_all_bytes() -> None:
    """That is, the tag of an empty message with the bytes as associated data."""
    data = vector().numpy().tobytes() + b"rest"
    own = hmac.digest(KEY, b"incarnation 3 step 7", "sha256")
    expected = AESGCM(own).encrypt(bytes(12), b"", data).hex()
    assert digest(vector(), version=2, incarnation=3) == expected


def test_version_2_has_a_key_for_each_step_and_incarnation() -> None:
    """A key of two digests would not hide what they are of."""
    addresses = [(0, 0), (0, 1), (1, 0), (1, 1), (11, 1), (1, 11)]
    found = {digest(vector(), version=2, incarnation=i, step=step) for i, step in addresses}
    assert len(found) == len(addresses)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_number_the_rest_and_the_key_count(version: int) -> None:
    found = {digest(vector(), version=version)}
    for index in (0, 99, 100, 199):
        changed = vector()
        changed[index] = torch.nextafter(changed[index], torch.tensor(9.0).double())
        found.add(digest(changed, version=version))
    swapped = torch.cat([vector()[100:], vector()[:100]])
    found.add(digest(swapped, version=version))
    found.add(digest(vector()[:192], version=version))
    found.add(digest(vector(), b"Rest", version=version))
    found.add(digest(vector(), key=bytes(32), version=version))
    assert len(found) == 9
    assert digest(vector(), version=version) in found
