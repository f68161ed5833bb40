"""A released network as a program of torch's: the same outputs, for any number of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.releases import write_release
from helpers.support import MakeConfig
from torch import Tensor
from typer.testing import CliRunner

import dp_ray
from dp_ray import cli
from dp_ray.api.export import PixelsToLogits
from dp_ray.errors import ConfigError, ModelError


def test_a_program_of_torchs_gives_the_logits_of_the_network(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    names = [f"n{i}" for i in range(10)]
    write_release(tmp_path / "run/release", make_config(), names)
    result = CliRunner().invoke(cli.app, ["export", str(tmp_path / "run")], catch_exceptions=False)
    file = tmp_path / "run/model.pt2"
    assert result.output == f"exported      {file}\n"
    extra = {"class_names.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    network, preprocess = dp_ray.load_model(tmp_path / "run")
    for count in (1, 7):
        pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(program(pixels), network(preprocess(pixels)))
    assert json.loads(extra["class_names.json"])["names"] == names


@pytest.mark.parametrize("mistake", ["raises", "computes something else"])
def test_what_cannot_be_exported_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    release = write_release(tmp_path / "release", make_config())

    class Program:
        def module(self) -> Callable[[Tensor], Tensor]:
            return lambda pixels: _logits(pixels) + 1

    def made(*_: object, **__: object) -> Program:
        if mistake == "raises":
            raise RuntimeError("data-dependent")
        return Program()

    monkeypatch.setattr(torch.export, "export", made)
    monkeypatch.setattr(PixelsToLogits, "forward", lambda _, x: _logits(x))
    out = tmp_path / "out.pt2"
    with pytest.raises(ModelError, match=r"load_model"):
        dp_ray.export(release, out)
    assert not out.exists()


def _logits(pixels: Tensor) -> Tensor:
    return pixels.flatten(1)[:, :10].float()


def test_a_program_is_not_written_into_a_release(make_config: MakeConfig, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", make_config())
    with pytest.raises(ConfigError, match=r"--output .* lies in a release"):
        dp_ray.export(release, release / "model.pt2")
    with pytest.raises(ConfigError, match=r"End it in \.pt2"):
        dp_ray.export(release, tmp_path / "model.onnx")
