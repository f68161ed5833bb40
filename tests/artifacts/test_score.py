"""Figures of the test split: what a search may choose by, and what a statement publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.searches import MakeSweep, begin, draw, made_up, made_up_trial
from helpers.support import QUIET, MakeConfig, folder, key_of, start

from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.result import Outcome
from dp_ray.artifacts.score import assumption, published_score
from dp_ray.config.files import parse_config
from dp_ray.config.search import load_sweep
from dp_ray.errors import ConfigError
from dp_ray.keys import RunKey
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.reporting.make import write_report
from dp_ray.reporting.search_page import PUBLIC, may_be_published
from dp_ray.search.publish import CHOSEN, _best_config, _statement
from dp_ray.search.result import Winner
from dp_ray.search.search import Search
from dp_ray.training.preparation import make_plan

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("declared", ["held_out", None])
@pytest.mark.parametrize("mode", ["private_selection", "compose", "public"])
def test_a_search_by_scores_of_held_out_data_is_refused(
    make_sweep: MakeSweep, mode: str, declared: str | None
) -> None:
    """One test image could decide which trial is published; no name is taken, no data read."""
    sweep = make_sweep(privacy_mode=mode)
    sweep.training["data"].pop("evaluation")
    if declared is not None:
        sweep.training["data"]["evaluation"] = declared
    with pytest.raises(ConfigError, match=r"data\.evaluation.*set data\.evaluation to public") as e:
        run_sweep(sweep, resume=False, console=QUIET)
    assert e.value.field == "data.evaluation"
    assert not Search.draw(make_sweep(), key_of(1)).directory.root.names()


@pytest.mark.parametrize("settings", [{"scheduler": "asha"}, {"searcher": "optuna"}])
def test_what_stops_or_proposes_trials_sees_no_held_out_score(
    make_sweep: MakeSweep, settings: dict[str, Any]
) -> None:
    sweep = make_sweep({"data": {"evaluation": "held_out"}}, privacy_mode="compose", **settings)
    with pytest.raises(ConfigError, match="one test image can decide"):
        draw(sweep)


def test_a_search_that_an_earlier_version_started_is_not_resumed(make_sweep: MakeSweep) -> None:
    search = begin(make_sweep())
    file = Path(search.directory.private.uri) / "sweep.yaml"
    text = file.read_text()
    assert "evaluation: public" in text
    file.write_text(text.replace("evaluation: public", "evaluation: held_out"))
    held_out = make_sweep({"data": {"evaluation": "held_out"}})
    with pytest.raises(ConfigError, match="one test image can decide"):
        run_sweep(held_out, resume=True, console=QUIET)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=str)
def test_the_sweeps_that_are_shipped_declare_their_test_split(file: Path) -> None:
    assert load_sweep(file).training["data"]["evaluation"] == "public"


@pytest.mark.parametrize("mode", ["private_selection", "compose", "public"])
def test_statement_and_best_yaml_say_on_what_the_choice_was_made(
    make_sweep: MakeSweep, mode: str
) -> None:
    search = draw(make_sweep(privacy_mode=mode))
    point = {"augment.views": 1, "privacy.steps": 4, "privacy.max_grad_norm": 1.0}
    plan = make_plan(search.example())
    outcome = Outcome(True, plan.steps, plan.releases, plan.epsilon, None, 1.0)
    alone = privacy_statement(search.example(), plan, outcome, replay=False)
    trial = made_up_trial(parameters=point)
    result = made_up(privacy_mode=mode, best=Winner.of(trial), trials=[trial])
    said = CHOSEN.format(metric="test_accuracy")
    assert "public" in said
    assert said in _statement(search, alone, result).assumptions
    text = _best_config(search, result, Winner.of(trial))
    assert "chosen by test_accuracy on a test split that its user declares public" in text
    assert "evaluation: public" in text


def test_page_and_documentation_of_a_search_agree() -> None:
    """privacy.md said that the page may be published, and the page that it may not."""
    rows = (ROOT / "docs/privacy.md").read_text().splitlines()
    [row] = [line for line in rows if line.startswith("| a search's `report.html`")]
    assert PUBLIC in row
    assert [may_be_published(m) for m in ("compose", "public", "private_selection")] == [
        True,
        True,
        False,
    ]


NOISED = {"evaluation_noise": 3.0}
RIGHT = Evaluation(0.75, 0.5, 400)


def score(config: Any, evaluation: Evaluation = RIGHT, **given: Any) -> dict[str, Any]:
    metrics: dict[str, float | None] = dict(evaluation.named())
    options = {"key": RunKey(bytes(32)), "model": b"model", "test_digest": "t", **given}
    return published_score(config, make_plan(config), evaluation, metrics, **options)


def test_without_noise_figures_are_exact_and_the_statement_says_what_they_tell(
    make_config: MakeConfig,
) -> None:
    config = make_config(privacy={"accountant": "rdp"})
    assert score(config) == {
        **RIGHT.named(),
        "test_accuracy_noise": None,
        "epsilon_of_test_accuracy": None,
    }
    assert "learns from them whether the model is right" in assumption(config)
    public = make_config(data={"evaluation": "public"})
    assert "is public" in assumption(public)


def test_a_noised_accuracy_has_the_noise_that_is_stated(make_config: MakeConfig) -> None:
    config = make_config(data=NOISED, privacy={"accountant": "rdp"})
    found = [score(config, key=RunKey(bytes([i]) * 32)) for i in range(200)]
    errors = [(f["test_accuracy"] - 0.75) * 400 for f in found]
    mean = sum(errors) / len(errors)
    std = (sum((e - mean) ** 2 for e in errors) / len(errors)) ** 0.5
    assert abs(mean) < 4 * 3 / 200**0.5
    assert 2.4 < std < 3.6  # four deviations of a standard deviation of 200 numbers
    assert {f["test_loss"] for f in found} == {None}
    cost = epsilon_of("rdp", ((3.0, 1.0, 1),), 1e-4)
    assert {f["epsilon_of_test_accuracy"] for f in found} == {cost}
    assert "test_accuracy has Gaussian noise" in assumption(config)


def test_noise_of_an_accuracy_is_drawn_once_and_never_meets_two_counts(
    make_config: MakeConfig,
) -> None:
    """The same release repeated is free; equal noise on two counts would cancel out."""
    config = make_config(data=NOISED, privacy={"accountant": "rdp"})
    first = score(config)["test_accuracy"]
    assert score(config)["test_accuracy"] == first
    others = [
        (0.75, score(config, model=b"another")),
        (0.75, score(config, key=RunKey(b"\1" * 32))),
        (0.75, score(config, test_digest="another")),
        (0.7525, score(config, Evaluation(0.7525, 0.5, 400))),
    ]
    for exact, other in others:
        assert other["test_accuracy"] - exact != pytest.approx(first - 0.75, abs=3e-6)
    twice = {**NOISED, "evaluation_noise": 2 * NOISED["evaluation_noise"]}
    other = score(make_config(data=twice, privacy={"accountant": "rdp"}))["test_accuracy"]
    assert (other - 0.75) / 2 != pytest.approx(first - 0.75, abs=3e-6)


def test_nothing_that_is_published_has_the_exact_accuracy(make_config: MakeConfig) -> None:
    config = make_config(
        data={"evaluation_noise": 20.0}, train={"evaluate_every": 1}, privacy={"accountant": "rdp"}
    )
    result = start(config)
    run = folder(config)
    text = (run / "release/privacy.json").read_text()
    statement = json.loads(text)
    assert statement["test_accuracy"] != result["test_accuracy"]
    assert str(result["test_accuracy"]) not in text
    assert statement["test_loss"] is None
    assert statement["epsilon_of_test_accuracy"] > 0
    page = Path(write_report(str(run), public=True, form="html", output=None)["report"]).read_text()
    assert "Accuracy over the steps" not in page
    assert f"{result['test_accuracy']:.2%}" not in page
    assert "hides each of them" in page


def test_noise_on_public_figures_is_refused(make_config: MakeConfig) -> None:
    values = make_config(data=NOISED).dump()
    values["data"]["evaluation"] = "public"
    with pytest.raises(ConfigError, match="evaluation_noise is for figures of held_out"):
        parse_config(values)
