"""Going on after a stop or a crash: exactly as before, at no cost, and as nothing else."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from helpers.interrupted import PowerCut, crash, power_cut, shake_sums, start_and_stop
from helpers.support import MakeConfig, charged, folder, released, same, start
from rich.console import Console

from dp_ray.api import train as run_module
from dp_ray.artifacts.checkpoint import Checkpoint, Checkpoints
from dp_ray.artifacts.notes import StartNote
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import ChargesError, ConfigError, DpRayError, LedgerError, RunError
from dp_ray.ledger.ledger import Ledger
from dp_ray.privacy.noise import StepNoises
from dp_ray.reporting.ledger import repair_ledger
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.reporting.summary import describe_result
from dp_ray.storage import LocalFolder
from dp_ray.training.preparation import make_plan


def test_a_run_that_is_stopped_before_its_first_step_evaluates_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr("dp_ray.training.loop.shared_evaluation", pytest.fail)
        result = start_and_stop(config, before_step=0)
    assert (result["status"], result["steps"], result["charges"]) == ("stopped", 0, 0)
    told = describe_result(Result.read(RunDirectory.of(config).root)).splitlines()
    # The warning is that a replayed run's noise is known.
    assert [line.split()[0] for line in told] == ["stopped", "privacy", "warning", "go"]
    assert start(config, resume=True)["status"] == "finished"


def test_resume_without_a_run_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        start(make_config(), resume=True)


OPTIMIZERS = [
    {"name": "SGD", "arguments": {"momentum": 0.9}, "scheduler": "CosineAnnealingLR"},
    {"name": "Adam", "lr": 0.01, "ema_decay": 0.9},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stop_and_resume_equals_an_uninterrupted_run(
    make_config: MakeConfig, optimizer: dict[str, Any]
) -> None:
    whole = make_config(name="whole", optimizer=optimizer, privacy={"steps": 6})
    start(whole)
    config = make_config(name="cut", optimizer=optimizer, privacy={"steps": 6})
    for stop in (2, 5):
        result = start_and_stop(config, stop, resume=stop > 2)
        assert (result["status"], result["steps"]) == ("stopped", stop)
        assert not (folder(config) / "release").exists()
        assert result["epsilon"] < make_plan(config).epsilon
    with pytest.raises(RunError, match="--resume"):
        start(config)
    result = start(config, resume=True)
    assert (result["status"], result["steps"], result["charges"]) == ("finished", 6, 6)
    assert same(released(whole), released(config))


SIX_STEPS = {"privacy": {"steps": 6}, "train": {"checkpoint_every": 3}}


def test_a_crash_between_charge_and_noise_costs_nothing_extra(make_config: MakeConfig) -> None:
    """The replayed steps have the digests on record: same release, no charge."""
    whole = make_config(name="whole", **SIX_STEPS)
    start(whole)
    config = make_config(name="crashed", **SIX_STEPS)
    crash(config, at_step=4)
    assert charged(config) == [(step, 0) for step in range(5)]  # the last was never released
    [found] = checkpoints(config)
    assert Checkpoint.from_bytes(found.read_bytes()).step == 3
    result = start(config, resume=True)
    assert (result["steps"], result["charges"]) == (6, 6)
    assert same(released(whole), released(config))


def test_a_replay_under_another_execution_is_drawn_and_charged_again(
    make_config: MakeConfig,
) -> None:
    """Its sums would differ in rounding; the run stops before the budget is passed."""
    config = make_config(**SIX_STEPS)
    crash(config, at_step=4)
    changed = make_config(
        privacy=SIX_STEPS["privacy"], train={**SIX_STEPS["train"], "microbatch_size": 16}
    )
    with pytest.raises(ChargesError) as refused:
        start(changed, resume=True)
    assert str(refused.value) == (
        "steps 4 to 5 are to be charged again, because their sums would be rounded otherwise "
        "(microbatch_size was 32, now 16): the run would end 2 steps early, at the same ε. To "
        "repeat them at no cost, resume with the settings of the session before. To accept it, "
        "add --accept-charges 2"
    )
    assert charged(config) == [(step, 0) for step in range(5)]
    with pytest.raises(ChargesError):
        start(changed, resume=True, accept_charges=1)
    assert pickle.loads(pickle.dumps(refused.value)).charges == refused.value.charges == 2
    result = start(changed, resume=True, accept_charges=2)
    # 5 of 6 were charged before the crash: one is left, and it goes to step 3.
    assert (result["status"], result["steps"], result["charges"]) == ("finished", 4, 6)
    assert result["epsilon"] == pytest.approx(make_plan(config).epsilon)
    assert charged(config) == [*((step, 0) for step in range(5)), (3, 1)]


def test_a_sum_that_differs_is_drawn_and_charged_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same execution, other sum (as from nondeterministic kernels): seen before any noise."""
    config = make_config(**SIX_STEPS)
    crash(config, at_step=4)
    shake_sums(monkeypatch)
    with pytest.raises(ChargesError, match=r"steps 4 to 5.*on record cannot be had again"):
        start(config, resume=True)
    assert charged(config) == [(step, 0) for step in range(5)]
    result = start(config, resume=True, accept_charges=2)
    assert (result["steps"], result["charges"]) == (4, 6)
    assert charged(config) == [*((step, 0) for step in range(5)), (3, 1)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"privacy": {"max_grad_norm": 2.0}}, "privacy.max_grad_norm"),
        ({"privacy": {"noise_multiplier": 2.0}}, "privacy.noise_multiplier"),
        ({"privacy": {"delta": 2e-4}}, "privacy.delta"),
        ({"augment": {"views": 3}}, "augment.views"),
        ({"data": {"expected_batch_size": 32}}, "data.expected_batch_size"),
        ({"model": {"arguments": {"widths": [8]}}}, "model.arguments"),
        ({"optimizer": {"lr": 1.0}}, "optimizer.lr"),
        ({"seed": 2}, "seed"),
    ],
)
def test_resuming_as_something_else_is_refused(
    make_config: MakeConfig,
    change: dict[str, Any],
    field: str,
) -> None:
    start_and_stop(make_config(), 1)
    with pytest.raises(DpRayError) as refused:
        start(make_config(**change), resume=True)
    assert isinstance(refused.value, ConfigError)
    assert refused.value.field == field


def checkpoints(config: Config) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((folder(config) / "private/checkpoints").iterdir())


def test_resuming_on_other_data_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """Also when the run had not come to its first checkpoint."""
    config = make_config()
    start_and_stop(config, 2)
    for digest in (tmp_path / "cache").glob("*/meta.json"):
        digest.write_text(json.dumps({"train_digest": "00" * 32, "test_digest": "00" * 32}))
    for file in checkpoints(config):
        file.unlink()
    with pytest.raises(RunError, match="training data is not what"):
        start(config, resume=True)


def test_resuming_with_another_network_of_the_same_name_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of a user's own network can change where the configuration does not."""
    text = (
        "from torch import nn\n"
        "def build(num_classes, channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, num_classes))\n"
    )
    module = tmp_path / "changing_model.py"
    module.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(model={"name": "changing_model:build"})
    start_and_stop(config, 2)
    module.write_text(text.replace("8", "9"))
    monkeypatch.delitem(sys.modules, "changing_model")
    with pytest.raises(RunError, match="parameters are not those"):
        start(config, resume=True)


def test_a_lost_or_shortened_ledger_is_refused(make_config: MakeConfig) -> None:
    """Otherwise ε would be under-reported, and noise used again on another sum."""
    config = make_config()
    start_and_stop(config, 2)
    ledger = folder(config) / "private/ledger"
    older = {file.name: file.read_bytes() for file in ledger.iterdir()}
    start_and_stop(config, 3, resume=True)
    newer = {file.name: file.read_bytes() for file in ledger.iterdir()}

    (ledger / "records.jsonl").write_bytes(older["records.jsonl"])
    with pytest.raises(LedgerError, match="its end is missing"):
        start(config, resume=True)
    (ledger / "head").write_bytes(older["head"])  # an old backup, whole
    with pytest.raises(LedgerError, match=r"result\.json tells of 3 noised sums"):
        start(config, resume=True)
    (folder(config) / "result.json").unlink()  # the checkpoint knows more, too
    with pytest.raises(LedgerError, match="older than the checkpoint"):
        start(config, resume=True)
    (ledger / "records.jsonl").unlink()
    with pytest.raises(LedgerError, match="what this run has spent"):
        start(config, resume=True)
    for name, content in newer.items():
        (ledger / name).write_bytes(content)
    assert start(config, resume=True)["charges"] == 4


def test_a_private_folder_put_back_from_a_backup_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Its checkpoints are as old as its ledger: gone on with, equal noise would meet two sums."""
    config = make_config(train={"checkpoint_every": 1})
    start_and_stop(config, 2)
    private = folder(config) / "private"
    shutil.copytree(private, tmp_path / "backup")
    start_and_stop(config, 3, resume=True)
    shutil.rmtree(private)
    shutil.copytree(tmp_path / "backup", private)
    with pytest.raises(LedgerError, match="older copy"):
        start(config, resume=True)


def test_a_run_that_goes_on_takes_back_what_it_said_of_its_end(make_config: MakeConfig) -> None:
    """Else a crash would leave a result with less ε than the ledger knows."""
    config = make_config()
    start_and_stop(config, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepNoises, "of", power_cut)
        with pytest.raises(PowerCut):
            start(config, resume=True)
    result = json.loads((folder(config) / "result.json").read_text())
    assert (result["status"], result["epsilon"], result["charges"]) == ("running", None, 2)
    assert start(config, resume=True)["charges"] == 4


def test_more_steps_are_remembered(make_config: MakeConfig) -> None:
    """Resumed as it was started: the larger budget holds, is told, and is what is published."""
    config = make_config(privacy={"epsilon": 2.0, "noise_multiplier": None})
    start_and_stop(config, 2)
    larger = make_config(privacy={"epsilon": 9.0, "noise_multiplier": None, "steps": 6})
    start_and_stop(larger, 3, resume=True)
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    result = run_module.run_training(
        config, resume=True, callbacks=[TerminalProgress(console)]
    ).dump()
    assert "privacy.steps: 6, as the run was given" in shown.getvalue()
    assert (result["status"], result["steps"]) == ("finished", 6)
    published = yaml.safe_load((folder(config) / "release/config.yaml").read_text())["privacy"]
    assert (published["steps"], published["epsilon"]) == (6, None)
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert published["noise_multiplier"] == statement["noise_multiplier"]


def test_a_crash_between_a_checkpoint_and_its_record_in_a_block(make_config: MakeConfig) -> None:
    """The checkpoint must not name a record that the crash takes: the ledger is not to blame."""
    config = make_config(train={"checkpoint_every": 2, "charge_every": 4}, privacy={"steps": 8})
    records = folder(config) / "private/ledger/records.jsonl"
    head = records.parent / "head"
    kept: list[bytes] = []

    def cut(self: Ledger, *_: str) -> None:
        self._chain._failed = True  # the process is gone: nothing is written any more
        raise PowerCut

    def note(self: Ledger, *arguments: Any) -> None:
        charge(self, *arguments)
        kept[:] = [records.read_bytes(), head.read_bytes()]

    charge = Ledger._append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "add_checkpoint", cut)
        patch.setattr(
            Ledger,
            "_append",
            lambda self, kind, content, durable=True: (
                note(self, kind, content) if durable else charge(self, kind, content, durable=False)
            ),
        )
        with pytest.raises(PowerCut):
            start(config)
    assert len(checkpoints(config)) == 1
    records.write_bytes(kept[0])  # a power cut takes what was not synced
    head.write_bytes(kept[1])
    result = start(config, resume=True)
    assert result["status"] == "finished"
    assert (result["charges"], result["steps"]) == (8, 5)


def test_lost_checkpoints_are_told(make_config: MakeConfig) -> None:
    """To begin again silently would spend the budget on nothing."""
    config = make_config(train={"checkpoint_every": 1})
    start_and_stop(config, 3)
    before = charged(config)
    for file in checkpoints(config):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"no readable checkpoint.*ledger is intact"):
        start(config, resume=True)
    assert charged(config) == before
    assert RunDirectory.of(config).read_ledger().charges == 3


def flip_a_bit(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-9], lambda _: b""])
def test_a_damaged_checkpoint_is_passed_over_at_no_cost(
    make_config: MakeConfig, damage: Callable[[bytes], bytes]
) -> None:
    settings = {"privacy": {"steps": 6}, "train": {"checkpoint_every": 1}}
    whole = make_config(name="whole", **settings)
    start(whole)
    config = make_config(name="damaged", **settings)
    start_and_stop(config, 4)
    newest = checkpoints(config)[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    result = start(config, resume=True)
    assert StartNote.read(RunDirectory.of(config).private).line == (
        "continues after step 3 of 6 (1 newer checkpoint is damaged or missing); step 4 is "
        "repeated at no cost"
    )
    assert (result["steps"], result["charges"]) == (6, 6)
    assert same(released(whole), released(config))


def test_an_orphan_is_removed_and_never_gone_on_from(make_config: MakeConfig) -> None:
    """A checkpoint that a crash kept from the ledger, a torn one, and one of another run."""
    config = make_config(train={"checkpoint_every": 1}, privacy={"steps": 6})
    start_and_stop(config, 3)
    newest = checkpoints(config)[-1]
    state = Checkpoint.from_bytes(newest.read_bytes())
    orphan = replace(state, step=5, params=state.params + 100)
    (newest.parent / "checkpoint_00000005_aaaaaaaa.pt").write_bytes(orphan.to_bytes())
    (newest.parent / "checkpoint_00000004_bbbbbbbb.pt").write_bytes(newest.read_bytes()[:999])
    (newest.parent / ".checkpoint_00000004_cccccccc.pt.17").write_bytes(b"PK")
    result = start(config, resume=True)
    assert (result["steps"], result["charges"]) == (6, 6)
    assert all(float(t.abs().max()) < 50 for t in released(config).values())
    assert [f.name[:19] for f in checkpoints(config)] == ["checkpoint_00000006"]


def test_a_finished_run_keeps_its_newest_checkpoint(make_config: MakeConfig) -> None:
    """It can be given more steps; a stopped one keeps another, should that be damaged."""
    config = make_config(train={"checkpoint_every": 1}, privacy={"steps": 4})
    start_and_stop(config, 3)
    assert len(checkpoints(config)) == 2
    start(config, resume=True)
    assert [f.name[:19] for f in checkpoints(config)] == ["checkpoint_00000004"]
    more = make_config(train={"checkpoint_every": 1}, privacy={"steps": 5})
    assert start(more, resume=True)["charges"] == 5


def test_older_checkpoints_stay_beside_one_that_is_damaged(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    ledger = SimpleNamespace(checkpoints={}, position="")
    ledger.add_checkpoint = ledger.checkpoints.__setitem__
    kept = Checkpoints(folder, cast(Ledger, ledger), bytes(32))
    vector = torch.zeros(3)
    for step in (1, 2):
        kept.save(Checkpoint(step, vector, None, {}, None, 1.0, ""))
    older, newest = folder.names()
    folder.write(newest, flip_a_bit(folder.read(newest)))
    kept.keep_newest()
    assert folder.names() == [older, newest]


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    state = Checkpoint(3, torch.zeros(2), None, {}, None, 1.0, "p")
    assert Checkpoint.from_bytes(state.to_bytes()).step == 3
    for content in (pickle.dumps(Evil()), b"", b"PK", state.to_bytes()[:-50]):
        with pytest.raises(ValueError, match=r"no checkpoint|zip|archive|PytorchStreamReader"):
            Checkpoint.from_bytes(content)
    buffer = io.BytesIO()
    torch.save({"step": Evil()}, buffer)
    with pytest.raises(ValueError, match=r"[Uu]nsupported|weights_only|WeightsUnpickler"):
        Checkpoint.from_bytes(buffer.getvalue())
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("first", "more", "planned"),
    [
        ({"noise_multiplier": 1.0, "steps": 4}, {"steps": 6}, 6),
        ({"epsilon": 2.0, "noise_multiplier": None, "steps": 4}, {"epsilon": 9.0, "steps": 6}, 6),
        ({"epsilon": 1.36, "noise_multiplier": 1.0, "steps": None}, {"epsilon": 1.44}, None),
    ],
)
def test_more_steps_may_be_given(
    make_config: MakeConfig, first: dict[str, Any], more: dict[str, Any], planned: int | None
) -> None:
    """To a stopped run and to a finished one, at the noise that it has."""
    first = {**first, "accountant": "rdp"}
    config = make_config(privacy=first)
    before = start_and_stop(config, 2) if planned is None else start(config)
    larger = make_config(privacy={**first, **more})
    result = start(larger, resume=True)
    plan = RunDirectory.of(config).read_ledger().plan
    assert result["status"] == "finished"
    assert result["steps"] == result["charges"] == plan.steps > make_plan(config).steps
    assert plan.steps == planned or planned is None
    assert result["epsilon"] == pytest.approx(plan.epsilon)
    assert result["epsilon"] > before["epsilon"]
    assert len(charged(config)) == len(set(charged(config)))
    with pytest.raises(RunError, match="finished run"):
        start(larger, resume=True)


def test_more_steps_are_shown_with_their_epsilon_before_any_is_taken(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(make_config(privacy={"steps": 4}))
    larger = make_config(privacy={"steps": 6})
    shown = io.StringIO()
    monkeypatch.setattr("dp_ray.api.train.train_in_process", lambda _task, _observer: None)
    run_module.run_training(
        larger, resume=True, callbacks=[TerminalProgress(Console(file=shown, width=200))]
    )
    assert "raised from 4 to 6" in shown.getvalue()
    assert f"{make_plan(larger).epsilon:.4f} at δ" in shown.getvalue()
    assert charged(larger) == [(step, 0) for step in range(4)]


@pytest.mark.parametrize(
    ("first", "then", "field", "words"),
    [
        ({"steps": 4}, {"steps": 3}, "privacy.steps", "not fewer"),
        (
            {"epsilon": 2.0, "noise_multiplier": None, "steps": 4},
            {"steps": 6},
            "privacy.epsilon",
            "To accept that, set privacy.epsilon to",
        ),
        ({"steps": 4}, {"noise_multiplier": 1.5, "steps": 6}, "privacy.noise_multiplier", "noise"),
    ],
)
def test_a_changed_budget_that_is_refused_names_the_field(
    make_config: MakeConfig, first: dict[str, Any], then: dict[str, Any], field: str, words: str
) -> None:
    start_and_stop(make_config(privacy=first), 2)
    with pytest.raises(ConfigError, match=words) as found:
        start(make_config(privacy={**first, **then}), resume=True)
    assert found.value.field == field


def test_more_steps_than_a_schedule_was_laid_out_for_are_refused(make_config: MakeConfig) -> None:
    """Its learning rate would rise again after the end."""
    optimizer = {"scheduler": "CosineAnnealingLR"}
    start_and_stop(make_config(optimizer=optimizer), 2)
    with pytest.raises(ConfigError, match="laid out for 4 steps"):
        start(make_config(optimizer=optimizer, privacy={"steps": 6}), resume=True)


def test_threads_are_kept_on_resume(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number would round sums otherwise, and each replay would be charged."""
    cluster = {"num_workers": 0, "threads_per_worker": None}
    config = make_config(cluster=cluster, train={"checkpoint_every": 100})
    monkeypatch.setattr("dp_ray.performance.threads.usable_cores", lambda: 1)
    crash(config, at_step=2)
    monkeypatch.setattr("dp_ray.performance.threads.usable_cores", lambda: 7)
    result = start(config, resume=True)
    assert result["charges"] == 4
    executions = [s.execution for s in RunDirectory.of(config).read_ledger().sessions]
    assert [e.threads for e in executions] == [1, 1]


def test_a_run_in_use_is_refused_until_the_lock_is_broken(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp_ray.training.opening.OWNER_ENDS_S", 0.0)
    config = make_config()
    start_and_stop(config, 2)
    holder = RunDirectory.of(config).write_ledger("elsewhere")
    with pytest.raises(LedgerError, match=f"process {os.getpid()}.*--break-lock"):
        start(config, resume=True)
    assert start(config, resume=True, break_lock=True)["charges"] == 4
    with pytest.raises(LedgerError, match="taken over"):
        holder.add_checkpoint("x", "y")
    holder.close()


def fill_disk(patch: pytest.MonkeyPatch, part: str) -> None:
    """Whatever has ``part`` in its path can no longer be opened for writing."""
    original = os.open

    def full(path: Any) -> None:
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            full(path)
        return original(path, flags, mode, **kwargs)

    patch.setattr(os, "open", refuse)


@pytest.mark.parametrize("part", ["checkpoint_0", "result.json", ".release.", "progress.json"])
def test_a_full_disk_is_told_and_costs_nothing(make_config: MakeConfig, part: str) -> None:
    whole = make_config(name="whole", **SIX_STEPS)
    start(whole)
    config = make_config(name="full", **SIX_STEPS)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, part)
        with pytest.raises(RunError, match="No space left on device"):
            start(config)
    run = RunDirectory.of(config)
    assert not (folder(config) / "release").exists() or part == "result.json"
    assert run.read_ledger().charges in (1, 3, 6)
    result = start(config, resume=True)
    assert (result["status"], result["charges"]) == ("finished", 6)
    assert same(released(whole), released(config))


def test_epsilon_is_what_the_accountant_says_of_the_ledger(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A solver that would answer otherwise today does not reprice yesterday's charges."""
    config = make_config(privacy={"noise_multiplier": None, "epsilon": 1.0})
    start_and_stop(config, 3)
    doubled = replace(make_plan(config), noise_multiplier=2 * make_plan(config).noise_multiplier)
    monkeypatch.setattr("dp_ray.training.opening.make_plan", lambda _config: doubled)
    result = start(config, resume=True)
    assert result["epsilon"] == pytest.approx(make_plan(config).epsilon)


def test_a_missing_run_key_is_told(make_config: MakeConfig) -> None:
    config = make_config()
    start_and_stop(config, 2)
    (folder(config) / "private/run_key").unlink()
    with pytest.raises(RunError, match=r"run_key.*backup"):
        start(config, resume=True)


def test_a_schedule_laid_out_for_fewer_steps_is_refused_before_more_are_charged(
    make_config: MakeConfig,
) -> None:
    cycle = {"scheduler": "OneCycleLR", "scheduler_arguments": {"max_lr": 1.0, "total_steps": 4}}
    config = make_config(optimizer=cycle)
    start(config)
    longer = make_config(optimizer=cycle, privacy={"steps": 6})
    with pytest.raises(ConfigError, match=r"optimizer\.scheduler_arguments.*fails at step 5 of 6"):
        start(longer, resume=True)
    assert RunDirectory.of(config).read_ledger().plan.steps == 4
    assert len(charged(config)) == 4


@pytest.mark.parametrize("solved", ["epsilon", "noise_multiplier", "steps"])
def test_a_repair_beyond_the_plan_names_the_steps_that_lead_out(
    make_config: MakeConfig, solved: str
) -> None:
    """Nothing can be released under a plan that does not cover what was charged."""
    budget = {"epsilon": 1.6, "noise_multiplier": 0.99, "steps": 6} | {solved: None}
    shared = {"train": {"charge_every": 4}}
    config = make_config(privacy=budget, **shared)
    planned = make_plan(config).steps
    start_and_stop(config, planned - 1)
    with (folder(config) / "private/ledger/records.jsonl").open("ab") as records:
        records.write(b"torn")
    repair_ledger(str(folder(config)))
    before = RunDirectory.of(config).read_ledger().charges
    assert before > planned
    with pytest.raises(DpRayError) as found:
        start(config, resume=True)
    assert "the ledger was repaired" in str(found.value)
    assert isinstance(found.value, ConfigError)
    assert found.value.field == "privacy.steps"
    assert (folder(config) / "release").exists() is False
    wanted = re.findall(r"privacy\.(\w+) to ([\d.]+) or more", found.value.remedy)
    assert [name for name, _ in wanted] == [n for n in ("steps", "epsilon") if budget[n]]
    larger = {name: int(value) if name == "steps" else float(value) for name, value in wanted}
    result = start(make_config(privacy=budget | larger, **shared), resume=True)
    assert result["status"] == "finished"
    assert result["charges"] >= before
    assert json.loads((folder(config) / "release/privacy.json").read_text())["charges"] >= before


def test_a_repair_beyond_a_plan_that_cannot_grow_says_so(make_config: MakeConfig) -> None:
    options = {"scheduler": "CosineAnnealingLR"}
    config = make_config(optimizer=options, train={"charge_every": 4})
    start_and_stop(config, 3)
    with (folder(config) / "private/ledger/records.jsonl").open("ab") as records:
        records.write(b"torn")
    repair_ledger(str(folder(config)))
    with pytest.raises(ConfigError, match=r"Start a new run with another --name"):
        start(config, resume=True)
