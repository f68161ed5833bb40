"""A few of the faults of ``make faults`` on Ray: each starts a Ray of its own, and loses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.harness import STEPS, at_a_point, at_random, undisturbed
from faults.judge import keys_used_twice

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model that the run of seed 1 ends with when nothing happens to its two workers."""
    return undisturbed(tmp_path_factory.mktemp("faults") / "peace", seed=1, workers=2)


def test_a_lost_node_costs_nothing(peace: bytes, tmp_path: Path) -> None:
    """Driver, Ray and workers are gone at once, between a charge and its noise."""
    ending = at_a_point(
        tmp_path / "hurt", "charge - noise", "node", seed=1, workers=2, reference=peace, step=17
    )
    assert ending.strikes == 1
    assert ending.recovered
    assert ending.account.releases == ending.account.charges == STEPS
    assert keys_used_twice([ending.log]) == []


def test_kills_at_random_moments_cost_nothing(peace: bytes, tmp_path: Path) -> None:
    endings = at_random(tmp_path / "wild", seed=1, workers=2, reference=peace, kills=2)
    assert endings
    assert all(ending.recovered for ending in endings)
    assert keys_used_twice({ending.log for ending in endings}) == []
