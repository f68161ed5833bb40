"""What is told of progress where there is no terminal: a log gets a line now and then."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from helpers.searches import MakeSweep, made_up, made_up_trial
from helpers.support import MakeConfig, key_of, start
from rich.console import Console
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.artifacts.notes import DataNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.times import roughly
from dp_ray.config.yaml_text import write_yaml
from dp_ray.on_ray.job import IN_JOB
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
    shown.on_progress(progress)  # of a long step
    shown.on_end(None)
    spent = f"{plan.epsilon_after(10):.2f} of {plan.epsilon:.2f}"
    line = f"step 10/40, about 300 images/s, ε ≤ {spent}, about 2 min left"
    assert set(log.getvalue().splitlines()) == {line}


def test_a_line_that_stays_the_same_is_logged_again_now_and_then() -> None:
    """Someone who reads the log must see that the process is alive."""

    class Same(live.LiveLines):
        def __init__(self, console: Console) -> None:
            super().__init__(console, interval_s=1.0)
            self.looks = 0

        def lines(self) -> list[str]:
            return [self.log_line()]

        def log_line(self) -> str:
            self.looks += 1
            return "step 1"

    log = io.StringIO()
    with (shown := Same(Console(file=log))):
        while shown.looks < 6:
            time.sleep(0.01)
    assert 3 <= len(log.getvalue().splitlines()) < shown.looks


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
        assert shown.log_line().startswith("searching … about ")


@pytest.mark.parametrize("address", ["10.0.0.1:6379", None])
def test_a_search_tells_once_what_workers_elsewhere_left_out(
    make_sweep: MakeSweep, address: str | None
) -> None:
    """Here the driver has read the data itself, and has said so."""
    sweep = make_sweep(training={"cluster": {"address": address, "num_workers": 1}})
    search = Search.draw(sweep, key_of(1), tell=lambda _: None)
    for name in ("0000", "0001"):
        DataNote(skipped={"pdf": 3}).write(RunDirectory(search.directory.trials / name).private)
    log = io.StringIO()
    shown = SweepProgress(search, 6.0, Console(file=log))
    shown.lines()
    shown.tell_skipped()
    told = "data.root: 3 entries skipped: 3 pdf; dp-ray data names them\n"
    assert log.getvalue() == (told if address else "")


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


OWN_IMAGES = """
import os
import numpy as np

def load(config):
    images = np.random.default_rng(0).integers(256, size=(200, 1, 8, 8), dtype=np.uint8)
    images[0] = int(os.environ["FIRST_IMAGE"])
    labels = np.arange(200) % 10
    return (images, labels), (images[:50], labels[:50])
"""

ACCURACY = r"(?<=accuracy)( +)[01]\.\d{3,4}"
ONE_DIGIT = r"about (?:\d[0,]*|0\.0*\d)(?: images/s| s| min| h)"


def test_the_logs_of_two_jobs_differ_in_what_is_public_or_rounded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole outputs, with other draws and another example; only accuracies are exact."""
    monkeypatch.setenv(IN_JOB, "1")
    monkeypatch.setattr(run_progress, "LOG_INTERVAL_S", 0.05)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "job_images.py").write_text(OWN_IMAGES)
    shape = {"num_examples": 200, "num_classes": 10, "channels": 1, "image_size": 8}
    config = make_config(
        data={"name": "job_images:load", "expected_batch_size": 20, **shape},
        privacy={"steps": 40, "delta": 1e-4, "accountant": "rdp"},
        augment={"views": 1, "rotation": 0.0, "shift": 0.0},
        train={"evaluate_every": 20},
        seed=None,
    )
    (tmp_path / "job.yaml").write_text(write_yaml(config.dump()))
    plan = make_plan(config)
    fixed, moving = [], set[str]()
    for first in ("0", "255"):
        monkeypatch.setenv("FIRST_IMAGE", first)
        done = CliRunner().invoke(cli.app, ["train", str(tmp_path / "job.yaml"), "--json"])
        assert done.exit_code == 0, done.output
        *lines, values = done.output.splitlines()
        said = [re.sub(ONE_DIGIT, "…", re.sub(ACCURACY, " …", line)) for line in lines]
        # How long a phase takes, and which are long enough to be shown, is the machine's; a warning
        # is an exact figure in words.
        passing = [line for line in said if re.match(r"step |warning |[a-z ]+ … …$", line)]
        moving |= {*passing}
        result = json.loads(values)
        assert result.pop("seconds") == roughly(Result.read(RunDirectory.of(config).root).seconds)
        result.pop("warnings", None)
        figures = [result.pop(name) for name in ("metrics", "test_accuracy", "test_loss")]
        assert None not in figures  # they are exact
        fixed.append(([line for line in said if line not in passing], result))
        shutil.rmtree(tmp_path / "runs")
    assert fixed[0] == fixed[1]
    grid = {step: f"{plan.epsilon_after(step):.2f}" for step in range(0, 41, 2)}
    allowed = {
        f"step {step}/40{speed}, ε ≤ {grid[at]} of {plan.epsilon:.2f}{accuracy}{left}"
        for step in grid
        for at in (step, min(step + 2, 40))
        for speed in ("", ", …")
        for accuracy in ("", ", accuracy …")
        for left in ("", ", … left")
    }
    steps = {line for line in moving if line.startswith("step ")}
    assert steps
    assert steps <= allowed


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
