"""``dp_ray.train`` within a Ray session of the user's own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import ray
from helpers.shared_ray import SharedRay
from helpers.support import MakeConfig

import dp_ray
from dp_ray.config.yaml_text import read_yaml
from dp_ray.errors import RunError

MODULE = """
from torch import nn

def build(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_classes))
"""


class Evaluations(dp_ray.Callback):
    def __init__(self, *, fail: bool = False) -> None:
        self.steps: list[int] = []
        self._fail = fail

    def on_evaluation(self, public: dp_ray.PublicValues, private: dp_ray.PrivateValues) -> None:
        self.steps.append(public.step)
        assert len(private.steps) == 1
        if self._fail:
            raise ValueError("of mine")


def test_it_joins_the_session_and_leaves_it_as_it_is(
    make_config: MakeConfig, shared_ray: SharedRay
) -> None:
    """A function that can be imported travels; callbacks stay here, and miss nothing."""
    (shared_ray.folder / "net_of_mine.py").write_text(MODULE)
    build = importlib.import_module("net_of_mine").build
    session = ray.get_runtime_context().gcs_address
    evaluations = Evaluations()
    config = make_config(
        cluster={"num_workers": 1}, train={"evaluate_every": 1}, privacy={"steps": 3}
    )
    run = dp_ray.train(config, model=build, callbacks=[evaluations])
    assert (run.status, evaluations.steps) == ("finished", [1, 2, 3])
    assert ray.is_initialized()
    assert ray.get_runtime_context().gcs_address == session
    published = read_yaml(Path(run.release, "config.yaml").read_text())
    assert published["model"]["name"] == "net_of_mine:build"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_callback_that_fails_stops_the_workers(make_config: MakeConfig) -> None:
    config = make_config(
        cluster={"num_workers": 1},
        train={"evaluate_every": 1},
        privacy={"steps": 10_000},
        augment={"views": 1},
    )
    with pytest.raises(RunError, match=r"Evaluations.on_evaluation failed: ValueError: of mine"):
        dp_ray.train(config, callbacks=[Evaluations(fail=True)])
    run = dp_ray.open_run(str(Path(config.train.storage_path, config.name)))
    assert run.status == "stopped"
    assert 0 < run.result.charges == run.result.steps < 10_000
