"""Configurations by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.config.builtin import builtin_names, describe_builtins, find_config
from dp_ray.config.files import load_config
from dp_ray.config.search import load_sweep
from dp_ray.errors import DpRayError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory holds no configs/."""
    monkeypatch.chdir(tmp_path)


def test_names_are_the_files_of_configs() -> None:
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert {f"{name}.yaml" for name in builtin_names()} == files
    assert {"digits", "cifar10/gn_cnn_eps3", "sweeps/digits"} <= set(builtin_names())


def test_a_name_gives_the_configuration_of_its_file() -> None:
    assert load_config("digits") == load_config(CONFIGS / "digits.yaml")
    assert load_config("cifar10/gn_cnn_eps3").name == "gn_cnn_eps3"
    assert load_config("digits", ["privacy.steps=7"], name="mine").privacy.steps == 7
    assert load_sweep("sweeps/digits") == load_sweep(CONFIGS / "sweeps/digits.yaml")


def test_a_file_comes_before_a_name_and_a_folder_does_not() -> None:
    Path("digits").mkdir()
    assert load_config("digits").privacy.steps == 100
    Path("digits").rmdir()
    Path("digits").write_text((CONFIGS / "digits.yaml").read_text().replace("100", "33"))
    assert load_config("digits").privacy.steps == 33
    assert find_config("digits") == Path("digits")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("digtis", "digits"),
        ("configs/mnist.yaml", "mnist or sweeps/mnist"),
        ("gn_cnn_eps3", "cifar10/gn_cnn_eps3"),
        ("sweep/digits", "digits or sweeps/digits"),
        ("mnist.yml", "mnist or sweeps/mnist"),
    ],
)
def test_the_nearest_name_is_given(given: str, meant: str) -> None:
    with pytest.raises(DpRayError, match=f"{given}: .* Did you mean {meant}[?]"):
        load_config(given)


def test_nothing_is_meant_by_a_path_that_is_like_no_name() -> None:
    with pytest.raises(DpRayError, match="cannot read the configuration") as caught:
        load_config("zzz/qqq.yaml")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(DpRayError, match=r"cannot read the configuration .*Is a directory"):
        load_config(".")


def test_each_is_described_in_a_line() -> None:
    for name, line in describe_builtins().items():
        assert line[0].isupper(), name
        assert line[-1] == ".", name
        assert len(line) <= 100
    result = CliRunner().invoke(cli.app, ["config", "--list"], catch_exceptions=False)
    assert [line.split()[0] for line in result.output.splitlines()] == builtin_names()
    assert CliRunner().invoke(cli.app, ["config", "digits", "--list"]).exit_code == 2


def test_a_search_that_is_none_and_a_run_that_is_one_are_told_apart() -> None:
    with pytest.raises(DpRayError, match=r"no tune section.* see sweeps/digits"):
        load_sweep("digits")
    with pytest.raises(DpRayError, match="use dp-ray tune sweeps/digits"):
        load_config("sweeps/digits")
