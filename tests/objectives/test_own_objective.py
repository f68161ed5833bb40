"""Objectives of a user's own, through whole runs: the documented one, and one of several labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.oracle import loop_clipped_sum, loop_gradients
from helpers.pages import example
from helpers.searches import MakeSweep, draw
from helpers.shard_workers import at, workers
from helpers.support import MakeConfig, folder, start
from numpy.typing import NDArray
from torch import Tensor, nn

from dp_ray.api.audit import run_audit
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError, ModelError
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.registry import build_objective
from dp_ray.reporting.evaluation import describe_evaluation
from dp_ray.reporting.make import write_report
from dp_ray.reporting.summary import describe_result
from dp_ray.search.outcome import TrialOutcome, best_of
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.preparation import make_plan
from dp_ray.training.step import ShardWorker

CPU = torch.device("cpu")
TOP_TWO: dict[str, Any] = {"name": "my_objective:TopTwo", "arguments": {"smoothing": 0.2}}

FINDINGS = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from dp_ray.objectives.objective import LabelSpec, Objective

L = 5

class Findings(Objective):
    metrics = {"test_exact": "max", "test_loss": "min"}
    labels = LabelSpec(0, 1, (L,), "float32")
    output_shape = (L,)

    def losses(self, outputs, labels):
        losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return losses.mean(dim=1)

    def update(self, state, outputs, labels):
        exact = ((outputs > 0) == (labels > 0.5)).all(dim=1).sum()
        return state + torch.stack([exact, self.losses(outputs, labels).sum()]).double()

class Remembers(Findings):
    def losses(self, outputs, labels):
        self.seen = outputs.detach().mean()
        return super().losses(outputs, labels)

def make(num_classes):
    return Findings()

def make_remembering(num_classes):
    return Remembers()

def load(config, value=1):
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    labels = value * (images[:, 0, 0, :].mean(axis=1)[:, None] > 40 * np.arange(1, L + 1))
    return (images[:48], labels[:48]), (images[48:], labels[48:])

def load_twos(config):
    return load(config, 2)

def network(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig
) -> Callable[..., Config]:
    """Builds a configuration with several labels; keyword arguments replace fields."""
    (tmp_path / "my_objective.py").write_text(example("my_objective.py"))
    (tmp_path / "my_findings.py").write_text(FINDINGS)
    monkeypatch.syspath_prepend(tmp_path)

    def make(**sections: Any) -> Config:
        data = {
            "name": "my_findings:load",
            **{"num_examples": 48, "num_classes": 5, "image_size": 4, "channels": 1},
            "expected_batch_size": 16,
        }
        return make_config(
            data={**data, **sections.pop("data", {})},
            augment={"views": 2, "rotation": 0.0, "shift": 0.0},
            model={"name": "my_findings:network"},
            **{"objective": {"name": "my_findings:make"}, **sections},
        )

    return make


@pytest.mark.usefixtures("own")
def test_the_documented_objective_trains_and_is_evaluated(make_config: MakeConfig) -> None:
    config = make_config(objective=TOP_TWO, train={"evaluate_every": 2})
    result = start(config)
    metrics = {"test_top2": result["test_top2"], "test_loss": result["test_loss"]}
    assert 0 < metrics["test_top2"] <= 1
    assert "test_accuracy" not in result
    found = evaluate_run(str(folder(config)), []).figures
    assert {name: found[name] for name in metrics} == pytest.approx(metrics)
    assert found["test_examples"] == 360
    assert f"test top2     {metrics['test_top2']:.4f}" in describe_evaluation(found)
    assert f"test top2     {metrics['test_top2']:.4f}" in describe_result(
        Result.read(RunDirectory.of(config).root)
    )
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert {name: statement[name] for name in metrics} == metrics
    assert any("test_top2 and test_loss are exact" in a for a in statement["assumptions"])
    lines = (folder(config) / "private/metrics.jsonl").read_text().splitlines()
    assert sum("test_top2" in line for line in lines) == 2
    told = write_report(str(folder(config)), public=True, form="html", output=None)
    page = Path(told["report"]).read_text()
    assert f"its test_top2 is {metrics['test_top2']:.4f}" in page
    assert "Top2 over the steps" in page


@pytest.mark.usefixtures("own")
def test_a_run_is_resumed_with_its_own_objective(make_config: MakeConfig) -> None:
    start(make_config(objective=TOP_TWO, privacy={"steps": 1}))
    with pytest.raises(ConfigError, match=r"objective\.arguments.*started with .*0\.2"):
        start(make_config(privacy={"steps": 2}), resume=True)
    other = {**TOP_TWO, "arguments": {"smoothing": 0.3}}
    with pytest.raises(ConfigError, match=r"objective\.arguments.*started with .*0\.2"):
        start(make_config(objective=other, privacy={"steps": 2}), resume=True)
    more = start(make_config(objective=TOP_TWO, privacy={"steps": 2}), resume=True)
    assert (more["status"], more["steps"]) == ("finished", 2)


def test_a_run_from_before_there_was_a_choice_opens(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 1})
    first = start(config)
    for file in ("private/config.yaml", "release/config.yaml"):
        path = folder(config) / file
        values = yaml.safe_load(path.read_text())
        assert values.pop("objective") == {"name": "single_label", "arguments": {}}
        path.write_text(yaml.safe_dump(values))
    assert evaluate_run(str(folder(config)), []).figures["test_accuracy"] == first["test_accuracy"]
    more = start(make_config(privacy={"steps": 2}), resume=True)
    assert (more["status"], more["charges"]) == ("finished", 2)


@pytest.mark.usefixtures("own")
def test_a_search_compares_by_a_metric_of_its_objective(make_sweep: MakeSweep) -> None:
    def sweep(objective: dict[str, Any] = TOP_TWO, **tune: Any) -> Any:
        found = make_sweep(privacy_mode="compose", **tune)
        found.training["objective"] = objective
        return found

    searches = [
        draw(sweep()),
        draw(sweep(metric="test_loss")),
        draw(sweep(metric="test_loss", mode="max")),
        draw(make_sweep(privacy_mode="compose")),
    ]
    assert [(search.metric, search.mode) for search in searches] == [
        ("test_top2", "max"),
        ("test_loss", "min"),
        ("test_loss", "max"),
        ("test_accuracy", "max"),
    ]
    varied = {"objective.arguments.smoothing": {"choice": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match="cannot be searched: trials are compared by one"):
        draw(sweep(space=varied))
    for given, metric in ((sweep(metric="test_accuracy"), "test_accuracy"), (None, "test_top2")):
        with pytest.raises(ConfigError, match=rf"tune\.metric = '{metric}': the objective has no"):
            draw(given or make_sweep(privacy_mode="compose", metric=metric))
    losses: dict[str, float | None] = {"0000": 2.0, "0001": 1.0, "0002": None}
    outcomes = [
        TrialOutcome(
            **{"name": name, "status": "finished", "point": {}, "plan": None},  # type: ignore[arg-type]
            **{
                "charged": (),
                "history": (),
                "epsilon": 1.0,
                "steps": 1,
                "seconds": 1.0,
                "attempts": 1,
            },  # type: ignore[arg-type]
            error=None,
            metrics={"test_top2": 0.5, "test_loss": loss},
        )
        for name, loss in losses.items()
    ]
    for search, name in zip(searches[1:3], ("0001", "0000"), strict=True):
        best = best_of(search, outcomes)
        assert best is not None
        assert best.name == name


# Several labels


def test_several_labels_are_stored_trained_on_and_evaluated(own: Callable[..., Config]) -> None:
    config = own()
    result = start(config)
    assert 0 <= result["test_exact"] <= 1
    found = evaluate_run(str(folder(config)), []).figures
    assert found["test_exact"] == result["test_exact"]
    spec = build_objective(config.objective, 5).labels
    _, labels = open_dataset(config.data, spec).train.read(np.arange(48))
    assert labels.shape == (48, 5)
    assert labels.dtype == np.float32


@pytest.mark.parametrize("size", [5, 7])
def test_padding_spoils_no_label_of_several(own: Callable[..., Config], size: int) -> None:
    """With B = L a mask [B] fits the last dimension too, and would erase others' findings."""
    config = own(train={"microbatch_size": size})
    objective = build_objective(config.objective, 5)
    dataset = open_dataset(config.data, objective.labels)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    [worker] = workers(config, dataset, 1)
    worker = ShardWorker(
        **{
            **vars(worker),
            "model": network,
            "layout": ParameterLayout.of(network),
            "objective": objective,
        }
    )

    def would_be_noticed(drawn: NDArray[np.int64]) -> bool:
        """Whether padding follows, and there is a finding that it could erase."""
        rest = len(drawn) % size
        return rest > 0 and bool(dataset.train.read(drawn[-rest:])[1][:, rest:].any())

    step = next(at(i) for i in range(99) if would_be_noticed(worker.drawn(at(i))))
    drawn = worker.drawn(step)
    params = worker.layout.join(dict(network.named_parameters()))
    found = worker.layout.split(worker.clipped_sum(params, step).vector)
    images, labels = dataset.train.read(drawn)
    views = worker.views.normalize(torch.from_numpy(images))[:, None].expand(-1, 2, -1, -1, -1)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels.double())

    units = loop_gradients(network, views, torch.from_numpy(labels), loss_fn=loss)
    expected = loop_clipped_sum(units, torch.ones(len(drawn), dtype=torch.bool), 1.0)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objective": {"name": "single_label"}}, DataError, "train labels must be a row of whole"),
        (
            {"data": {"name": "my_findings:load_twos"}},
            ConfigError,
            "labels are out of range.*from 0 to 1",
        ),
        (
            {"data": {"name": "fake"}},
            DataError,
            r"train labels must be numbers of shape \('N', 5\)",
        ),
        ({"data": {"evaluation_noise": 3.0}}, ConfigError, r"data\.evaluation_noise.*counts none"),
        (
            {"objective": {"name": "my_findings:make_remembering"}},
            ModelError,
            r"objective\.name.*the objective \(Remembers\)\.seen depends on the examples",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    own: Callable[..., Config], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(own(**change))


def test_a_stateful_objective_is_refused_whatever_the_network(
    own: Callable[..., Config], make_config: MakeConfig
) -> None:
    data = own().data.model_dump()
    config = make_config(data=data, objective={"name": "my_findings:make_remembering"})
    with pytest.raises(ModelError, match=r"the objective \(Remembers\)\.seen"):
        make_plan(config)


def test_an_audit_refuses_labels_that_are_no_classes(own: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"objective\.name = 'my_findings:make'.*class indices"):
        run_audit(own())


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("kind", ["gradient", "mislabelled"])
def test_an_audit_plants_its_canaries_beside_another_loss(
    make_config: MakeConfig, kind: Any
) -> None:
    outcome = run_audit(make_config(objective=TOP_TWO), kind=kind, canaries=40)
    values = outcome.dump()
    assert values["status"] == "finished"
    assert not values["refuted"]
