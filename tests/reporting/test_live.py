"""What is told of progress where there is no terminal: a log gets a line now and then."""

from __future__ import annotations

import io
import time

import pytest
from helpers.searches import MakeSweep, made_up, made_up_trial
from helpers.support import MakeConfig, key_of, start
from rich.console import Console

from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.times import roughly
from dp_ray.reporting import live, run_progress
from dp_ray.reporting.run_progress import describe_progress
from dp_ray.reporting.search_progress import SweepProgress
from dp_ray.reporting.summary import describe_result
from dp_ray.search.search import Search
from dp_ray.training.preparation import make_plan


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOG_INTERVAL_S", 0.01)
    monkeypatch.setattr(run_progress, "LOG_INTERVAL_S", 0.0)


def first_line(shown: live.LiveLines, log: io.StringIO) -> str:
    with shown:
        while "\n" not in log.getvalue():
            time.sleep(0.01)
    return log.getvalue().splitlines()[0]


def test_a_run_tells_step_epsilon_and_time_left(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 40, "accountant": "rdp"})
    plan = make_plan(config)
    progress = Progress(
        step=11,
        steps=40,
        charges=10,
        images_per_second=261.7,
        seconds_left=97.3,
        seconds=30.0,
        repaired=False,
    )
    log = io.StringIO()
    shown = run_progress.TerminalProgress(Console(file=log, width=200))
    shown.on_start("runs/a", plan)
    shown.on_progress(progress)
    shown.on_progress(progress)  # which is no news
    shown.on_end(None)
    spent = f"{plan.epsilon_after(10):.2f} of {plan.epsilon:.2f}"
    line = f"step 10/40, about 300 images/s, ε ≤ {spent}, about 2 min left\n"
    assert log.getvalue() == line


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


@pytest.mark.parametrize(
    ("exact", "rough"),
    [
        (0.0, 0),
        (0.44, 0.4),
        (59, 60),
        (61, 60),
        (97, 120),
        (3500, 3600),
        (5500, 7200),
        (90000, 72000),
    ],
)
def test_times_are_rounded_to_one_digit_of_their_unit(exact: float, rough: float) -> None:
    assert roughly(exact) == pytest.approx(rough)


def test_a_log_does_not_tell_draws_apart(make_config: MakeConfig) -> None:
    """Steps that took a percent more or less, as the draw decides, make the same line."""
    plan = make_plan(make_config(privacy={"steps": 400, "accountant": "rdp"}))
    lines, shown = set(), set()
    for step in range(100, 120):
        for factor in (0.98, 1.0, 1.01, 1.02):
            progress = Progress(
                step=step,
                steps=400,
                charges=step,
                repaired=False,
                images_per_second=700.0 / factor,
                seconds_left=700.0 * factor,
                seconds=float(step),
            )
            lines.add(describe_progress(progress, plan, exact=False))
            shown.add(describe_progress(progress, plan))
    assert len(lines) <= 2  # ε is that of the next twentieth
    assert len(shown) > 50


def test_the_seconds_of_a_run_are_rounded_where_others_may_read_them(
    make_config: MakeConfig,
) -> None:
    config = make_config(privacy={"steps": 1})
    result = start(config)
    progress = Progress.read(RunDirectory.of(config).private)
    assert result["seconds"] == roughly(result["seconds"])
    assert progress.seconds != roughly(progress.seconds)
    assert "in about" in describe_result(Result.model_validate(result))


def test_the_times_of_a_search_are_rounded_where_others_may_read_them() -> None:
    exact = made_up(seconds=97.3, trials=[made_up_trial(seconds=12.34)])
    for rough in (exact.with_rough_times(), exact.summary(only_best_may_be_seen=False)):
        assert rough.seconds == 120
        assert [trial.seconds for trial in rough.trials or []] == [10.0]
    assert exact.seconds == 97.3
