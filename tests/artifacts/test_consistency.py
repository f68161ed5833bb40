"""The documents of a release say the same: statement, configuration, card and ledger."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.interrupted import start_and_stop
from helpers.support import MakeConfig, charged, folder, start
from rich.console import Console

from dp_ray.api.train import run_training
from dp_ray.artifacts import release as release_module
from dp_ray.artifacts.claim import ASSUMPTIONS, PRETRAINED, privacy_statement
from dp_ray.artifacts.consistency import disagreement
from dp_ray.artifacts.public_config import published_config
from dp_ray.artifacts.result import Outcome
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.score import EXACT, NOISED, PUBLIC
from dp_ray.artifacts.statement import Statement, Sums
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, RunError
from dp_ray.privacy import accounting
from dp_ray.privacy import plan as plan_module
from dp_ray.reporting.ledger import describe_ledger, ledger_facts
from dp_ray.reporting.make import write_report
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.opening import take_up
from dp_ray.training.preparation import make_plan

SOLVED = {"epsilon": 3.0, "noise_multiplier": None, "steps": 4, "accountant": "rdp"}


def documents(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statement and configuration as they are published."""
    release = folder(config) / "release"
    statement = json.loads((release / "privacy.json").read_text())
    return statement, yaml.safe_load((release / "config.yaml").read_text())


@pytest.mark.parametrize(("epsilon", "finished"), [(5.0, True), (3.01, False), (1e6, False)])
def test_a_larger_epsilon_without_more_steps_is_refused(
    make_config: MakeConfig, epsilon: float, finished: bool
) -> None:
    """σ was solved for the first ε: nothing would change but what config.yaml says."""
    config = make_config(privacy=SOLVED)
    start(config) if finished else start_and_stop(config, 2)
    before = charged(config)
    with pytest.raises(ConfigError, match=r"keeps its noise.*started with|as it was") as found:
        start(make_config(privacy={**SOLVED, "epsilon": epsilon}), resume=True)
    assert found.value.field == "privacy.epsilon"
    assert charged(config) == before
    assert not RunDirectory.of(config).read_ledger().amended


def test_the_way_out_of_a_larger_epsilon_works(make_config: MakeConfig) -> None:
    config = make_config(privacy=SOLVED)
    start_and_stop(config, 2)
    larger = {**SOLVED, "epsilon": 3.4}
    with pytest.raises(ConfigError, match=r"set privacy\.steps to (\d+)") as found:
        start(make_config(privacy=larger), resume=True)
    steps = int(found.value.remedy.partition("privacy.steps to ")[2].split()[0])
    result = start(make_config(privacy={**larger, "steps": steps}), resume=True)
    assert (result["status"], result["steps"]) == ("finished", steps)
    assert 3.0 < result["epsilon"] <= 3.4
    statement, published = documents(config)
    assert statement["epsilon"] == result["epsilon"]
    assert published["privacy"]["steps"] == steps == statement["steps"]
    assert published["privacy"]["epsilon"] is None


def test_an_epsilon_that_pays_for_no_further_step_is_refused(make_config: MakeConfig) -> None:
    """Where T is solved: the next step's cost is named, and is enough."""
    first = {"epsilon": 1.36, "noise_multiplier": 1.0, "steps": None, "accountant": "rdp"}
    config = make_config(privacy=first)
    start_and_stop(config, 2)
    planned = make_plan(config)
    between = (planned.epsilon + planned.with_steps(planned.steps + 1).epsilon) / 2
    with pytest.raises(ConfigError, match="One more step costs") as found:
        start(make_config(privacy={**first, "epsilon": between}), resume=True)
    enough = float(found.value.remedy.partition("raise it to ")[2].split()[0])
    result = start(make_config(privacy={**first, "epsilon": enough}), resume=True)
    assert result["steps"] == planned.steps + 1


def test_a_run_is_not_given_more_steps_by_the_last_digit_of_an_accountant(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ε of the same steps differed between processes, and "raised from 4 to 4" was the result."""
    config = make_config(privacy=SOLVED)
    start_and_stop(config, 2)
    plan = make_plan(config)
    exact = {"epsilon": None, "noise_multiplier": plan.noise_multiplier, "steps": 4}
    original = accounting.epsilon_of
    monkeypatch.setattr(plan_module, "epsilon_of", lambda *given: original(*given) * (1 - 1e-15))
    shown = io.StringIO()
    same_budget = make_config(privacy={**SOLVED, **exact})
    run_training(
        same_budget, resume=True, callbacks=[TerminalProgress(Console(file=shown, width=200))]
    )
    assert "raised" not in shown.getvalue()
    assert not RunDirectory.of(config).read_ledger().amended


def test_the_published_budget_is_the_plans(make_config: MakeConfig) -> None:
    """Also where ε was given: σ and T as solved, and ε in the statement alone."""
    config = make_config(privacy=SOLVED)
    start(config)
    statement, published = documents(config)
    privacy = published["privacy"]
    assert (privacy["epsilon"], privacy["steps"]) == (None, 4)
    assert privacy["noise_multiplier"] == statement["noise_multiplier"]
    assert make_plan(parse_config(published)).epsilon == pytest.approx(statement["epsilon"])


def test_what_is_declared_on_resume_is_what_every_document_says(make_config: MakeConfig) -> None:
    start_and_stop(make_config(), 2)
    config = make_config(data={"evaluation": "public"}, privacy={"search_epsilon": 1.5})
    result = start(config, resume=True)
    statement, published = documents(config)
    assert statement["data_evaluation"] == published["data"]["evaluation"] == "public"
    assert published["privacy"]["search_epsilon"] == 1.5
    assert statement["epsilon_with_search"] == result["epsilon_with_search"]
    assert evaluate_run(str(folder(config)), []).figures["data_evaluation"] == "public"
    told = write_report(str(folder(config)), public=True, form="markdown", output=None)
    card = Path(told["report"]).read_text()
    assert f"{statement['epsilon_with_search']:.4f}" in card
    assert "declares public" in card


def test_a_search_stays_in_the_statement_whatever_is_declared_on_resume(
    make_config: MakeConfig,
) -> None:
    """Also one that was declared by a session that is over, and not when the run was started."""
    start_and_stop(make_config(privacy={"search_epsilon": 0.5}), 1)
    start_and_stop(make_config(privacy={"search_epsilon": 1.5}), 2, resume=True)
    for forgotten in (None, 0.5, 1.4):
        config = make_config(privacy={"search_epsilon": forgotten})
        with pytest.raises(ConfigError, match=r"search_epsilon = .*declares 1\.5.*Set it to 1\.5"):
            start(config, resume=True)
    result = start(make_config(privacy={"search_epsilon": 1.5}), resume=True)
    assert result["epsilon_with_search"] == pytest.approx(result["epsilon"] + 1.5)


def test_what_is_declared_otherwise_on_resume_is_printed_and_recorded(
    make_config: MakeConfig,
) -> None:
    start_and_stop(make_config(), 2)
    config = make_config(data={"evaluation": "public"})
    run, said = RunDirectory.of(config), list[str]()
    take_up(run, config, "first", said.append)
    told = "data.evaluation: public from here on, and held_out before; both are on record"
    assert said == [told]
    take_up(run, config, "second", said.append)
    assert said == [told]
    facts = ledger_facts(str(run.root))
    assert facts["declared"]["data.evaluation"] == "public"
    assert "data.evaluation = public" in describe_ledger(facts)


def statement_of(config: Config) -> Statement:
    """What a run of the planned steps would state."""
    plan = make_plan(config)
    outcome = Outcome(True, plan.steps, plan.steps, plan.releases, plan.epsilon, None, 1.0)
    return privacy_statement(config, plan, outcome, replay=False)


def test_the_statement_adds_what_the_search_spent(make_config: MakeConfig) -> None:
    statement = statement_of(make_config(privacy={"search_epsilon": 1.5}))
    assert statement.epsilon is not None
    assert statement.epsilon_with_search == pytest.approx(statement.epsilon + 1.5)


def test_the_statement_says_what_the_test_split_is_declared(make_config: MakeConfig) -> None:
    for declared in ("public", "held_out"):
        config = make_config(data={"evaluation": declared})
        assert statement_of(config).data_evaluation == declared


def test_the_page_lists_what_every_statement_assumes() -> None:
    """Word for word: release and score are the one source."""
    page = (Path(__file__).parents[2] / "docs/privacy.md").read_text()
    listed = page.partition("## What remains assumed")[2].partition("\n## ")[0]
    points = [" ".join(point.split()) for point in re.split(r"^\* ", listed, flags=re.M)[1:]]
    said = [re.sub(r" (Where weights were|Of the test split, as) .*", "", p) for p in points]
    exact = EXACT.format(metrics="test_accuracy and test_loss")
    assert said == [*ASSUMPTIONS, PRETRAINED, PUBLIC, exact, NOISED]


CHANGES: list[tuple[str, Any]] = [
    ("privacy.noise_multiplier", 2.0),
    ("privacy.delta", 2e-5),
    ("privacy.max_grad_norm", 0.5),
    ("privacy.clipping", "automatic"),
    ("privacy.accountant", "pld"),
    ("privacy.steps", 3),
    ("privacy.search_epsilon", 1.0),
    ("privacy.noise_schedule", {"final": 0.5}),
    ("data.expected_batch_size", 65),
    ("data.evaluation", "public"),
    ("augment.views", 3),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_a_configuration_that_says_something_else_is_noticed(
    make_config: MakeConfig, field: str, value: Any
) -> None:
    config = make_config(privacy={"accountant": "rdp"})
    statement, published = statement_of(config), published_config(config, make_plan(config))
    assert disagreement(statement, parse_config(published)) is None
    section, _, name = field.partition(".")
    published[section][name] = value
    assert disagreement(statement, parse_config(published)) is not None


@pytest.mark.parametrize("epsilon", [5.0, 2.0])
def test_an_epsilon_that_is_not_the_statements_is_noticed(
    make_config: MakeConfig, epsilon: float
) -> None:
    """As an earlier version published it, which wrote what the user had set."""
    config = make_config(privacy=SOLVED)
    statement = statement_of(config)
    assert disagreement(statement, config) is None
    other = make_config(privacy={**SOLVED, "epsilon": epsilon})
    assert disagreement(statement, other) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon", 0.1), ("charges", 3), ("steps", 9), ("released", []), ("noise_multiplier", 3.0)],
)
def test_a_statement_that_the_sums_do_not_bear_out_is_noticed(
    make_config: MakeConfig, field: str, value: Any
) -> None:
    config = make_config(privacy={"accountant": "rdp"})
    plan = make_plan(config)
    published = parse_config(published_config(config, plan))
    statement = statement_of(config)
    assert disagreement(statement, published, plan.releases) is None
    changed = statement.model_copy(update={field: value})
    assert disagreement(changed, published, plan.releases) is not None
    assert disagreement(statement, published, ((1.0, 0.5, 4),)) is not None


BANDED = {"mechanism": "helpers.two_bands:TwoBands", "accountant": "rdp"}
"""Accountants take three sums for five charges of it and for six."""
RATE = 2 * 64 / 1437


def banded(make_config: MakeConfig, *, steps: int, charges: int) -> tuple[Statement, Config]:
    """Statement and published configuration of a run with a mechanism of the user's own."""
    config = make_config(privacy={**BANDED, "steps": steps})
    plan = make_plan(config)
    outcome = Outcome(True, steps, charges, plan.releases, plan.epsilon, None, 1.0)
    outcome = replace(outcome, charged=((1.0, RATE, charges),))
    statement = privacy_statement(config, plan, outcome, replay=False)
    return statement, parse_config(published_config(config, plan))


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (((1.0, RATE, 4),), r"charges are 6, and the noised sums that are listed 4"),
        (((1.0, 0.5, 6),), r"are listed, and charges come to"),
        (((0.5, RATE, 6),), r"are listed, and charges come to"),
        (((1.0, RATE, 5), (1.0, 0.5, 1)), r"are listed, and charges come to"),
        (None, r"what was charged is missing"),
    ],
)
def test_what_was_charged_must_agree_with_what_accountants_take(
    make_config: MakeConfig, listed: Any, problem: str
) -> None:
    statement, published = banded(make_config, steps=6, charges=6)
    assert disagreement(statement, published, statement.history) is None
    parts = None if listed is None else Sums.of(listed)
    changed = statement.model_copy(update={"charged": parts})
    assert re.search(problem, str(disagreement(changed, published)))


def test_more_charges_than_the_configuration_allows_are_noticed(make_config: MakeConfig) -> None:
    statement, published = banded(make_config, steps=5, charges=6)
    found = disagreement(statement, published, statement.history)
    assert "more than config.yaml allows" in str(found)


def test_documents_that_contradict_each_other_are_not_published(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()

    def careless(_config: Config, _plan: Any) -> dict[str, Any]:
        return make_config(privacy={"noise_multiplier": 9.0}).dump()

    with monkeypatch.context() as patch:
        patch.setattr(release_module, "published_config", careless)
        with pytest.raises(RunError, match=r"noise_multiplier is 1\.0.*is 9\.0.*--resume"):
            start(config)
    assert not (folder(config) / "release").exists()
    result = start(config, resume=True)
    assert (result["status"], result["charges"]) == ("finished", 4)


def test_a_release_whose_files_contradict_each_other_has_no_public_page(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(privacy=SOLVED)
    start(config)
    file = folder(config) / "release/config.yaml"
    values = yaml.safe_load(file.read_text())
    values["privacy"] |= {"epsilon": 5.0, "noise_multiplier": None}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(RunError, match=r"contradict each other.*5\.0"):
        write_report(str(folder(config)), public=True, form="html", output=None)
    monkeypatch.chdir(tmp_path)
    told = write_report(str(file.parent), public=False, form="markdown", output=None)
    assert "contradict each other" in Path(told["report"]).read_text()
