"""Networks, data and objectives that are passed as Python objects: used, identified, refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.interrupted import stop_before
from helpers.support import MakeConfig, charged, released, same
from torch import Tensor, nn

import dp_ray
from dp_ray.api.objects import import_path_of
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, RunError
from dp_ray.models.networks import GroupNormCNN

RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 3
TEST = TRAIN[0][:9], TRAIN[1][:9]
FACTS = {"num_examples": 60, "num_classes": 3, "image_size": 8, "channels": 1}


class Net(nn.Module):
    """A network of the test's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("shift", torch.zeros(1))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) * self.scale + self.shift)
        return logits


class Smoothed(dp_ray.Classification):
    """Cross-entropy with smoothed labels."""

    smoothing = 0.1

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            outputs, labels, reduction="none", label_smoothing=self.smoothing
        )


def net(seed: int = 0, scale: float = 1.0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(scale)


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Of three classes, two steps."""
    return make_config(
        data={**FACTS, "expected_batch_size": 20},
        augment={"views": 1, "rotation": 0.0, "shift": 0.0, "subpixel": False},
        privacy={"steps": 2},
    )


def stopped(config: Config, **objects: Any) -> dp_ray.Run:
    """Train one of two steps."""
    with stop_before(1):
        run = dp_ray.train(config, **objects)
    assert (run.status, run.result.steps) == ("stopped", 1)
    return run


def test_objects_are_trained_evaluated_and_named_honestly(config: Config) -> None:
    network = net()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    objective = Smoothed(3)
    run = dp_ray.train(config, model=network, data=(TRAIN, TEST), objective=objective)
    assert same(before, dict(network.state_dict()))  # the user's own is left alone
    after = released(config)
    assert after.keys() == before.keys()
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert (run.status, run.result.steps, len(charged(config))) == ("finished", 2, 2)
    assert run.epsilon == run.statement.epsilon
    assert run.evaluate().metrics == run.metrics
    published = yaml.safe_load(Path(run.release, "config.yaml").read_text())
    names = {s: published[s]["name"] for s in ("model", "data", "objective")}
    assert set(names.values()) == {"<object>"}
    with pytest.raises(ConfigError, match=r"<object>.*passed as a Python object.*Pass it again"):
        dp_ray.evaluate(run.path)
    with pytest.raises(ConfigError, match="Pass it again"):
        dp_ray.open_run(run.path).evaluate()
    again = dp_ray.open_run(run.path, model=net(5), data=(TRAIN, TEST), objective=Smoothed)
    assert again.evaluate().accuracy == run.metrics["test_accuracy"]


def test_a_function_of_a_script_builds_the_network(config: Config) -> None:
    def build(num_classes: int, channels: int, image_size: int) -> nn.Module:
        assert (num_classes, channels, image_size) == (3, 1, 8)
        return net()

    found = dp_ray.plan(config, model=build, data=(TRAIN, None))
    assert found.parameters == sum(p.numel() for p in net().parameters())


def test_a_run_is_not_resumed_with_another_object(config: Config) -> None:
    objects = {"model": net(), "data": (TRAIN, TEST), "objective": Smoothed(3)}
    run = stopped(config, **objects)
    with pytest.raises(RunError, match="an object that was passed") as caught:
        dp_ray.train(config, **{**objects, "model": net(1)}, resume=True)
    assert "\n" not in str(caught.value)
    assert len(charged(config)) == 1
    # Equal ones, made anew, are the same.
    equal = {"model": net(), "data": (TRAIN, TEST), "objective": Smoothed(3)}
    assert dp_ray.train(config, **equal, resume=True).status == "finished"
    assert run.result.steps == 2


@pytest.mark.slow
def test_a_run_remembers_its_objects(config: Config) -> None:
    run = stopped(config, model=net(), data=(TRAIN, TEST))
    with pytest.raises(ConfigError, match="Pass it again"):
        dp_ray.open_run(run.path).resume()
    assert run.resume(["privacy.steps=3"]).result.steps == 3


def test_what_can_be_imported_is_named_by_its_path() -> None:
    assert import_path_of(GroupNormCNN) == "dp_ray.models.networks:GroupNormCNN"
    assert import_path_of(GroupNormCNN.forward) is None
    assert import_path_of(lambda: None) is None
    assert import_path_of(net()) is None
    script = type("Script", (nn.Module,), {"__module__": "__main__"})
    assert import_path_of(script) is None


def test_an_importable_factory_is_used_by_its_path_and_loads_anywhere(
    make_config: MakeConfig,
) -> None:
    config = make_config(privacy={"steps": 1}, data={"expected_batch_size": 8})
    run = dp_ray.train(config, model=GroupNormCNN)
    assert run.config.model.name == "dp_ray.models.networks:GroupNormCNN"
    assert dp_ray.evaluate(run.release, [f"data.cache={config.data.cache}"]).accuracy is not None


@pytest.mark.parametrize(
    "objects",
    [
        {"model": net()},
        {"model": lambda **_: net()},
        {"data": (TRAIN, TEST)},
        {"objective": Smoothed(3)},
    ],
    ids=["network", "lambda", "data", "objective"],
)
def test_an_object_that_cannot_travel_is_refused_before_anything_is_made(
    config: Config, objects: dict[str, Any]
) -> None:
    cluster = config.cluster.model_copy(update={"num_workers": 2})
    config = config.model_copy(update={"cluster": cluster})
    advice = r"cannot travel to Ray's workers.*in a module of its own.*or set cluster.num_workers"
    with pytest.raises(ConfigError, match=advice):
        dp_ray.train(config, **objects)
    assert not Path(config.train.storage_path).exists()
    sweep = dp_ray.load_sweep(
        {**config.dump(), "tune": {"space": {"augment.views": {"choice": [1, 2]}}}}
    )
    with pytest.raises(ConfigError, match="cannot travel"):
        dp_ray.tune(sweep, **objects)


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ({"model": "gn_cnn"}, r"model = 'gn_cnn': .*not str. a name goes into model.name"),
        ({"model": 3}, "a torch.nn.Module, or a function that builds one is expected, not int"),
        ({"data": "mnist"}, r"a pair \(train, test\).*data.name"),
        ({"objective": object()}, "a dp_ray.Objective.* is expected"),
        ({"model": lambda **_: 3}, "built no torch module"),
        ({"model": Net}, "unexpected keyword argument 'num_classes'"),
        ({"objective": lambda **_: net()}, "which has no"),
        ({"model": nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))}, "mixes"),
    ],
)
def test_what_is_no_network_or_data_is_refused_in_one_line(
    config: Config, objects: dict[str, Any], problem: str
) -> None:
    with pytest.raises(dp_ray.DpRayError, match=problem) as caught:
        dp_ray.plan(config, **{"data": (TRAIN, TEST), **objects})
    assert not re.search("\n", str(caught.value))
