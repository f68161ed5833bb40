"""What a search may vary, and how a file says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.searches import MakeSweep, draw

from dp_ray.api.tune import plan_sweep, run_sweep
from dp_ray.config.files import load_config
from dp_ray.config.search import Domain, load_sweep
from dp_ray.errors import ConfigError, DpRayError
from dp_ray.search.space import point_at


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        ({"choice": ["a", "b"]}, {0.0: "a", 0.49: "a", 0.5: "b", 0.999: "b"}),
        ({"grid": [1, 2, 4]}, {0.0: 1, 0.34: 2, 0.999: 4}),
        ({"uniform": [2, 4]}, {0.0: 2.0, 0.25: 2.5, 0.5: 3.0}),
        ({"log_uniform": [1, 100]}, {0.0: 1.0, 0.5: 10.0}),
        ({"integer": [3, 5]}, {0.0: 3, 0.34: 4, 0.999: 5}),
    ],
)
def test_values_are_quantiles(domain: dict[str, Any], values: dict[float, Any]) -> None:
    found = Domain.model_validate(domain)
    for share, value in values.items():
        assert found.at(share) == pytest.approx(value) if isinstance(value, float) else value
        assert type(found.at(share)) is type(value)


def test_levels_of_a_range_are_few_and_equally_likely() -> None:
    domain = Domain.model_validate({"log_uniform": [1, 16]})
    levels = domain.levels(4)
    assert levels == pytest.approx([2**0.5, 2**1.5, 2**2.5, 2**3.5])
    space = {"privacy.noise_multiplier": domain}
    drawn = [point_at(space, 4, {"privacy.noise_multiplier": i / 100}) for i in range(100)]
    counts = Counter(point["privacy.noise_multiplier"] for point in drawn)
    assert counts == dict.fromkeys(levels, 25)
    assert Domain.model_validate({"integer": [2, 4]}).levels(8) == [2, 3, 4]
    assert len(Domain.model_validate({"integer": [1, 1000]}).levels(8)) == 8


@pytest.mark.parametrize(
    ("space", "field", "expected"),
    [
        ({"privacy.epsilon": {"choice": [1, 2]}}, "tune.space.privacy.epsilon", "equal budget"),
        ({"data.name": {"choice": ["mnist"]}}, "tune.space.data.name", "one data set"),
        ({"seed": {"choice": [1, 2]}}, "tune.space.seed", "same initial parameters"),
        ({"train.charge_every": {"choice": [1]}}, "tune.space.train.charge_every", "learns"),
        ({"augment.views": {"grid": [1, 2]}}, "tune.space.augment.views", "choice instead"),
        ({"augment.viewz": {"choice": [1]}}, "tune.space.augment.viewz", "mean augment.views"),
        ({"augment": {"choice": [1, 2]}}, "tune.space.augment", "no such field"),
        ({"augment.views": {"choice": [0]}}, "tune.space.augment.views", "0 cannot be used"),
        ({"augment.views": {"uniform": [1, 4]}}, "tune.space.augment.views", "valid integer"),
        ({"optimizer.lr": {"uniform": [-1, 2]}}, "tune.space.optimizer.lr", "greater than 0"),
        ({}, "tune.space", "nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    make_sweep: MakeSweep, space: dict[str, Any], field: str, expected: str
) -> None:
    sweep = make_sweep({"privacy": {"steps": 4}}, space=space)
    with pytest.raises(ConfigError, match=expected) as refused:
        draw(sweep)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("tune", "field", "expected"),
    [
        ({"space": {"augment.views": {}}}, "tune.space.augment.views", "nothing"),
        ({"space": {"augment.views": 3}}, "tune.space.augment.views", "no values to try"),
        ({"space": {"optimizer.lr": {"uniform": [2, 1]}}}, "tune.space.optimizer.lr", "not below"),
        (
            {"space": {"optimizer.lr": {"log_uniform": [0, 1]}}},
            "tune.space.optimizer.lr",
            "no logarithm",
        ),
        (
            {"space": {"optimizer.lr": {"uniform": [1, 2], "choice": [1]}}},
            "tune.space.optimizer.lr",
            "exactly one",
        ),
        ({"num_sample": 3}, "tune.num_sample", "Did you mean tune.num_samples"),
        ({"privacy_mode": "none"}, "tune.privacy_mode", "private_selection"),
        ({"space": {"augment.views": {"choise": [1]}}}, "tune.space.augment.views.choise", "mean"),
        ({"num_samples": 0}, "tune.num_samples", "greater than or equal to 1"),
    ],
)
def test_mistakes_in_the_tune_section_name_the_field(
    make_sweep: MakeSweep, tune: dict[str, Any], field: str, expected: str
) -> None:
    if expected == "nothing":  # an empty mapping is a section without fields
        assert make_sweep(**tune).tune.space == {}
        return
    with pytest.raises(ConfigError, match=expected) as refused:
        make_sweep(**tune)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train=3", "train = 3: a section of fields is expected"),
        ("privacy=null", "privacy = None: a section of fields is expected"),
        ("optimizer.lrr=1", "Did you mean optimizer.lr"),
        ("seed=-1", "seed = -1: "),
        ("name=a/b", "name = 'a/b': it has a character that is not allowed there"),
        ("tune=3", "tune = 3: a section of fields is expected"),
        ("tune.space=3", "tune.space = 3: "),
        ("data.expected_batch_size=99999", "q = 99999/1437 is above 1"),
        ("privacy.delta=0.5", "δ must be below 1/N"),
    ],
)
def test_mistakes_in_a_sweep_file_are_told(
    tmp_path: Path, make_sweep: MakeSweep, override: str, expected: str
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(make_sweep().dump()))
    with pytest.raises(ConfigError) as refused:
        run_sweep(load_sweep(path, [override]), resume=False)
    assert expected in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_fields_may_be_nested_and_taken_out(tmp_path: Path, make_sweep: MakeSweep) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(make_sweep().dump()))
    views = "tune.space.augment.views={choice: [3]}"
    sweep = load_sweep(path, [views, "tune.space.privacy.max_grad_norm=null"])
    assert sweep.tune.space["augment.views"].choice == [3]
    assert "privacy.max_grad_norm" in sweep.tune.space  # the file's own dotted key still gives it
    sweep = load_sweep(path, ["tune.space={augment: {views: {choice: [1, 2]}}}"])
    assert list(sweep.tune.space) == ["augment.views"]
    with pytest.raises(DpRayError, match="use dp-ray tune"):
        load_config(path)
    with pytest.raises(DpRayError, match="no tune section"):
        load_sweep(Path(__file__).parents[2] / "configs/digits.yaml")


@pytest.mark.parametrize(
    ("tune", "field", "expected"),
    [
        ({"searcher": "optuna"}, "tune.searcher", "Optuna chooses"),
        (
            {"searcher": "grid", "space": {"privacy.steps": {"grid": [4]}}},
            "tune.searcher",
            "a grid is no random draw",
        ),
        ({"scheduler": "asha"}, "tune.scheduler", "early stopping compares"),
    ],
)
def test_private_selection_refuses_what_breaks_its_assumption(
    make_sweep: MakeSweep, tune: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        draw(make_sweep(**tune))
    assert refused.value.field == field
    assert "compose" in str(refused.value)
    assert draw(make_sweep(**tune, privacy_mode="compose")).budgets.solved


@pytest.mark.parametrize(
    "domain",
    [
        {"choice": ["a", "b"]},
        {"uniform": [0.3, 0.7]},
        {"uniform": [-1.5e308, 1.5e308]},
        {"log_uniform": [0.1, 0.7]},
        {"log_uniform": [1e-300, 1e300]},
        {"integer": [-(10**12), 10**12]},
    ],
)
def test_both_ends_of_the_unit_interval_are_within_a_domain(domain: dict[str, Any]) -> None:
    """Optuna draws from [0, 1] with both ends."""
    found = Domain.model_validate(domain)
    if found.values is not None:
        assert [found.at(0.0), found.at(1.0)] == [found.values[0], found.values[-1]]
        return
    low, high = found.bounds
    shares = [0.0, 1e-300, 0.5, 1 - 2.0**-53, 1.0]
    values = [found.at(share) for share in shares]
    assert values == sorted(values)
    assert [values[0], values[-1]] == pytest.approx([low, high])
    assert all(low <= value <= high for value in values)
    assert point_at({"privacy.steps": found}, 8, {"privacy.steps": 1.0}) == {
        "privacy.steps": found.levels(8)[-1]
    }


STEPS = {"privacy.steps": {"choice": [4]}}


@pytest.mark.parametrize(
    ("tune", "named"),
    [
        ({"scheduler": "asha", "grace_evaluations": 9}, "tune.grace_evaluations"),
        (
            {
                "searcher": "optuna",
                "space": {"optimizer.name": {"choice": ["SGD", "SDG", "Adam"]}, **STEPS},
            },
            "optimizer.name",
        ),
        (
            {
                "searcher": "grid",
                "num_samples": 50_000,
                "space": {"optimizer.lr": {"grid": [1.0, 2.0, 4.0]}, **STEPS},
            },
            "tune.num_samples",
        ),
        ({"scheduler": "asha", "reduction_factor": 10**400}, "tune.reduction_factor"),
    ],
)
def test_what_ray_or_a_trial_would_refuse_is_found_by_a_dry_run(
    tune: dict[str, Any], named: str, make_sweep: MakeSweep
) -> None:
    """A value in the middle of a list too, which no corner of the space shows."""
    with pytest.raises(ConfigError) as caught:
        plan_sweep(make_sweep(**{"privacy_mode": "compose", **tune}))
    assert named in str(caught.value)


def test_a_grace_period_within_the_run_is_taken(make_sweep: MakeSweep) -> None:
    draw(make_sweep(privacy_mode="compose", scheduler="asha", grace_evaluations=8))
