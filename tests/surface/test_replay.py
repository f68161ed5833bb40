"""Draws and noise come from the operating system; a seed decides what may be known.

Only the recorded key of a run repeats it, and what repeats says so.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.interrupted import start_and_stop
from helpers.searches import MakeSweep, begin, draw
from helpers.support import MakeConfig, folder, key_of, released, same, start
from torch import Tensor
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.api.train import run_training
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.run_key import read_replay_key
from dp_ray.auditing.directory import AuditDirectory, AuditSettings
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, RunError
from dp_ray.ledger.ledger import Ledger
from dp_ray.search.search import Search
from dp_ray.training import lead as lead_module
from dp_ray.training.preparation import make_plan

NETWORK = """\
from torch import nn

def build(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.{activation}(), nn.Linear(32, 10))
"""


def train(config: Config) -> dict[str, Tensor]:
    """What a run releases that draws its own key, as users' runs do."""
    run_training(config)
    return released(config)


def vector(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_a_seed_decides_the_initial_parameters(make_config: MakeConfig) -> None:
    """A step with this learning rate changes no bit of a weight."""
    still = {"optimizer": {"lr": 1e-30}, "privacy": {"steps": 1}}
    first, again, other = (
        train(make_config(name=name, seed=seed, **still))
        for name, seed in (("first", 5), ("again", 5), ("other", None))
    )
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_runs_of_one_seed_share_no_noise_though_their_code_differs(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one noise on the sums of two networks, the difference would show them without it."""
    monkeypatch.syspath_prepend(tmp_path)
    changes, keys = [], []
    for activation in ("Tanh", "Sigmoid"):
        module = f"edited_{activation.lower()}"
        (tmp_path / f"{module}.py").write_text(NETWORK.format(activation=activation))
        config = make_config(
            name=activation,
            model={"name": f"{module}:build"},
            privacy={"noise_multiplier": 1000.0, "steps": 1},
            optimizer={"lr": 64.0},
            seed=7,
        )
        changes.append(vector(train(config)))
        keys.append(RunDirectory.of(config).key())
    assert keys[0].sampling_keys().to_bytes() != keys[1].sampling_keys().to_bytes()
    correlation = torch.corrcoef(torch.stack(changes))[0, 1]
    assert abs(float(correlation)) < 4 / len(changes[0]) ** 0.5


def test_a_recorded_key_repeats_a_run_and_the_repetition_says_so(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first, second = (make_config(name=name, seed=None) for name in ("first", "second"))
    train(first)
    key_file = folder(first) / "private/run_key"
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(second.dump()))
    command = ["train", str(file), "--replay-key", str(key_file), "--json"]
    printed = CliRunner().invoke(cli.app, command, catch_exceptions=False).output
    assert same(released(first), released(second))
    assert "publish at most one of the two models" in printed
    assert json.loads(printed.splitlines()[-1])["replay"] is True
    for config, replay in ((first, False), (second, True)):
        statement = json.loads((folder(config) / "release/privacy.json").read_text())
        assert statement["replay"] is replay
        assert ("publish at most one" in (statement["warning"] or "")) is replay
        assert RunDirectory.of(config).is_replay() is replay
    # A key that was repeated once can be repeated again.
    assert read_replay_key(folder(second) / "private/run_key", None) == RunDirectory.of(first).key()


STARTS_ANYWHERE = """\
import os
import torch
from torch import nn

class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.register_buffer("gain", torch.tensor(float(os.environ["GAIN"])))

    def forward(self, images):
        return self.gain * super().forward(images)

def build(num_classes, channels, image_size):
    return Network()
"""


def test_a_repeated_key_shares_no_noise_with_another_start(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other initial parameters or another buffer, the sums would be others."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "starts_anywhere.py").write_text(STARTS_ANYWHERE)
    changes = []
    for number, (seed, gain) in enumerate([(1, "1.0"), (1, "1.0"), (2, "1.0"), (1, "2.0")]):
        monkeypatch.setenv("GAIN", gain)
        config = make_config(
            name=f"start-{number}",
            model={"name": "starts_anywhere:build"},
            privacy={"noise_multiplier": 1000.0, "steps": 1},
            optimizer={"lr": 64.0},
            seed=seed,
        )
        run_training(config, replay=key_of(5))
        found = released(config)
        del found["gain"]
        changes.append(vector(found))
    assert torch.equal(changes[0], changes[1])
    for other in changes[2:]:
        correlation = torch.corrcoef(torch.stack([changes[0], other]))[0, 1]
        assert abs(float(correlation)) < 4 / len(other) ** 0.5


def test_a_run_of_an_earlier_version_goes_on_with_the_key_that_it_had(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions do not say what the key was bound to: configuration, data and weights."""
    whole, stopped = make_config(name="whole"), make_config(name="stopped")
    append = Ledger._append

    def as_before(ledger: Ledger, kind: str, content: dict[str, Any], **how: bool) -> None:
        append(ledger, kind, {n: v for n, v in content.items() if n != "binding"}, **how)

    with monkeypatch.context() as patch:
        patch.setattr(lead_module, "_binding", lambda *_: None)
        patch.setattr(Ledger, "_append", as_before)
        start(whole)
        start_and_stop(stopped, 2)
    with suppress(RunError):  # another key could not even read the checkpoints
        start(stopped, resume=True)
    assert RunDirectory.of(stopped).finished()
    assert same(released(whole), released(stopped))
    assert RunDirectory.of(stopped).read_ledger().charges == 4
    assert [s.binding for s in RunDirectory.of(stopped).read_ledger().sessions] == [None, None]


def test_what_is_no_key_is_refused_and_a_run_goes_on_with_its_own(tmp_path: Path) -> None:
    for text in ("", "ab", "replay", "no key"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ConfigError, match=r"--replay-key = .*no run key.*private/run_key"):
            read_replay_key(tmp_path / "key", 5)
    with pytest.raises(ConfigError, match="No such file"):
        read_replay_key(tmp_path / "nowhere", 5)
    command = ["train", "configs/digits.yaml", "--resume", "--replay-key", "key"]
    refused = CliRunner().invoke(cli.app, command)
    assert refused.exit_code == 2
    assert "--replay-key" in refused.output


def test_a_seed_draws_trials_only_where_all_may_be_seen(make_sweep: MakeSweep) -> None:
    """In a private selection their number and points are secret, and a seed is not."""
    for mode, equal in (("compose", True), ("public", True), ("private_selection", False)):
        sweep = make_sweep({"seed": 3}, privacy_mode=mode, num_samples=9)
        found = [Search.draw(sweep, key_of(number)).points for number in (1, 2)]
        assert (found[0] == found[1]) is equal
    unseeded = make_sweep({"seed": None}, privacy_mode="compose")
    assert draw(unseeded).points != Search.draw(unseeded, key_of(6)).points


def test_trials_draw_keys_of_their_own_unless_their_search_is_a_replay(
    make_sweep: MakeSweep,
) -> None:
    search = begin(make_sweep(privacy_mode="compose"))
    directory = search.directory
    parts = [directory.replay_of(part) for part in ("trial 0000", "trial 0001", "trial 0000")]
    assert parts[0] == parts[2] != parts[1] != directory.key()
    assert search.points is not None
    keys = []
    for replay, name in ((True, "a"), (False, "b"), (False, "c")):
        directory.create(search.sweep, key_of(5), search.points, search.budgets, replay=replay)
        config, plan = search.trial(name, search.points[0])
        search.begin(RunDirectory.of(config), config, plan)
        assert RunDirectory.of(config).is_replay() is replay
        keys.append(RunDirectory.of(config).key().secret)
    assert keys[0] == key_of(5).derive("trial a")
    assert len({*keys, key_of(5).derive("trial b"), key_of(5).derive("trial c")}) == 5


def test_runs_of_an_audit_draw_keys_of_their_own_unless_it_is_a_replay(
    make_config: MakeConfig,
) -> None:
    settings = AuditSettings("gradient", 10, 0.05, 1)
    for name, replay in (("own", None), ("again", key_of(3))):
        directory = AuditDirectory.of(config := make_config(name=name))
        directory.create(config, settings, replay=replay)
        assert (directory.key() == key_of(3)) is (replay is not None)
        assert (directory.replay_of("run 0") is None) is (replay is None)


def test_a_run_whose_noise_followed_from_its_seed_is_not_resumed(make_config: MakeConfig) -> None:
    """As earlier versions started it: a release would name the seed."""
    config = make_config(seed=7)
    run = RunDirectory.of(config)
    run.create(config, make_plan(config), replay=key_of(7))
    run.private.write("run_key", f"{key_of(7).secret.hex()}\n".encode())
    with pytest.raises(ConfigError, match=r"seed = 7: .*noise followed from the seed"):
        run_training(config, resume=True)
    key = folder(config) / "private/run_key"
    with pytest.raises(ConfigError, match=r"seed = 7: .*noise followed from the seed"):
        read_replay_key(key, 7)
    assert read_replay_key(key, 8) == read_replay_key(key, None) == key_of(7)
