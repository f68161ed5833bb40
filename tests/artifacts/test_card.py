"""The card of a release: what it says, and its code, which runs where there is no dp-ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.releases import write_release
from helpers.support import MakeConfig
from PIL import Image
from safetensors.torch import load_file

import dp_ray
from dp_ray.artifacts.card import as_markdown, usage
from dp_ray.config.run import Config

OWN = """
from torch import nn

def build(num_classes, channels, image_size, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
"""

RUNNER = """
import os, sys, torch
from safetensors.torch import save_file

sys.modules["dp_ray"] = None  # importing it fails
sys.path.insert(0, {own!r})
for place in sys.argv[1:]:
    os.chdir(place)
    names = {{}}
    exec(open("card.py", encoding="utf-8").read(), names)
    save_file({{"logits": names["logits"]}}, "logits.safetensors")
"""

NAMES = ["ash", "béech", "elm `x`", "<li>", "oak"]


def folder_of(size: int, channels: int, **more: Any) -> dict[str, Any]:
    """A data section for images in folders."""
    return {
        **{"name": "image_folder", "num_examples": 1000, "num_classes": 5},
        **{"image_size": size, "channels": channels, **more},
    }


MODELS: dict[str, dict[str, Any]] = {
    "default": {"data": folder_of(12, 1, background=[200, 10, 90], mean=[0.2], std=[0.7])},
    "two parts": {"model": {"name": "tanh_cnn"}, "data": folder_of(20, 3)},
    "group norm": {"model": {"name": "resnet18"}, "data": folder_of(32, 3, background="black")},
    "frozen norm, grey": {
        "model": {"name": "resnet18", "pretrained": "some.pth", "pretrained_norm": "frozen"},
        "data": folder_of(32, 1),
    },
    "own": {
        "model": {"name": "their_network:build", "arguments": {"width": 3}},
        "data": folder_of(9, 3),
    },
}


@pytest.fixture
def releases(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """One of each network, with a picture in its folder."""
    (tmp_path / "their_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 53, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 8
    found = {}
    for name, sections in MODELS.items():
        names = NAMES if name == "default" else ()
        found[name] = write_release(tmp_path / name, make_config(**sections), names)
        Image.fromarray(pixels).save(found[name] / "image.png", exif=turned)
    return found


def card_code(release: Path) -> str:
    """The lines of a card that need no dp-ray."""
    blocks = re.findall(r"```python\n(.*?)\n```", (release / "README.md").read_text(), re.S)
    [code] = [block for block in blocks if "dp_ray" not in block]
    return str(code)


def test_a_release_loads_where_there_is_no_dp_ray(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    """The very lines of each card give the logits that dp-ray gives."""
    for release in releases.values():
        (release / "card.py").write_text(card_code(release))
    script = RUNNER.format(own=str(tmp_path))
    command = [sys.executable, "-c", script, *map(str, releases.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, release in releases.items():
        network, preprocess = dp_ray.load_model(release, own_code=name == "own")
        with torch.no_grad():
            expected = network(preprocess(release / "image.png"))
        found = load_file(release / "logits.safetensors")["logits"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if name == "default":
            assert done.stdout.startswith(NAMES[int(expected.argmax())])


def test_a_card_says_what_the_model_takes_and_what_its_statement_says(
    releases: dict[str, Path],
) -> None:
    release = releases["default"]
    card = (release / "README.md").read_text()
    statement = json.loads((release / "privacy.json").read_text())
    assert f"**ε = {statement['epsilon']:.4f}, δ = 0.0001**" in card
    assert "one grey image of 12 × 12 pixels" in card
    assert r"2 elm \`x\`, 3 &lt;li&gt;, 4 oak." in card
    assert all(as_markdown(text) in card for text in statement["assumptions"])
    assert json.loads((release / "class_names.json").read_text())["names"] == NAMES
    assert not (releases["own"] / "class_names.json").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "wrn_16_4"}, r"Loading wrn\_16\_4 needs dp-ray"),
        ({"name": "resnet18", "arguments": {"nonsense": 1}}, "Loading resnet18 needs dp-ray"),
        ({"name": "os; os.abort():build"}, "which config.yaml does not name. With that network"),
        ({"name": "no_module:build"}, "where no\\_module, its author's own code, can be imported"),
    ],
)
def test_what_cannot_be_loaded_without_more_is_said(
    make_config: MakeConfig, model: dict[str, Any], said: str
) -> None:
    config: Config = make_config(model=model, data=folder_of(32, 3))
    assert said in usage(config.dump(), ())
