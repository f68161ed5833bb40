"""Documents are written and read by one class each, with a format number; older ones are read."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.searches import made_up
from helpers.support import MakeConfig
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.api.audit import run_audit
from dp_ray.api.train import run_training
from dp_ray.artifacts.checkpoint import Checkpoint
from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.course import METRICS, Evaluated, Stepped, read_course
from dp_ray.artifacts.notes import DataNote, EngineNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Outcome, Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.statement import Statement
from dp_ray.auditing.directory import AuditDirectory, AuditOutcome, AuditSettings
from dp_ray.auditing.report import describe_audit
from dp_ray.document import Document
from dp_ray.errors import LedgerError, RunError
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.performance.engine_choice import Choice
from dp_ray.privacy.adaptive import AdaptiveClipping
from dp_ray.reporting.ledger import ledger_facts
from dp_ray.reporting.make import write_report
from dp_ray.search.result import SearchResult, SearchSummary
from dp_ray.search.search import TrialRecord
from dp_ray.storage import LocalFolder
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.preparation import make_plan

FORMAT_0 = Path(__file__).parent / "format_0"


# Round trips


def outcome_of(config: Any) -> Outcome:
    plan = make_plan(config)
    evaluation = Evaluation({"test_accuracy": 0.5, "test_loss": math.inf}, 10)
    return Outcome(True, plan.steps, plan.steps, plan.releases, plan.epsilon, evaluation, 97.0)


def statement(make_config: MakeConfig) -> Statement:
    config = make_config(privacy={"adaptive_clipping": {"quantile": 0.5}, "search_epsilon": 1.0})
    return privacy_statement(config, make_plan(config), outcome_of(config), replay=True)


def result(make_config: MakeConfig) -> Result:
    config = make_config()
    plan = make_plan(config)
    return Result.of(config, plan, outcome_of(config), path="runs/run", replay=False)


def progress(_make_config: MakeConfig) -> Progress:
    return Progress(
        step=1,
        steps=4,
        charges=2,
        repaired=False,
        metrics={"test_accuracy": 0.5, "test_loss": None},
        images_per_second=10.0,
        seconds_left=None,
        seconds=1.5,
    )


def outcome_of_audit(_make_config: MakeConfig) -> AuditOutcome:
    return AuditOutcome.read(LocalFolder(FORMAT_0 / "audit/private"))


DOCUMENTS: list[Callable[[MakeConfig], Document]] = [
    statement,
    result,
    progress,
    outcome_of_audit,
    lambda make_config: result(make_config).running(9),
    lambda _: made_up(epsilon_of_search=math.inf),
    lambda _: made_up().summary(only_best_may_be_seen=True),
    lambda _: EngineNote.of(Choice("vmap", 32, None, "note")),
    lambda _: DataNote(skipped={"pdf": 3}),
]


@pytest.mark.parametrize("make", DOCUMENTS)
def test_a_document_is_read_as_it_was_written(
    make_config: MakeConfig, tmp_path: Path, make: Callable[[MakeConfig], Document]
) -> None:
    document, folder = make(make_config), LocalFolder(tmp_path)
    assert type(document).find(folder) is None
    document.write(folder)
    values = json.loads(folder.read(document.FILE))
    assert values.pop("format") == document.FORMAT == 1
    assert type(document).read(folder) == document
    assert type(document).read(folder).encode() == document.encode()
    # Unknown fields are passed over; a newer format, and a number that is none, are not.
    folder.write(document.FILE, json.dumps({**values, "format": 1, "later": [1]}).encode())
    assert type(document).find(folder) == document
    folder.write(document.FILE, json.dumps({**values, "format": 2}).encode())
    newer = r"was written by a newer dp-ray \(format 2; .* up to 1\): use that version"
    with pytest.raises(RunError, match=f"{document.FILE} {newer}"):
        type(document).read(folder)
    for wrong in ({"format": "1"}, {"format": True}, {"later": math.nan}):
        folder.write(document.FILE, json.dumps({**values, **wrong}).encode())
        with pytest.raises(RunError, match=f"{document.FILE} is damaged: .*estore it"):
            type(document).find(folder)
    for rubbish in ([], {"format": 1}):
        folder.write(document.FILE, json.dumps(rubbish).encode())
        with pytest.raises(RunError, match=f"{document.FILE} is damaged: .*estore it"):
            type(document).read(folder)


def test_what_stands_in_the_files(make_config: MakeConfig) -> None:
    """Names and places that others rely on; null for what JSON does not have."""
    stated = json.loads(statement(make_config).encode())
    assert (stated["test_accuracy"], stated["test_loss"]) == (0.5, None)
    assert stated["epsilon_with_search"] == pytest.approx(stated["epsilon"] + 1.0)
    assert stated["adaptive_clipping"]["quantile"] == 0.5
    assert isinstance(statement(make_config).adaptive_clipping, AdaptiveClipping)
    ended = json.loads(result(make_config).encode())
    assert (ended["test_accuracy"], ended["seconds"], ended["charges"]) == (0.5, 120, 4)
    assert "epsilon_with_search" not in ended
    again = json.loads(result(make_config).running(9).encode())
    assert (again["test_accuracy"], again["epsilon"], again["charges"]) == (None, None, 9)
    searched = json.loads(made_up(epsilon_of_search=math.inf).encode())
    assert searched["epsilon_of_search"] is None
    assert searched["trials"][0]["test_accuracy"] == 0.8
    assert "trials" not in json.loads(made_up().summary(only_best_may_be_seen=True).encode())
    with pytest.raises(ValueError, match="finite"):
        Statement.model_validate({**stated, "delta": math.nan})


def test_records_of_trials_and_audits_have_a_format(tmp_path: Path) -> None:
    run = RunDirectory(LocalFolder(tmp_path))
    record = TrialRecord({"augment.views": 2}, attempts=1, error="no memory")
    record.write(run)
    assert TrialRecord.read(run.root) == record
    settings = AuditSettings("gradient", 20, 0.05, 1)
    settings.write(run.private)
    assert AuditSettings.read(run.private) == settings
    for folder, name in ((run.root, "trial.json"), (run.private, "audit.json")):
        values = json.loads(folder.read(name))
        assert values["format"] == 1
        folder.write(name, json.dumps({**values, "format": 2}).encode())
    with pytest.raises(RunError, match=r"trial\.json was written by a newer dp-ray"):
        TrialRecord.read(run.root)
    with pytest.raises(RunError, match=r"audit\.json was written by a newer dp-ray"):
        AuditSettings.read(run.private)


def test_a_checkpoint_has_a_format() -> None:
    checkpoint = Checkpoint(3, torch.arange(4.0), None, {}, None, 1.0, "position")
    data = checkpoint.to_bytes()
    found = Checkpoint.from_bytes(data)
    assert found.params.equal(checkpoint.params)
    others = [field.name for field in fields(Checkpoint) if field.name != "params"]
    assert all(getattr(found, name) == getattr(checkpoint, name) for name in others)
    values = torch.load(io.BytesIO(data), weights_only=True)
    assert values["format"] == 1
    buffer = io.BytesIO()
    torch.save({**values, "format": 2}, buffer)
    with pytest.raises(RunError, match="a checkpoint was written by a newer dp-ray"):
        Checkpoint.from_bytes(buffer.getvalue())


def test_an_execution_has_a_format_which_is_no_part_of_it() -> None:
    execution = Execution(2, 1, "vmap", 32, {"device": "cpu", "torch": "2"})
    values = execution.dump()
    assert (values.pop("format"), values["workers"], values["device"]) == (2, 2, "cpu")
    assert Execution.of(values) == Execution.of(execution.dump()) == execution
    with pytest.raises(RunError, match="a session in the ledger was written by a newer dp-ray"):
        Execution.of({**values, "format": 3})


def test_the_course_of_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    evaluated = [Evaluated(0, 0.0, 1.0), Evaluated(2, 1.5, math.inf, {"test_accuracy": 0.5})]
    stepped = [Stepped(0, 9.0, 2.0, 0.5, 1.0, 0.1), Stepped(1, 8.0, 2.0, 0.5, 1.0, 0.1)]
    lines = [entry.line() for entry in (*evaluated, *stepped)]
    folder.write(METRICS, ("".join(lines) + lines[0][:9]).encode())  # the last one is torn
    assert read_course(folder) == (evaluated, stepped)


# Runs of format 0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of what was written before there were numbers, in ``runs`` of the current folder."""
    copies = Path(shutil.copytree(FORMAT_0, tmp_path / "runs"))
    for private in copies.glob("*/private"):
        private.chmod(0o700)
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return copies


def command(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    done = CliRunner().invoke(cli.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_a_run_of_format_0_is_shown_and_evaluated(runs: Path) -> None:
    run, before = runs / "finished", json.loads((runs / "finished/result.json").read_text())
    assert "format" not in before
    facts = command("ledger", str(run))
    assert (facts["verified"], facts["charges"]) == (True, 4)
    assert facts["epsilon"] == pytest.approx(before["epsilon"])
    assert evaluate_run(str(run), []).figures["test_accuracy"] == before["test_accuracy"]
    for public in (False, True):
        told = write_report(str(run), public=public, form="html", output=None)
        page = Path(told["report"]).read_text()
        assert f"{before['test_accuracy']:.2%}" in page
        assert ("examples drawn in a step" in page) == (not public)
    config = RunDirectory(LocalFolder(run)).config()
    with pytest.raises(RunError, match="holds a finished run"):
        run_training(config, resume=True)


def test_a_run_of_format_0_is_resumed(runs: Path) -> None:
    run = RunDirectory(LocalFolder(runs / "stopped"))
    stopped = Result.read(run.root)
    assert (stopped.status, stopped.steps, stopped.charges) == ("stopped", 2, 2)
    write_report(str(runs / "stopped"), public=False, form="html", output=None)
    finished = run_training(run.config(), resume=True)
    assert (finished.status, finished.steps, finished.charges) == ("finished", 4, 4)
    assert [session.first_step for session in run.read_ledger().sessions] == [0, 2]
    assert json.loads((runs / "stopped/result.json").read_text())["format"] == 1
    assert Statement.read(run.root / "release").charges == 4


def test_a_search_of_format_0_is_shown(runs: Path) -> None:
    found = SearchResult.read(LocalFolder(runs / "search/private"))
    assert SearchSummary.read(LocalFolder(runs / "search")).best == found.best
    told = write_report(str(runs / "search"), public=False, form="html", output=None)
    assert f"{found.epsilon_of_search:.4f}" in Path(told["report"]).read_text()
    accuracy = evaluate_run(str(runs / "search"), []).figures["test_accuracy"]
    assert found.best is not None
    assert accuracy == found.best.metrics["test_accuracy"]


def test_an_audit_of_format_0_is_shown_and_not_continued(runs: Path) -> None:
    """Its runs have observations by another name: half of them would be scored."""
    outcome = AuditOutcome.read(LocalFolder(runs / "audit/private"))
    assert "guesses right on 20 gradient canaries" in describe_audit(outcome)
    config = RunDirectory(LocalFolder(runs / "stopped-audit")).config()
    directory = AuditDirectory.of(config)
    with pytest.raises(RunError, match=r"older dp-ray \(format 0\), whose audits cannot be cont"):
        run_audit(config, canaries=20, resume=True)
    with pytest.raises(RunError, match="an unfinished audit"):
        directory.check_free()
    with pytest.raises(RunError, match="a finished audit"):
        AuditDirectory(LocalFolder(runs / "audit")).begun()


def test_a_run_of_a_newer_format_is_refused_by_name(runs: Path) -> None:
    config = RunDirectory(LocalFolder(runs / "stopped")).config()
    for name, act in (
        ("stopped/result.json", lambda: run_training(config, resume=True)),
        (
            "finished/release/privacy.json",
            lambda: write_report(str(runs / "finished"), public=False, form="html", output=None),
        ),
        (
            "search/private/results.json",
            lambda: write_report(str(runs / "search"), public=False, form="html", output=None),
        ),
    ):
        file = runs / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
        with pytest.raises(RunError, match=r"newer dp-ray \(format 2.*use that version") as refused:
            act()
        assert file.name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_session_of_a_newer_format_is_refused_by_name(make_config: MakeConfig) -> None:
    config = make_config()
    run = RunDirectory.of(config)
    run.create(config, make_plan(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "FORMAT", 3)
        ledger = run.write_ledger("newer")
        ledger.open_session(Execution(1), first_step=0, data="d", parameters="p")
        ledger.charge(Charge(0, 0, "a", 1.0, 1.0, make_plan(config).sample_rate))
        ledger.close()
    for act in (run.read_ledger, lambda: ledger_facts(str(run.root))):
        with pytest.raises(RunError, match="newer dp-ray") as refused:
            act()
        assert not isinstance(refused.value, LedgerError)
