"""Configurations as Python values and as text; errors are those of a file."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from torch import nn

from dp_ray.config.files import load_config
from dp_ray.config.run import Config
from dp_ray.config.search import load_sweep
from dp_ray.errors import ConfigError, DpRayError

TEXT = """
data: {name: digits, expected_batch_size: 64}
privacy: {epsilon: 3, steps: 40, delta: 1e-4}
optimizer: {lr: 1.0}
"""
VALUES: dict[str, Any] = {
    "data": {"name": "digits", "expected_batch_size": 64},
    "privacy": {"epsilon": 3.0, "steps": 40, "delta": 1e-4},
    "optimizer": {"lr": 1.0},
}


def test_values_and_text_are_what_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    expected = load_config(path, ["augment.views=2"])
    for source in (TEXT, VALUES, MappingProxyType(VALUES), str(path)):
        assert load_config(source, ["augment.views=2"]) == expected
    assert load_config(VALUES, name="mine").name == "mine"
    assert load_config({**VALUES, "name": "theirs"}).name == "theirs"
    assert "augment" not in VALUES  # overrides are of the copy


def test_python_s_own_types_are_taken_as_yaml_has_them(tmp_path: Path) -> None:
    values = {**VALUES, "data": {**VALUES["data"], "cache": tmp_path, "mean": (0.5,)}}
    config = load_config(values)
    assert (config.data.cache, config.data.mean) == (str(tmp_path), [0.5])


def test_a_search_is_taken_likewise() -> None:
    values = {**VALUES, "tune": {"space": {"augment.views": {"choice": (1, 2)}}}}
    sweep = load_sweep(values, ["tune.num_samples=3"])
    assert (sweep.tune.num_samples, sweep.tune.space["augment.views"].values) == (3, [1, 2])
    with pytest.raises(DpRayError, match="a tune section, which is a search"):
        load_config(values)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({**VALUES, "privcy": {}}, r"privcy = \{\}: no such field. Did you mean privacy\?"),
        ({**VALUES, "data": {"expected_batchsize": 1}}, "Did you mean data.expected_batch_size"),
        ({**VALUES, "model": nn.Linear(1, 1)}, r"model = Linear.*dp_ray.train\(config, model=…"),
        ({**VALUES, "data": [1, 2]}, "data = .*a section of fields is expected"),
        ({**VALUES, "data": {"name": [nn.ReLU()]}}, "data.name = ReLU"),
        (nn.Linear(1, 1), "a path, a mapping or YAML text is expected, not Linear"),
        (None, "not NoneType"),
        ("data: [\n", "not YAML"),
        ("- 1\n- 2\n", "sections are expected"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(source: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load_config(source)
    assert "\n" not in str(caught.value)


def test_a_configuration_made_by_its_class_raises_the_same_errors() -> None:
    with pytest.raises(ConfigError, match="Did you mean privacy"):
        Config(**VALUES, privcy={})
    with pytest.raises(ConfigError, match=r"optimizer\.lr = -1\.0: it should be greater than 0"):
        Config.model_validate({**VALUES, "optimizer": {"lr": -1.0}})
    config = Config(**VALUES)
    sections = {name: getattr(config, name) for name in VALUES}
    assert Config(**sections) == config
