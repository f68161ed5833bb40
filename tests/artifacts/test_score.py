"""Figures of the test split: what a search may choose by, and what a statement publishes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.searches import MakeSweep, begin, draw, made_up, made_up_trial
from helpers.support import MakeConfig, folder, key_of, start

from dp_ray.api.tune import run_sweep
from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.result import Outcome
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.score import assumption, published_before, published_score
from dp_ray.config.files import parse_config
from dp_ray.config.search import load_sweep
from dp_ray.errors import ConfigError, RunError
from dp_ray.json_text import finite
from dp_ray.keys import RunKey
from dp_ray.ledger.ledger import Ledger
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.history import History
from dp_ray.reporting.make import write_report
from dp_ray.reporting.search_page import PUBLIC, may_be_published
from dp_ray.search.publish import CHOSEN, _best_config, _statement
from dp_ray.search.result import Winner
from dp_ray.search.search import Search
from dp_ray.storage import LocalFolder
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
        run_sweep(sweep)
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
        run_sweep(held_out, resume=True)


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
    outcome = Outcome(True, plan.steps, plan.steps, plan.releases, plan.epsilon, None, 1.0)
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
RIGHT = Evaluation({"test_accuracy": 0.75, "test_loss": 0.5}, 400)


def score(config: Any, evaluation: Evaluation = RIGHT, **given: Any) -> dict[str, Any]:
    metrics: dict[str, float | None] = dict(evaluation.metrics)
    options = {
        "key": RunKey(bytes(32)),
        "model": b"model",
        "test_digest": "t",
        "charge": lambda _name, noise: ((noise, 1.0, 1),),
        **given,
    }
    return published_score(config, make_plan(config), evaluation, metrics, **options)


def test_without_noise_figures_are_exact_and_the_statement_says_what_they_tell(
    make_config: MakeConfig,
) -> None:
    config = make_config(privacy={"accountant": "rdp"})
    assert score(config) == {
        **RIGHT.metrics,
        "test_accuracy_noise": None,
        "test_accuracies_published": None,
        "epsilon_of_test_accuracy": None,
    }
    assert "learns from them how good the model is on that one" in assumption(config)
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
        (
            0.7525,
            score(config, replace(RIGHT, metrics={"test_accuracy": 0.7525, "test_loss": 0.5})),
        ),
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


def test_accuracies_that_a_run_published_before_are_counted(make_config: MakeConfig) -> None:
    """A finished run that is given more steps publishes another one on the same images."""

    def ask(noise: float | None, steps: int) -> dict[str, Any]:
        data = {"evaluation_noise": noise}
        config = make_config(data=data, privacy={"accountant": "rdp", "steps": steps})
        start(config, resume=steps > 1)
        return dict(json.loads((folder(config) / "release/privacy.json").read_text()))

    first, second, third = (ask(20.0, 1), ask(20.0, 2), ask(10.0, 3))
    for found, noises in ((first, [20.0]), (second, [20.0] * 2), (third, [10.0, 20.0, 20.0])):
        assert found["test_accuracies_published"] == len(noises)
        history = tuple((noise, 1.0, 1) for noise in noises)
        expected = epsilon_of("rdp", history, 1e-4)
        assert found["epsilon_of_test_accuracy"] == pytest.approx(expected, rel=1e-9)
    assert ask(None, 4)["epsilon_of_test_accuracy"] is None
    after_an_exact_one = ask(20.0, 5)
    assert after_an_exact_one["test_accuracies_published"] == 5
    assert after_an_exact_one["epsilon_of_test_accuracy"] is None


@pytest.mark.parametrize("first", ["public", "earlier version"])
def test_noise_hides_nothing_beside_an_exact_accuracy(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Published under another declaration, or by a version that did not charge for it."""

    def publish(steps: int, **data: Any) -> dict[str, Any]:
        config = make_config(data=data, privacy={"accountant": "rdp", "steps": steps})
        start(config, resume=steps > 1)
        return dict(json.loads((folder(config) / "release/privacy.json").read_text()))

    if first == "public":  # the ledger has a score, so the release folder is not consulted
        publish(1, **NOISED)
        publish(2, evaluation="public")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "charge_score", lambda *_: ((0.0, 1.0, 1),))
            publish(1)
    statement = publish(3, **NOISED)
    assert statement["test_accuracy_noise"] == 3.0
    assert statement["test_accuracies_published"] == (3 if first == "public" else 2)
    assert statement["epsilon_of_test_accuracy"] is None


@pytest.mark.parametrize("releases", [1, 2])
def test_an_accuracy_that_an_earlier_version_replaced_counts_as_exact(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, releases: int
) -> None:
    """Its noise stands nowhere; that of the one in the release folder does."""

    def publish(steps: int) -> dict[str, Any]:
        config = make_config(data=NOISED, privacy={"accountant": "rdp", "steps": steps})
        start(config, resume=steps > 1)
        return dict(json.loads((folder(config) / "release/privacy.json").read_text()))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "charge_score", lambda *_: ((3.0, 1.0, 1),))
        patch.setattr(Ledger, "charge_earlier_scores", lambda *_: None)
        for steps in range(1, releases + 1):
            publish(steps)
    statement = publish(3)
    assert statement["test_accuracies_published"] == releases + 1
    both = pytest.approx(epsilon_of("rdp", ((3.0, 1.0, 2),), 1e-4))
    assert statement["epsilon_of_test_accuracy"] == (both if releases == 1 else None)


def test_what_a_release_folder_published_before(make_config: MakeConfig, tmp_path: Path) -> None:
    release = LocalFolder(tmp_path / "release")
    assert published_before(release) is None
    config = make_config(privacy={"accountant": "rdp"})
    plan = make_plan(config)
    for evaluation, noise, expected in (
        (None, None, None),
        (RIGHT, None, 0.0),
        (RIGHT, 3.0, 3.0),
    ):
        outcome = Outcome(
            True, plan.steps, plan.steps, plan.releases, plan.epsilon, evaluation, 1.0
        )
        figures = {**outcome.metrics, "test_accuracy_noise": noise}
        statement = privacy_statement(config, plan, outcome, replay=False, score=figures)
        release.write("privacy.json", statement.encode())
        assert published_before(release) == expected
    release.write("privacy.json", b"torn")
    assert published_before(release) == 0.0


def test_figures_of_an_own_objective_are_not_taken_for_counts(make_config: MakeConfig) -> None:
    """Its test_accuracy may be no number, which was found once the budget was spent."""
    config = make_config(objective={"name": "my_objective:Own"}, data={"evaluation": "held_out"})
    plan = make_plan(make_config(privacy={"accountant": "rdp"}))
    names: list[str] = []

    def charge(name: str, noise: float) -> History:
        names.append(name)
        return ((noise, 1.0, len(names)),)

    for value in (-math.inf, 0.25, 0.2501):
        evaluation = Evaluation({"test_accuracy": value}, 40)
        found = published_score(
            config,
            plan,
            evaluation,
            {"test_accuracy": finite(value)},
            key=RunKey(bytes(32)),
            model=b"model",
            test_digest="t",
            charge=charge,
        )
        assert found["test_accuracy"] == finite(value)
    assert len(set(names)) == 3


def test_an_accuracy_is_charged_before_it_is_published_and_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data=NOISED, privacy={"accountant": "rdp", "steps": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", full)
        with pytest.raises(RunError, match="nothing was published"):
            start(config)
    assert RunDirectory.of(config).read_ledger()._balance.scores != {}
    start(config, resume=True)
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert statement["test_accuracies_published"] == 1


def test_noise_on_public_figures_is_refused(make_config: MakeConfig) -> None:
    values = make_config(data=NOISED).dump()
    values["data"]["evaluation"] = "public"
    with pytest.raises(ConfigError, match="evaluation_noise is for figures of held_out"):
        parse_config(values)
