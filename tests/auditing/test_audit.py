"""Whole audits in this process: the verdict, what is left, and alarms where privacy is broken."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faults.broken import FAULTS, LEAK, audited, broken
from helpers.support import replay_of
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.api.audit import run_audit
from dp_ray.artifacts.run_directory import STOP, RunDirectory
from dp_ray.auditing.canaries import Canaries
from dp_ray.auditing.directory import AuditDirectory, AuditOutcome, AuditSettings
from dp_ray.auditing.observers import GradientObserver, scores
from dp_ray.auditing.report import describe_audit
from dp_ray.cli.training import REFUTED
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, ModelError, RunError
from dp_ray.on_ray.job import IN_JOB
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.storage import LocalFolder
from dp_ray.training.probe import Observation


def audit(config: Config, **options: Any) -> dict[str, Any]:
    """Audit as ``dp-ray audit`` does, and return what outcome.json holds."""
    return run_audit(config, replay=replay_of(config), **options).dump()


def the_run(config: Config, number: int = 0) -> RunDirectory:
    return RunDirectory.of(AuditDirectory.of(config).run_config(config, number))


def test_no_alarm_where_privacy_holds(tmp_path: Path) -> None:
    """And every gradient that was computed, drawn, noised and charged is the ordinary path's."""
    config = audited(tmp_path, seed=0)
    found = audit(config, canaries=4000)
    assert not found["refuted"]
    assert found["can_refute"]
    assert 0 < found["epsilon_lower"] < found["epsilon_claimed"]
    assert 0 <= found["epsilon_lower_of_any"] <= found["epsilon_lower"]
    assert (found["looks"], found["moved"]) == (0, None)  # canaries alone say nothing of a network
    assert (found["confidence"], found["delta"]) == (0.95, 1e-4)
    ledger = the_run(config).read_ledger()
    assert ledger.history == ((1.0, 0.1, 20),)  # q and N whatever the coins
    assert ledger.charges == 20


_QUICK = ("engine does not clip", "examples counted twice")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[pytest.mark.slow] if f not in _QUICK else []) for f in FAULTS],
)
def test_alarm_where_privacy_is_broken(tmp_path: Path, fault: str) -> None:
    """One seed of each; ``python -m faults.broken`` tells how often (docs/audit.md)."""
    with broken(fault):
        found = audit(audited(tmp_path, seed=0), canaries=4000)
    assert found["refuted"]
    assert found["epsilon_lower"] > found["epsilon_claimed"]


def test_an_example_that_changes_the_gradients_of_others_raises_the_alarm(tmp_path: Path) -> None:
    """What no canary shows: others move, and by the sum without one example it is seen."""
    values = audited(tmp_path, seed=0).dump()
    values["model"]["name"] = "faults.broken:remembering"
    values["train"]["microbatch_size"] = 32
    config = Config.model_validate(values)
    with pytest.raises(ModelError, match="before"):
        audit(config, canaries=2000)
    with broken(LEAK):
        found = audit(config.model_copy(update={"name": "leak"}), canaries=2000)
    assert found["epsilon_lower"] < found["epsilon_claimed"]
    assert found["looks"] == 20
    assert found["moved"] > 1.5
    assert found["refuted"]
    assert f"moved a sum by {found['moved']:.4f} C, and" in describe_audit(
        AuditOutcome.model_validate(found)
    )


@pytest.mark.slow
def test_without_noise_a_release_holds_exactly_the_canaries_that_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, clipped to C, scaled as the witness takes it; whichever way updates are scaled."""
    parts: list[NDArray[np.float64]] = []

    def note(self: GradientObserver, sight: Observation) -> None:
        parts.append(self.directions.along(sight.noised).numpy() / self.amplitude)
        see(self, sight)

    see = GradientObserver.observe
    monkeypatch.setattr(GradientObserver, "observe", note)
    for normalize in (True, False):
        values = audited(tmp_path, seed=1, name=f"normalize-{normalize}").dump()
        values["data"].update(num_examples=300, expected_batch_size=300)
        values["privacy"].update(steps=1, max_grad_norm=0.3)
        values["optimizer"]["normalize_update"] = normalize
        config = Config.model_validate(values)
        with broken("noise off"):
            audit(config, canaries=300)
        key = AuditDirectory.of(config).key()
        included = Canaries.draw("gradient", 300, 300, key=key).included
        assert parts[-1] == pytest.approx(included.astype(float), abs=1e-4)


def test_real_examples_are_trained_on_beside_canaries(tmp_path: Path) -> None:
    config = audited(tmp_path, seed=1)
    with broken("noise off"):
        found = audit(config)
    assert found["canaries"] == 2000  # half of them, by default
    assert found["looks"] == 20
    assert 0.99 < found["moved"] <= 1.0001
    assert not found["moved_too_far"]
    run = the_run(config)
    assert len(run.observations.names()) == 20
    line = json.loads(run.private.read("metrics.jsonl").splitlines()[0])
    assert line["loss"] > 0.5  # of images, on average over all that were drawn
    assert 250 < line["examples"] < 350  # q times the 3,000 that are there
    included = Canaries.draw("gradient", 2000, 4000, key=AuditDirectory.of(config).key()).included
    seen = scores(run.observations)
    above = stats.mannwhitneyu(seen[included], seen[~included]).statistic
    assert above / (included.sum() * (~included).sum()) > 0.6


@pytest.mark.slow
def test_mislabelled_canaries_that_a_model_learns_by_heart_raise_the_alarm(tmp_path: Path) -> None:
    """Without noise, and long enough; with the noise of its ledger the same run keeps them."""
    refuted = {}
    for fault in ("none", "noise off"):
        config = learner(tmp_path, name=fault.replace(" ", "-"))
        with broken(fault):
            refuted[fault] = audit(config, kind="mislabelled", canaries=300)["refuted"]
    assert refuted == {"none": False, "noise off": True}


def learner(folder: Path, **changes: Any) -> Config:
    """Few examples, and many steps to learn them in."""
    values = audited(folder, seed=0).dump()
    values["data"].update(num_examples=300, expected_batch_size=300)
    values["privacy"].update(noise_multiplier=30.0, steps=150, delta=1e-3, max_grad_norm=1.0)
    values["optimizer"]["lr"] = 2.0
    return Config.model_validate(values | changes)


def test_all_of_it_is_private(tmp_path: Path) -> None:
    config = audited(tmp_path, seed=None)
    audit(config, canaries=100)
    root = tmp_path / "runs" / "audit"
    assert [p.name for p in root.iterdir()] == ["private"]
    assert stat.S_IMODE((root / "private").stat().st_mode) == 0o700
    outcome = json.loads((root / "private" / "outcome.json").read_text())
    assert "must not be published" in outcome["warning"]
    assert outcome["status"] == "finished"


def test_a_stopped_audit_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audited(tmp_path, seed=3, name="whole")
    expected = audit(whole, canaries=200)
    config = audited(tmp_path, seed=3, name="stopped")
    write = LocalFolder.write

    def write_and_stop(self: LocalFolder, name: str, data: bytes) -> None:
        write(self, name, data)
        if name.startswith("00000004"):  # what was seen of the fifth step
            the_run(config).private.write(STOP, b"")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", write_and_stop)
        assert audit(config, canaries=200)["status"] == "stopped"
    with pytest.raises(RunError, match="unfinished audit: continue it with --resume"):
        audit(config, canaries=200)
    with pytest.raises(ConfigError, match=r"--canaries = 300: the audit was started with 200"):
        audit(config, canaries=300, resume=True)
    other = config.model_copy(update={"seed": 4})
    with pytest.raises(ConfigError, match="seed = 4"):
        audit(other, canaries=200, resume=True)
    found = audit(config, canaries=200, resume=True)
    assert np.array_equal(scores(the_run(config).observations), scores(the_run(whole).observations))
    assert found == expected | {"name": "stopped", "path": found["path"]}
    with pytest.raises(RunError, match="finished audit, which is kept as it is"):
        audit(config, canaries=200)
    with pytest.raises(RunError, match="finished audit"):
        audit(config, canaries=200, resume=True)


@pytest.mark.parametrize(
    ("field", "own"),
    [
        ("objective.name", "dp_ray.objectives.single_label:SingleLabel"),
        ("privacy.mechanism", "dp_ray.privacy.gaussian:Gaussian"),
    ],
)
@pytest.mark.parametrize("first", ["default", "own"])
def test_an_audit_is_resumed_as_it_was_started(
    tmp_path: Path, field: str, own: str, first: str
) -> None:
    """Also by fields that keys are bound to only where they are set."""
    default = audited(tmp_path, seed=3)
    values = default.dump()
    section, _, name = field.partition(".")
    values[section][name] = own
    both = [default, Config.model_validate(values)]
    started, now = both if first == "default" else reversed(both)
    AuditDirectory.of(started).create(started, AuditSettings("gradient", 200, 0.05, 1))
    with pytest.raises(ConfigError, match="Resume it as it was, or start a new audit") as refused:
        audit(now, canaries=200, resume=True)
    assert refused.value.field.startswith(section)


@pytest.mark.slow
def test_two_audits_of_one_seed_share_no_noise_with_a_run_of_it(tmp_path: Path) -> None:
    """The audit's key is its own, and keys of its runs are bound to data with canaries in it."""
    config = audited(tmp_path, seed=5)
    audit(config, canaries=10, runs=1)
    secrets = {AuditDirectory.of(config).key().secret, the_run(config).key().secret}
    assert len(secrets) == 2
    sessions = the_run(config).read_ledger().sessions
    other = audited(tmp_path, seed=5, name="other")
    audit(other, canaries=11)
    assert the_run(other).read_ledger().sessions[0].data != sessions[0].data


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["noise off", "none"])
def test_many_runs_with_and_without_one_canary(tmp_path: Path, fault: str) -> None:
    """Clopper and Pearson need many runs for much; these are enough for a small claim."""
    config = audited(tmp_path, seed=6)
    small = {"noise_multiplier": 8.0, "steps": 1, "delta": 1e-4, "accountant": "rdp"}
    data = config.data.model_copy(update={"num_examples": 20, "expected_batch_size": 20})
    config = config.model_copy(
        update={"data": data, "privacy": config.privacy.model_copy(update=small)}
    )
    with broken(fault):
        found = audit(config, runs=24)
    assert (found["canaries"], found["guesses"], found["can_refute"]) == (1, 24, True)
    assert found["refuted"] == (fault == "noise off")
    keys = {the_run(config, number).key().secret for number in range(24)}
    assert len(keys) == 24


@pytest.mark.slow
@pytest.mark.parametrize("in_a_job", [False, True])
def test_the_command_fails_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_job: bool
) -> None:
    """In a job, whose log others may read, without a figure: each is computed from the data."""
    if in_a_job:
        monkeypatch.setenv(IN_JOB, "1")
    file = tmp_path / "small.yaml"
    values = audited(tmp_path, seed=0).dump()
    del values["name"]
    file.write_text(yaml.safe_dump(values))
    arguments = ["audit", str(file), "--canaries", "4000", "--json"]
    with broken("noise off"):
        result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == REFUTED == 1
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["name"], told["refuted"]) == ("small-audit", True)
    assert "stays secret" in result.stderr
    if in_a_job:
        assert "verdict       REFUTED\n" in result.stdout
        assert "ε" not in result.stdout
        assert told.keys() == {"name", "path", "status", "refuted", "can_refute"}
        return
    assert "REFUTED: the run shows ε" in result.stdout
    few = CliRunner().invoke(cli.app, [*arguments, "--canaries", "8", "--name", "few"])
    assert few.exit_code == 0
    assert "nothing could have refuted" in few.stdout
    assert "not refuted" in few.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"canaries": 4001}, r"--canaries = 4001: .* there are 4,000"),
        ({"canaries": 0}, r"--canaries = 0"),
        ({"significance": 0.5}, r"--significance = 0.5"),
        ({"significance": float("nan")}, r"--significance = nan"),
        ({"runs": 0}, r"--runs = 0"),
        ({"runs": 3, "canaries": 5}, r"--canaries = 5: of 3 runs"),
    ],
)
def test_bad_options_are_told_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        audit(audited(tmp_path, seed=0), **options)
    assert list(tmp_path.iterdir()) == []


def test_no_noise_is_no_claim(tmp_path: Path) -> None:
    config = audited(tmp_path, seed=0)
    privacy = config.privacy.model_copy(update={"noise_multiplier": 0.0})
    with pytest.raises(ConfigError, match=r"noise_multiplier = 0: .*claims no ε"):
        audit(config.model_copy(update={"privacy": privacy}))
    with pytest.raises(RunError, match="no audit to resume"):
        audit(config, resume=True)


def test_what_it_trains_on_is_told_at_its_start(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w") as file:
        run_audit(
            audited(tmp_path, seed=0),
            canaries=9,
            callbacks=[TerminalProgress(Console(file=file, width=300))],
        )
    told = (tmp_path / "told").read_text()
    assert "9 gradient canaries by fair coins" in told
    assert "it trains on the data and publishes nothing" in told
