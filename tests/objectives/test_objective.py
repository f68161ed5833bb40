"""The seam of objectives: what one is made of, and what is refused as none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.support import MakeConfig
from torch import Tensor

from dp_ray.artifacts.run_directory import deciding_fields
from dp_ray.config.model import ObjectiveConfig
from dp_ray.errors import ConfigError
from dp_ray.objectives.objective import LabelSpec, metrics_in, weighted_mean
from dp_ray.objectives.registry import build_objective
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.training.evaluation import evaluation_of
from dp_ray.training.preparation import make_plan

OWN = """
import torch
from dp_ray.objectives.objective import LabelSpec, Objective

class Own(Objective):
    metrics = {{"test_error": "min"}}
    labels = LabelSpec(0, 4)
    output_shape = (5,)

    def losses(self, outputs, labels):
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    def update(self, state, outputs, labels):
        return state + (outputs.argmax(dim=1) != labels).double().sum()

{change}

def make(num_classes):
    return Own()
"""


@pytest.mark.parametrize("views", range(1, 33))
def test_equal_weights_give_the_gradient_of_the_mean(views: int) -> None:
    losses = torch.randn(views, requires_grad=True)
    found = []
    for weights in (None, torch.full((views,), 1 / views)):
        [gradient] = torch.autograd.grad(weighted_mean(losses, weights), losses)
        found.append(gradient)
    assert torch.equal(*found)


def test_weights_are_those_of_the_sum() -> None:
    losses, weights = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0.5, 0.3, 0.2])
    assert float(weighted_mean(losses, weights)) == pytest.approx(0.5 + 3 + 20)


@pytest.mark.parametrize(
    ("spec", "labels", "taken"),
    [
        (LabelSpec(0, 2), [0, 2], True),
        (LabelSpec(0, 2), [0.0, 2.0], False),
        (LabelSpec(0, 2), [[0], [2]], False),
        (LabelSpec(0, 1, (2,), "float32"), [[0, 1], [1, 1]], True),
        (LabelSpec(0, 1, (2,), "float32"), [[0.5, 1.0]], True),
        (LabelSpec(0, 1, (2,), "float32"), [0, 1], False),
    ],
)
def test_a_specification_says_what_labels_are(
    spec: LabelSpec, labels: list[Any], taken: bool
) -> None:
    assert spec.takes(np.array(labels)) == taken
    made_up = spec.made_up(50, torch.Generator().manual_seed(0)).numpy()
    assert made_up.shape == (50, *spec.shape)
    assert made_up.dtype == spec.dtype
    assert spec.takes(made_up)
    assert spec.contains(made_up)
    assert not spec.contains(np.array(labels) + 5)
    assert not spec.contains(np.array([0.0, math.nan]))
    assert spec.contains(np.zeros((0, *spec.shape)))


def test_states_of_single_label_are_sums() -> None:
    """Whoever saw which examples, in whatever batches, the metrics are those of all of them."""
    objective, generator = SingleLabel(4), torch.Generator().manual_seed(1)
    outputs = torch.randn(30, 4, generator=generator)
    labels = torch.randint(4, (30,), generator=generator)
    states = []
    for part in (slice(0, 7), slice(7, 20), slice(20, 30)):
        states.append(objective.update(objective.new_state(), outputs[part], labels[part]))
    assert torch.stack(states).dtype == torch.float64
    found = evaluation_of(objective, torch.stack(states).sum(dim=0), 30)
    assert found.metrics["test_accuracy"] == float((outputs.argmax(1) == labels).double().mean())
    assert found.metrics["test_loss"] == pytest.approx(float(F.cross_entropy(outputs, labels)))
    assert found.examples == 30
    lost = objective.update(objective.new_state(), outputs * math.nan, labels)
    assert evaluation_of(objective, lost, 30).metrics["test_loss"] == math.inf


def test_the_loss_of_single_label_is_the_mean_cross_entropy() -> None:
    outputs, labels = torch.randn(5, 3), torch.tensor([2] * 5)
    objective = SingleLabel(3)
    assert torch.equal(objective.loss(outputs, labels), F.cross_entropy(outputs, labels))
    weights = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    expected = (F.cross_entropy(outputs, labels, reduction="none") * weights).sum()
    torch.testing.assert_close(objective.loss(outputs, labels, weights), expected)


def test_metrics_are_told_from_other_figures_by_their_names() -> None:
    values = {"step": 1, "test_f1": 0.5, "test_loss": None, "test_examples": 3, "epsilon": 2.0}
    assert metrics_in(values) == {"test_f1": 0.5, "test_loss": None}


REFUSED = {
    "no class": ("Own = int", "which has no labels"),
    "a member is missing": ("Own = type('Own', (Objective,), {})", "abstract methods? .*losses"),
    "name": ('Own.metrics = {"accuracy": "max"}', "named test_.*not accuracy"),
    "name of another figure": ('Own.metrics = {"test_examples": "max"}', "not test_examples"),
    "no metric": ("Own.metrics = {}", "named test_.*not nothing"),
    "direction": ('Own.metrics = {"test_error": "up"}', "max or min, not up"),
    "losses of a batch": ("Own.losses = lambda self, o, t: o.sum()", r"losses are \(\)"),
    "loss without weights": (
        "Own.loss = lambda self, o, t, weights=None: self.losses(o, t).mean()",
        "not the weighted sum",
    ),
    "another mean": (
        "Own.loss = lambda self, o, t, weights=None: self.losses(o, t).sum() if weights is None "
        "else (self.losses(o, t) * weights).sum()",
        "not the mean",
    ),
    "state": ("Own.update = lambda self, s, o, t: s.float()", "the state is torch.float32"),
    "metrics that differ": (
        'Own.compute = lambda self, s, n: {"test_other": 1.0}',
        "compute returns test_other, and metrics are test_error",
    ),
    "padding": (
        "Own.labels = LabelSpec(0, 4, padding=9)",
        r"losses do not accept labels\.padding = 9: IndexError",
    ),
    "it fails": ("Own.update = lambda self, s, o, t: s[9]", "fails on made-up outputs: IndexError"),
}


def own(tmp_path: Path, change: str) -> str:
    """The import path of an objective in a module of its own."""
    name = f"objective_{abs(hash((str(tmp_path), change)))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(change=change))
    return f"{name}:make"


def test_an_objective_of_ones_own_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = build_objective(ObjectiveConfig(name=own(tmp_path, "")), 5)
    state = found.update(found.new_state(), torch.eye(5), torch.tensor([0, 1, 2, 0, 0]))
    assert found.compute(state, 5) == {"test_error": pytest.approx(0.4)}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_objective_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    change, message = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"objective\.name = '.*:make'.*{message}"):
        build_objective(ObjectiveConfig(name=own(tmp_path, change)), 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "many_labels"}, "objective.name = 'many_labels': no such objective. .*single_la"),
        ({"name": "nowhere:make"}, "objective.name = 'nowhere:make': cannot be imported"),
        ({"arguments": {"classes": 3}}, r"objective.arguments = .*'classes'"),
    ],
)
def test_an_objective_that_cannot_be_built_is_refused_before_data_is_read(
    make_config: MakeConfig, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(make_config(objective=config))


def test_the_default_objective_leaves_the_keys_of_runs_as_they_were(
    make_config: MakeConfig,
) -> None:
    """The deciding fields are bound into the run key; earlier versions had no objective."""
    assert not any(field.startswith("objective") for field in deciding_fields(make_config()))
    other = deciding_fields(make_config(objective={"name": "my:make", "arguments": {"a": 1}}))
    assert (other["objective.name"], other["objective.arguments"]) == ("my:make", {"a": 1})


def test_padding_is_a_value_that_the_loss_accepts() -> None:
    def loss(padding: float) -> Tensor:
        labels = torch.full((2,), padding).long()
        return SingleLabel(3).loss(torch.zeros(2, 3), labels)

    assert loss(SingleLabel(3).labels.padding).isfinite()
