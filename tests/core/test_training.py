"""A run in one process: what it leaves, how it resumes, what it refuses."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from support import MakeConfig
from torch import Tensor

from dp_ray.cluster import local as local_module
from dp_ray.cluster import run as run_module
from dp_ray.cluster.local import train_in_process
from dp_ray.cluster.run import run_training
from dp_ray.config import Config, parse_config
from dp_ray.data.catalog import data_facts
from dp_ray.errors import ConfigError, LedgerError, ModelError, RunError
from dp_ray.models.build import build_model
from dp_ray.training import coordinator as coordinator_module
from dp_ray.training.checkpoint import Checkpoint, newest_in, save_in
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.journal import Journal
from dp_ray.training.plan import make_plan
from dp_ray.training.release import public_config
from dp_ray.training.run_directory import RunDirectory
from dp_ray.training.session import Task
from dp_ray.training.step import ShardSum, ShardWorker

QUIET = Console(quiet=True)


def start(config: Config, *, resume: bool = False) -> dict[str, Any]:
    return run_training(config, resume=resume, console=QUIET)


def released(config: Config) -> dict[str, Tensor]:
    return dict(load_file(RunDirectory.of(config).release / "model.safetensors"))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def start_and_stop(config: Config, before_step: int, *, resume: bool = False) -> dict[str, Any]:
    """Has a run stop as by Ctrl-C, before the given step."""

    def requested(journal: Journal) -> bool:
        return journal._step >= before_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "stop_requested", requested)
        return start(config, resume=resume)


class PowerCut(BaseException):
    """The process dies here."""


def crash(config: Config, at_step: int) -> None:
    """Starts a run that dies after the charge of a step and before its noise."""
    draw = coordinator_module.KeyedStream

    def cut(key: bytes, *, incarnation: int, step: int) -> Any:
        if step == at_step:
            raise PowerCut
        return draw(key, incarnation=incarnation, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator_module, "KeyedStream", cut)
        with pytest.raises(PowerCut):
            start(config)


def charged(config: Config) -> list[tuple[int, int]]:
    """(step, incarnation) of every charge in the run's ledger, in order."""
    text = RunDirectory.of(config).ledger.read_text()
    bodies = [json.loads(json.loads(line)["body"]) for line in text.splitlines()]
    return [(b["step"], b["incarnation"]) for b in bodies if b["kind"] == "charge"]


def test_a_run_leaves_what_it_says(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"ema_decay": 0.9})
    result = start(config)
    run = RunDirectory.of(config)
    assert sorted(p.name for p in run.path.iterdir()) == ["private", "release", "result.json"]
    assert sorted(p.name for p in run.release.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "privacy.json",
    ]
    assert json.loads(run.result.read_text()) == result
    assert (result["status"], result["steps"], result["charges"]) == ("finished", 4, 4)
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    for name in ("run_key", "ledger.jsonl", "config.yaml", "metrics.jsonl", "progress.json"):
        assert stat.S_IMODE((run.private / name).stat().st_mode) == 0o600

    statement = json.loads((run.release / "privacy.json").read_text())
    plan = make_plan(config)
    assert statement["epsilon"] == pytest.approx(plan.epsilon)
    assert statement["sample_rate"] == 64 / 1437
    assert (statement["steps"], statement["views"], statement["max_grad_norm"]) == (4, 2, 1.0)
    assert statement["epsilon_by_accountant"]["prv"] == statement["epsilon"]
    assert statement["unit_of_privacy"]
    assert statement["assumptions"]
    assert "seed" in statement["warning"]
    assert list((run.private / "tensorboard").glob("events.*"))


def test_nothing_private_is_released(make_config: MakeConfig, tmp_path: Path) -> None:
    """No key, no seed, no path, no loss, no norm, no realised batch size."""
    config = make_config(seed=987654321)
    start(config)
    run = RunDirectory.of(config)
    key = (run.private / "run_key").read_text().strip()
    texts = [p.read_text() for p in (run.release / "privacy.json", run.release / "config.yaml")]
    for text in [*texts, run.result.read_text()]:
        for secret in (key, "987654321", "loss", "norms", "clipped_fraction"):
            assert secret not in text
    for text in texts:
        assert str(tmp_path) not in text
    assert yaml.safe_load((run.release / "config.yaml").read_text())["seed"] is None


def test_the_published_configuration_leads_neither_to_noise_nor_to_data(
    make_config: MakeConfig,
) -> None:
    config = make_config(
        seed=5, data={"root": "/home/me/patients"}, cluster={"address": "10.0.0.1:6379"}
    )
    published = public_config(config)
    assert published["seed"] is None
    text = json.dumps(published)
    for secret in ("patients", "10.0.0.1", config.train.storage_path):
        assert secret not in text
    assert parse_config(published).privacy == config.privacy


def test_without_a_seed_runs_differ_and_no_warning_is_needed(make_config: MakeConfig) -> None:
    models = []
    for name in ("one", "two"):
        config = make_config(seed=None, name=name)
        start(config)
        models.append(released(config))
        statement = json.loads((RunDirectory.of(config).release / "privacy.json").read_text())
        assert (statement["warning"], statement["reproducible_from_seed"]) == (None, False)
    assert not same(*models)


def test_a_seed_makes_a_run_reproducible(make_config: MakeConfig) -> None:
    models = []
    for name in ("one", "two"):
        config = make_config(name=name)
        start(config)
        models.append(released(config))
    assert same(*models)


def test_a_taken_name_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    start(config)
    before = released(config)
    with pytest.raises(RunError, match=r"finished run.*choose another --name"):
        start(config)
    with pytest.raises(RunError, match="finished run"):
        start(config, resume=True)
    assert same(before, released(config))


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
        assert not RunDirectory.of(config).release.exists()
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
    found = newest_in(RunDirectory.of(config).checkpoints)
    assert found is not None
    assert found.step == 3
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
    result = start(changed, resume=True)
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
    original = ShardWorker.clipped_sum

    def shaken(self: ShardWorker, params: Tensor, *, step: int, incarnation: int) -> ShardSum:
        found = original(self, params, step=step, incarnation=incarnation)
        found.vector[0] += 1e-6
        return found

    monkeypatch.setattr(ShardWorker, "clipped_sum", shaken)
    result = start(config, resume=True)
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
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        start(make_config(**change), resume=True)


def test_resuming_on_other_data_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    start_and_stop(config, 2)
    run = RunDirectory.of(config)
    found = newest_in(run.checkpoints)
    assert found is not None
    values = {**vars(found), "data_digest": "other"}
    save_in(run.checkpoints, Checkpoint(**values))
    with pytest.raises(RunError, match="training data is not what"):
        start(config, resume=True)


def test_a_lost_or_shortened_ledger_is_refused(make_config: MakeConfig) -> None:
    """Otherwise ε would be under-reported, and noise used again on another sum."""
    config = make_config()
    start_and_stop(config, 3)
    ledger = RunDirectory.of(config).ledger
    text = ledger.read_text()
    ledger.write_text("".join(text.splitlines(keepends=True)[:-2]))
    with pytest.raises(LedgerError, match="older than the checkpoint"):
        start(config, resume=True)
    ledger.unlink()
    with pytest.raises(LedgerError, match="what this run has spent"):
        start(config, resume=True)
    ledger.write_text(text)
    assert start(config, resume=True)["charges"] == 4


def test_epsilon_is_what_the_accountant_says_of_the_ledger(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A solver that would answer otherwise today does not reprice yesterday's charges."""
    config = make_config(privacy={"noise_multiplier": None, "epsilon": 1.0})
    start_and_stop(config, 3)
    doubled = replace(make_plan(config), noise_multiplier=2 * make_plan(config).noise_multiplier)
    monkeypatch.setattr(run_module, "make_plan", lambda _config: doubled)
    result = start(config, resume=True)
    assert result["epsilon"] == pytest.approx(make_plan(config).epsilon)


def test_unreadable_checkpoints_are_not_begun_again(make_config: MakeConfig) -> None:
    config = make_config()
    start_and_stop(config, 2)
    for file in RunDirectory.of(config).checkpoints.glob("*/state.pt"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="no readable checkpoint"):
        start(config, resume=True)


def test_equal_seeds_do_not_mean_equal_noise(make_config: MakeConfig) -> None:
    """Two runs that differ in one field would otherwise cancel each other's noise."""
    changes = []
    for degrees in (0.0, 8.0):
        config = make_config(
            name=f"r{degrees}",
            augment={"rotation": degrees},
            privacy={"noise_multiplier": 1000.0, "steps": 1},
            optimizer={"lr": 64.0},
        )
        start(config)
        changes.append(torch.cat([t.flatten() for t in released(config).values()]))
    correlation = torch.corrcoef(torch.stack(changes))[0, 1]
    assert abs(float(correlation)) < 4 / len(changes[0]) ** 0.5


def test_tied_parameters_are_released_tied(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tied_model.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, channels, image_size):\n"
        "    a, b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    b.weight = a.weight\n"
        "    return nn.Sequential(nn.Flatten(), a, nn.Tanh(), b, nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(model={"name": "tied_model:build"})
    result = start(config)
    tensors = released(config)
    assert torch.equal(tensors["1.weight"], tensors["3.weight"])
    again = evaluate_run(RunDirectory.of(config).path, [])
    assert again["test_accuracy"] == result["test_accuracy"]


def test_a_layer_that_keeps_count_of_microbatches_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spectral_model.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, channels, image_size):\n"
        "    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(64, num_classes))\n"
        "    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="buffer"):
        start(make_config(model={"name": "spectral_model:build"}))


def test_without_noise_epsilon_is_null(make_config: MakeConfig) -> None:
    config = make_config(privacy={"noise_multiplier": 0.0, "steps": 1})
    assert start(config)["epsilon"] is None
    text = (RunDirectory.of(config).release / "privacy.json").read_text()
    assert "Infinity" not in text


def test_a_missing_run_key_is_told(make_config: MakeConfig) -> None:
    config = make_config()
    start_and_stop(config, 2)
    run = RunDirectory.of(config)
    (run.private / "run_key").unlink()
    with pytest.raises(RunError, match=r"run_key.*backup"):
        start(config, resume=True)


def test_a_mistake_leaves_no_run_behind(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="delta"):
        start(make_config(privacy={"delta": 0.5}))
    config = make_config(data={"name": "mnist", "root": "/nowhere/at/all"}, privacy={"delta": 1e-6})
    with pytest.raises(ConfigError, match=r"data\.root"):
        start(config)
    assert not RunDirectory.of(config).path.exists()


def test_a_folder_that_cannot_be_written_is_told(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = make_config(train={"storage_path": str(tmp_path / "file")})
    with pytest.raises(RunError, match=r"train\.storage_path"):
        start(config)


def test_evaluate_agrees_with_training(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"ema_decay": 0.5})
    result = start(config)
    found = evaluate_run(RunDirectory.of(config).path, [])
    assert found["test_accuracy"] == result["test_accuracy"]
    low, high = found["interval_95"]
    assert low < found["test_accuracy"] < high
    # The release folder alone is enough, wherever it was copied.
    alone = evaluate_run(RunDirectory.of(config).release, [])
    assert alone["test_accuracy"] == found["test_accuracy"]


def test_evaluate_tells_what_is_missing(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        evaluate_run(tmp_path, [])
    config = make_config()
    start(config)
    (RunDirectory.of(config).release / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="cannot be loaded"):
        evaluate_run(RunDirectory.of(config).path, [])


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    """A pickle that would run code is refused, and a torn newest one is passed over."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    state = Checkpoint(3, torch.zeros(2), None, {}, None, "d", "p")
    save_in(tmp_path, state)
    for step, content in ((7, pickle.dumps(Evil())), (8, b"")):
        folder = tmp_path / f"checkpoint_{step:08d}"
        folder.mkdir()
        (folder / "state.pt").write_bytes(content)
        with pytest.raises(RunError, match="no readable checkpoint"):
            Checkpoint.load(folder)
    assert not (tmp_path / "owned").exists()
    found = newest_in(tmp_path)
    assert found is not None
    assert found.step == 3


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_follows_the_noised_parameters(make_config: MakeConfig, decay: float) -> None:
    """It is a function of releases, warmed up by min(μ, (1+t)/(10+t)), and is what is released."""
    config = make_config(optimizer={"ema_decay": decay}, train={"checkpoint_every": 1})
    seen: list[Checkpoint] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_module, "save_in", lambda _root, found: seen.append(found))
        start(config)
    assert [found.step for found in seen] == [1, 2, 3, 4]
    average: Tensor | None = None
    for found in seen:
        assert found.average is not None
        weight = min(decay, found.step / (9 + found.step))
        if average is not None:
            average = weight * average + (1 - weight) * found.params
            torch.testing.assert_close(found.average, average)
        average = found.average
    names = released(config)
    flat = torch.cat([names[n].flatten() for n in make_names(config)])
    assert average is not None
    assert torch.equal(flat, average)


def make_names(config: Config) -> list[str]:
    """Parameter names in the order of the vector."""
    model = build_model(config.model, data_facts(config.data))
    return [name for name, _ in model.named_parameters()]


def test_training_learns_without_noise(make_config: MakeConfig) -> None:
    config = make_config(
        data={"expected_batch_size": 256},
        augment={"views": 1, "rotation": 0.0, "shift": 0.0, "subpixel": False},
        privacy={"noise_multiplier": 0.0, "steps": 40},
        optimizer={"lr": 2.0},
    )
    task = Task(config, make_plan(config), RunDirectory.of(config))
    task.run.create(config, task.plan)
    train_in_process(task)
    accuracy = task.run.read_result()["test_accuracy"]
    assert accuracy > 0.85
