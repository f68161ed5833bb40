"""A few of the faults of ``make faults``, without Ray; and that their judge would see a mistake."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from faults.harness import STEPS, Run, at_a_point, undisturbed, write_config
from faults.inject import Fault
from faults.judge import account, keys_used_twice, uses


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model that the run of seed 1 ends with when nothing happens."""
    return undisturbed(tmp_path_factory.mktemp("faults") / "peace", seed=1, workers=0)


@pytest.mark.parametrize(
    "point", ["charge - noise", pytest.param("checkpoint - record", marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    point: str, peace: bytes, tmp_path: Path
) -> None:
    ending = at_a_point(
        tmp_path / "hurt", point, "driver", seed=1, workers=0, reference=peace, step=10
    )
    assert ending.strikes == 1
    assert ending.identical
    assert ending.steps_lost == 0
    assert ending.account.releases == ending.account.charges == STEPS
    assert keys_used_twice([ending.log]) == []


@pytest.mark.slow
def test_a_killed_block_is_overcounted(tmp_path: Path) -> None:
    """Steps that were paid for in advance, and of which nobody knows whether they were noised."""
    fault = Fault("", "charge - noise", (17,), "driver")
    run = Run(tmp_path / "block", seed=1, workers=0, fault=fault, charge_every=8)
    run.finish()
    spent = account(run.path, run.log)
    # 16 … 23 were paid for at once. 16 and 17 have their digests; 18 … 23 are charged again.
    assert spent.charges == STEPS
    assert spent.releases == STEPS - 6
    assert keys_used_twice([run.log]) == []


@pytest.mark.slow
def test_a_killed_run_whose_c_and_noise_move_is_charged_for_all_that_it_tells(
    tmp_path: Path,
) -> None:
    """Its counts have noise of their own, which no two counts may share, and σ falls."""
    privacy = {
        "adaptive_clipping": {"quantile": 0.6, "learning_rate": 0.3},
        "noise_schedule": {"final": 0.8, "parts": 3},
    }
    fault = Fault("", "charge - noise", (10,), "driver")
    run = Run(tmp_path / "run", seed=1, workers=0, fault=fault, privacy=privacy)
    run.finish()
    spent = account(run.path, run.log)
    assert spent.releases == spent.charges == STEPS
    assert spent.epsilon_true == pytest.approx(spent.epsilon_charged, rel=1e-6)
    found = uses([run.log])
    assert Counter(use.kind for use in found) == {"sum": STEPS, "count": STEPS}
    assert keys_used_twice([run.log]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "point"),
    [
        ("faults.driver", "noise - optimizer step"),
        ("faults.driver", "charge - noise"),
        ("faults.careless", "charge - noise"),
    ],
)
def test_the_judge_sees_noise_that_meets_two_sums(driver: str, point: str, tmp_path: Path) -> None:
    """Resumed with another engine, sums round otherwise: each must get noise of its own."""
    fault = Fault("", point, (12,), "driver")
    run = Run(tmp_path / "run", seed=1, workers=0, fault=fault, driver=driver)
    assert run.begin().wait() == -9
    write_config(run.folder, seed=1, workers=0, engine="per_layer")
    assert run.begin().wait() == 0, (run.folder / "errors").read_text()
    twice = keys_used_twice([run.log])
    spent = account(run.path, run.log)
    careless = driver == "faults.careless"
    assert bool(twice) == careless
    assert (spent.epsilon_charged < spent.epsilon_true) == careless
