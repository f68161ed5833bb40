"""Relative paths of a configuration start where the command was given, for workers too."""

from __future__ import annotations

import pytest
import torch
from helpers.shared_ray import SharedRay
from helpers.support import MakeConfig, start
from PIL import Image

from dp_ray.data.facts import data_facts
from dp_ray.models.build import build_model


@pytest.mark.slow
def test_data_and_weights_are_found_by_the_workers(
    make_config: MakeConfig, shared_ray: SharedRay
) -> None:
    for part, count in (("train", 12), ("test", 3)):
        for i in range(count):
            image = shared_ray.folder / "images" / part / f"class{i % 2}" / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * i).save(image)
    facts = {"num_examples": 12, "num_classes": 2, "image_size": 8, "channels": 1}
    config = make_config(
        data={"name": "image_folder", "root": "images", **facts, "expected_batch_size": 6},
        model={"pretrained": "weights.pt", "trainable": "head"},
        privacy={"delta": 1e-3},
        cluster={"num_workers": 2},
    )
    model = build_model(config.model, data_facts(config.data))
    torch.save(model.state_dict(), shared_ray.folder / "weights.pt")
    assert start(config)["status"] == "finished"
