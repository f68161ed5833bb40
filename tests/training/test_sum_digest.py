"""The digest of a sum: of all of it, whatever the threads; and that of version 1 as it was."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dp_ray.keys import VERSIONS
from dp_ray.training import sum_digest
from dp_ray.training.sum_digest import digest_of_sum

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(sum_digest, "_CHUNK", 512)
    yield
    torch.set_num_threads(before)


def vector(size: int = 200) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_version_1_is_one_hmac_of_all_bytes() -> None:
    data = vector().numpy().tobytes() + b"rest"
    expected = hmac.digest(KEY, data, "sha256").hex()
    assert digest_of_sum(KEY, vector(), b"rest", version=1) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_every_number_the_rest_and_the_key_count(version: int) -> None:
    found = {digest_of_sum(KEY, vector(), b"rest", version=version)}
    for index in (0, 63, 64, 127, 128, 199):  # the ends of chunks
        changed = vector()
        changed[index] = torch.nextafter(changed[index], torch.tensor(9.0).double())
        found.add(digest_of_sum(KEY, changed, b"rest", version=version))
    swapped = torch.cat([vector()[64:128], vector()[:64], vector()[128:]])
    found.add(digest_of_sum(KEY, swapped, b"rest", version=version))
    found.add(digest_of_sum(KEY, vector()[:192], b"rest", version=version))
    found.add(digest_of_sum(KEY, vector(), b"Rest", version=version))
    found.add(digest_of_sum(bytes(32), vector(), b"rest", version=version))
    assert len(found) == 11
    assert digest_of_sum(KEY, vector(), b"rest", version=version) in found


def test_the_number_of_threads_does_not_matter() -> None:
    found = set()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.add(digest_of_sum(KEY, vector(1001), b"", version=2))
    assert len(found) == 1
