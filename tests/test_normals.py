"""Normal numbers by torch: those of the first version to rounding, whatever the threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dp_ray import normals
from dp_ray.keys import KeyedStream
from dp_ray.normals import box_muller

COUNT = 60_001


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several spans of several parts, and threads that share them."""
    before = torch.get_num_threads()
    monkeypatch.setattr(normals, "_SPAN", 4096)
    monkeypatch.setattr(normals, "_PART", 1000)
    yield
    torch.set_num_threads(before)


def stream(version: int) -> KeyedStream:
    return KeyedStream(bytes(32), incarnation=0, step=9, version=version)


def test_they_are_those_of_version_1_to_rounding() -> None:
    """So neither resolution nor tails are less: the same words, and the same formula."""
    first, second = stream(1).normal(COUNT), stream(2).normal(COUNT)
    assert second.dtype == np.float64
    assert second.shape == (COUNT,)
    assert float((np.abs(first - second) / np.spacing(np.abs(first))).max()) <= 4


@pytest.mark.usefixtures("small_spans")
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_and_threads_change_no_bit(threads: int) -> None:
    torch.set_num_threads(threads)
    found = stream(2).normal(COUNT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normals, "_SPAN", 2**16)
        patch.setattr(normals, "_PART", 2**13)
        assert np.array_equal(found, stream(2).normal(COUNT))


@pytest.mark.parametrize(
    ("radius", "angle", "expected"),
    [
        (0, 0, (9.49258, 0.0)),  # the farthest number that there is: √(2 ln 2⁶⁵)
        (1, 2**62, (0.0, 9.37621)),  # √(2 ln (2⁶⁴/1.5))
        (2**63, 2**63, (-1.17741, 0.0)),
        (2**64 - 1, 0, (0.0, 0.0)),
    ],
)
def test_each_word_gives_the_number_that_the_formula_says(
    radius: int, angle: int, expected: tuple[float, float]
) -> None:
    """The ends of both words: the radius has 64 bits, the angle a whole turn."""

    def words(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.array([[radius, angle]] * len(ids), dtype=np.uint64)

    assert box_muller(words, 2).tolist() == pytest.approx(expected, abs=1e-4)


def test_words_near_0_are_not_rounded_together() -> None:
    """Tails have the resolution of 64 bits: the farthest numbers are all different."""

    def words(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.stack([ids, np.zeros_like(ids)], axis=1)

    far = box_muller(words, 4000)[::2]
    assert np.all(np.diff(far) < 0)
