"""A run in one process: what it leaves behind, what it refuses, what it learns."""

from __future__ import annotations

import gzip
import json
import stat
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from helpers.support import MakeConfig, folder, released, same, start
from rich.console import Console
from torch import Tensor

from dp_ray.api.train import run_training
from dp_ray.artifacts.checkpoint import Checkpoint, Checkpoints
from dp_ray.artifacts.claim import REPLAYED
from dp_ray.artifacts.public_config import public_config
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.errors import ConfigError, ModelError, RunError
from dp_ray.models.build import build_model
from dp_ray.performance.profile import PARTS
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.local import NullObserver, train_in_process
from dp_ray.training.preparation import make_plan
from dp_ray.training.task import Task


def test_a_run_leaves_what_it_says(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"ema_decay": 0.9})
    result = start(config)
    run = folder(config)
    assert sorted(p.name for p in run.iterdir()) == ["private", "release", "result.json"]
    assert sorted(p.name for p in (run / "release").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
        "privacy.json",
    ]
    assert json.loads((run / "result.json").read_text()) == result
    assert (result["status"], result["steps"], result["charges"]) == ("finished", 4, 4)
    assert stat.S_IMODE((run / "private").stat().st_mode) == 0o700
    for name in (
        "run_key",
        "ledger/records.jsonl",
        "config.yaml",
        "metrics.jsonl",
        "progress.json",
    ):
        assert stat.S_IMODE((run / "private" / name).stat().st_mode) == 0o600

    statement = json.loads((run / "release/privacy.json").read_text())
    plan = make_plan(config)
    assert statement["epsilon"] == pytest.approx(plan.epsilon)
    assert statement["sample_rate"] == 64 / 1437
    assert (statement["steps"], statement["views"], statement["max_grad_norm"]) == (4, 2, 1.0)
    assert statement["epsilon_by_accountant"]["rdp"] == statement["epsilon"]
    assert statement["unit_of_privacy"]
    assert statement["assumptions"]
    assert (statement["warning"], statement["replay"]) == (REPLAYED, True)  # as tests' runs are
    assert list((run / "private/tensorboard").glob("events.*"))


def test_nothing_private_is_released(make_config: MakeConfig, tmp_path: Path) -> None:
    """No key, no path, no training loss, no norm, no realised batch size."""
    config = make_config(seed=987654321)
    start(config)
    run = folder(config)
    key = RunDirectory.of(config).key().secret.hex()
    files = ("privacy.json", "config.yaml", "README.md")
    texts = [(run / "release" / file).read_text().replace("\\", "") for file in files]
    for text in [*texts, (run / "result.json").read_text()]:
        for secret in (key, "loss", "norms", "clipped_fraction"):
            assert secret not in text.replace("test_loss", "")
    for text in texts:
        assert str(tmp_path) not in text
    assert key in (run / "private/run_key").read_text()
    # A seed is no secret: what follows from it may be known.
    assert yaml.safe_load((run / "release/config.yaml").read_text())["seed"] == 987654321


def test_the_published_configuration_leads_neither_to_noise_nor_to_data(
    make_config: MakeConfig,
) -> None:
    config = make_config(data={"root": "/home/me/patients"}, cluster={"address": "10.0.0.1:6379"})
    published = public_config(config)
    text = json.dumps(published)
    for secret in ("patients", "10.0.0.1", config.train.storage_path):
        assert secret not in text
    assert parse_config(published).privacy == config.privacy


def test_a_taken_name_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    start(config)
    before = released(config)
    with pytest.raises(RunError, match=r"finished run.*choose another --name"):
        start(config)
    with pytest.raises(RunError, match="finished run"):
        start(config, resume=True)
    assert same(before, released(config))


def test_a_key_that_is_repeated_with_another_configuration_gives_other_noise(
    make_config: MakeConfig,
) -> None:
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
    again = evaluate_run(str(folder(config)), []).figures
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
    text = (folder(config) / "release/privacy.json").read_text()
    assert "Infinity" not in text


def test_a_mistake_leaves_no_run_behind(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="delta"):
        start(make_config(privacy={"delta": 0.5}))
    config = make_config(data={"name": "mnist", "root": "/nowhere/at/all"}, privacy={"delta": 1e-6})
    with pytest.raises(ConfigError, match=r"data\.root"):
        start(config)
    assert not folder(config).exists()


def test_a_folder_that_cannot_be_written_is_told(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = make_config(train={"storage_path": str(tmp_path / "file")})
    with pytest.raises(RunError, match=r"train\.storage_path"):
        start(config)


def test_evaluate_agrees_with_training(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"ema_decay": 0.5})
    result = start(config)
    found = evaluate_run(str(folder(config)), []).figures
    assert found["test_accuracy"] == result["test_accuracy"]
    assert found["test_loss"] == pytest.approx(result["test_loss"])
    low, high = found["interval_95"]
    assert low < found["test_accuracy"] < high
    # The release folder alone is enough, wherever it was copied.
    alone = evaluate_run(str(folder(config) / "release"), []).figures
    assert alone["test_accuracy"] == found["test_accuracy"]


@pytest.mark.parametrize("declared", ["public", "held_out"])
def test_the_statement_says_what_data_the_accuracy_is_of(
    make_config: MakeConfig, declared: str
) -> None:
    config = make_config(data={"evaluation": declared}, privacy={"steps": 1})
    start(config)
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert statement["data_evaluation"] == declared
    assert any("data_evaluation" in text for text in statement["assumptions"])


def test_evaluate_tells_what_is_missing(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        evaluate_run(str(tmp_path), [])
    config = make_config()
    start(config)
    (folder(config) / "release/model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="cannot be loaded"):
        evaluate_run(str(folder(config)), [])


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_follows_the_noised_parameters(make_config: MakeConfig, decay: float) -> None:
    """It is a function of releases, warmed up by min(μ, (1+t)/(10+t)), and is what is released."""
    config = make_config(optimizer={"ema_decay": decay}, train={"checkpoint_every": 1})
    seen: list[Checkpoint] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda _self, found: seen.append(found))
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


@pytest.mark.slow
def test_training_learns_without_noise(make_config: MakeConfig) -> None:
    config = make_config(
        data={"expected_batch_size": 256},
        augment={"views": 1, "rotation": 0.0, "shift": 0.0, "subpixel": False},
        privacy={"noise_multiplier": 0.0, "steps": 40},
        optimizer={"lr": 2.0},
    )
    task = Task(config, make_plan(config), RunDirectory.of(config), "test")
    task.run.create(config, task.plan)
    train_in_process(task, NullObserver())
    accuracy = Result.read(task.run.root).metrics["test_accuracy"]
    assert accuracy > 0.85


def test_a_profile_is_private_and_can_be_opened(make_config: MakeConfig) -> None:
    config = make_config(train={"microbatch_size": 16})
    run_training(config, profile=True)
    left = folder(config) / "private/profile"
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    with gzip.open(left / "rank0.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {f"dp_ray {part}" for part in PARTS} <= names
    lines = (left / "rank0.txt").read_text().splitlines()[1:]
    seconds = {line[:12].strip(): float(line.split()[-2]) for line in lines}
    assert list(seconds) == list(PARTS)
    assert 0 < seconds["gradients"] < 60
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.1)


def test_without_being_asked_nothing_is_traced(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 2})
    start(config)
    assert not (folder(config) / "private/profile").exists()


def test_the_engine_is_told_once_and_is_what_was_used(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 1}, train={"engine": "per_layer", "microbatch_size": 16})
    told, logged = StringIO(), StringIO()
    terminal = Console(file=told, width=200, force_terminal=True)
    run_training(config, callbacks=[TerminalProgress(terminal)])
    assert told.getvalue().count("engine per_layer, 16 examples a microbatch\n") == 1
    again = config.model_copy(update={"name": "again"})
    run_training(again, callbacks=[TerminalProgress(Console(file=logged, width=200))])
    assert not logged.getvalue()
