"""What is told of progress where there is no terminal: a log gets a line now and then."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console
from searches import MakeSweep
from support import MakeConfig, key_of

from dp_ray.cluster import live
from dp_ray.cluster.progress import ProgressLine
from dp_ray.cluster.sweep_progress import SweepProgress
from dp_ray.training.plan import make_plan
from dp_ray.training.run_directory import PROGRESS, RunDirectory
from dp_ray.tuning.search import Search


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LOG_INTERVAL_S", 0.01)


def first_line(shown: live.LiveLines, log: io.StringIO) -> str:
    with shown:
        while "\n" not in log.getvalue():
            time.sleep(0.01)
    return log.getvalue().splitlines()[0]


def test_a_run_tells_step_epsilon_and_time_left(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 40, "accountant": "rdp"})
    run, plan = RunDirectory.of(config), make_plan(config)
    progress = {
        "step": 10,
        "charges": 10,
        "images_per_second": 250.0,
        "test_accuracy": None,
        "seconds_left": 90.0,
        "repaired": False,
    }
    run.private.write(PROGRESS, json.dumps(progress).encode())
    log = io.StringIO()
    line = first_line(ProgressLine(run, plan, Console(file=log)), log)
    spent = f"{plan.epsilon_after(10):.2f} of {plan.epsilon:.2f}"
    assert line == f"step 10/40, ε ≤ {spent}, 1 min 30 s left"


@pytest.mark.parametrize("mode", ["compose", "private_selection"])
def test_a_search_tells_no_number_of_trials_that_is_secret(
    make_sweep: MakeSweep, mode: str
) -> None:
    search = Search.draw(make_sweep(privacy_mode=mode), key_of(1), tell=lambda _: None)
    log = io.StringIO()
    shown = SweepProgress(search, 6.0, Console(file=log))
    if mode == "compose":
        assert first_line(shown, log).startswith("starting Ray")
    else:
        assert shown.log_line() is None
