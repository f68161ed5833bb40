"""The configurations in configs/: they load, cost what their heads say, and take their images."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from helpers.networks import RGB, make, relative_error, trained
from helpers.oracle import loop_clipped_sum, loop_gradients

from dp_ray import clipped_gradient_sum
from dp_ray.config.files import load_config
from dp_ray.data.facts import data_facts
from dp_ray.models.build import build_model
from dp_ray.privacy.plan import solve_budget

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "sweeps")
ROWS = (1, 2, 3, 4, 6, 8)


def names() -> set[str]:
    return {str(path.relative_to(CONFIGS)) for path in RECIPES}


def test_the_rows_of_the_paper_are_there() -> None:
    nets = ("wrn_16_4", "wrn_40_4")
    assert {f"cifar10/{net}_eps{row}.yaml" for net in nets for row in ROWS} <= names()
    assert {"mnist.yaml", "fashion_mnist.yaml", "digits.yaml", "fine_tune.yaml"} <= names()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_the_head_says_what_it_costs(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    config = load_config(path)
    plan = solve_budget(config)
    expected = re.search(r"[Ee]xpected ε = (\d+\.\d+)", head)
    assert expected is not None, f"{path}: the head does not say «Expected ε = …»"
    digits = len(expected[1].split(".")[1])
    tolerance = 1e-3 if config.privacy.epsilon is not None else 0.6 * 10**-digits
    assert plan.epsilon == pytest.approx(float(expected[1]), abs=tolerance)
    assert "un here" in head  # «Run here», or «Not run here» and why
    if row := re.search(r"_eps(\d)", path.name):
        assert plan.epsilon <= float(row[1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_the_network_takes_the_images(path: Path) -> None:
    config = load_config(path, ["model.pretrained=null"])
    build_model(config.model, data_facts(config.data))


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("wrn_16_4", 8),
        ("tanh_cnn", 32),
        *(
            pytest.param(name, 32, marks=pytest.mark.slow)
            for name in ("wrn_16_4", "wrn_40_4", "wrn_28_10")
        ),
    ],
)
def test_a_step_of_the_network_equals_a_plain_loop(name: str, image_size: int) -> None:
    """In float64, where no rounding carries an activation across a kink."""
    model = make(name, dataclasses.replace(RGB, image_size=image_size)).double()
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 3, image_size, image_size)
    views = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.tensor([3, 7])
    mask = torch.tensor([True, True])
    examples = loop_gradients(model, views, labels)
    found = clipped_gradient_sum(model, trained(model), views, labels, max_grad_norm=0.1)
    expected = loop_clipped_sum(examples, mask, 0.1)
    assert relative_error(found.gradients, expected) < 1e-5
