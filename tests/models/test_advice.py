"""Ways out that messages name, tried: hooks, lazy layers, norms, grey images, releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ModelError
from dp_ray.models.build import build_model, check_model
from dp_ray.models.pretrained import load_pretrained

GREY = DataFacts(99, 3, 32, 1, (0.5,), (0.5,))
RGB = DataFacts(99, 3, 32, 3, (0.5,) * 3, (0.5,) * 3)


def watched(_module: nn.Module, _inputs: Any, _output: Any) -> None:
    """A hook of the user's."""


def hooked(kind: str) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    layer = network[1]
    if kind == "weight_norm":
        torch.nn.utils.weight_norm(layer)
    elif kind == "spectral_norm":
        torch.nn.utils.spectral_norm(layer)
    elif kind == "prune":
        prune.l1_unstructured(layer, "weight", 1)
    else:
        getattr(layer, f"register_{kind}_hook")(watched)
    return network


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("weight_norm", r"use torch\.nn\.utils\.parametrizations\.weight_norm$"),
        ("spectral_norm", r"use torch\.nn\.utils\.parametrizations\.spectral_norm$"),
        ("prune", r"call torch\.nn\.utils\.prune\.remove"),
        (
            "forward",
            r"a forward hook, watched of tests.models.test_advice.*that register_forward_hook",
        ),
        ("forward_pre", r"a forward_pre hook, watched.*that register_forward_pre_hook"),
        ("full_backward", r"a full_backward hook, watched.*that register_full_backward_hook"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.:FutureWarning")
def test_a_hook_is_named_as_what_it_is(kind: str, named: str) -> None:
    with pytest.raises(ModelError, match=rf"layer 1 \(Linear\).*{named}") as caught:
        check_model(hooked(kind))
    assert "Opacus" not in str(caught.value)


def test_ways_out_of_hooks_are_taken() -> None:
    network = hooked("prune")
    prune.remove(network[1], "weight")
    check_model(network)
    check_model(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2))))
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(watched).remove()
    check_model(layer)


def lazy_net(num_classes: int, channels: int, image_size: int) -> nn.Module:  # noqa: ARG001
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(num_classes))


def normed(num_classes: int, channels: int, image_size: int, norm: nn.Module) -> nn.Module:
    inputs = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), norm, nn.Linear(32, num_classes))


def build(name: str, facts: DataFacts = GREY, **fields: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, **fields), facts, init_seed=1)


def test_lazy_layers_get_their_shapes_from_the_seed() -> None:
    first, second = build(f"{__name__}:lazy_net"), build(f"{__name__}:lazy_net")
    assert [p.shape for p in first.parameters()] == [(8, 1024), (8,), (3, 8), (3,)]
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    ("norm", "named"),
    [
        (nn.BatchNorm1d(32), r"layer 2 \(BatchNorm1d\) .*nn\.GroupNorm\(1, 32\)"),
        (nn.GroupNorm(32, 32), r"layer 2 \(GroupNorm\): group_norm gives nothing: .*fewer groups"),
    ],
)
def test_norms_that_give_nothing_are_refused(norm: nn.Module, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        build(f"{__name__}:normed", arguments={"norm": norm})
    for way_out in (nn.GroupNorm(1, 32), nn.LayerNorm(32)):
        build(f"{__name__}:normed", arguments={"norm": way_out})


def test_a_torchvision_network_takes_grey_images(tmp_path: Path) -> None:
    """With weights for RGB it computes what it would of the image repeated in three channels."""
    path = tmp_path / "weights.safetensors"
    rgb = build("squeezenet1_1", RGB)
    save_file(rgb.state_dict(), path)
    config = ModelConfig(name="squeezenet1_1", pretrained=str(path))
    grey = build_model(config, GREY, init_seed=2)
    load_pretrained(grey, config)
    image = torch.randn(1, 1, 32, 32)
    expected: Tensor = rgb.eval()(image.expand(1, 3, 32, 32))
    torch.testing.assert_close(grey.eval()(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_release_is_taken_as_pretrained_weights(suffix: str, tmp_path: Path) -> None:
    """It has group norm where torchvision's weights have the statistics of batch norm."""
    path, name = tmp_path / f"model{suffix}", "shufflenet_v2_x0_5"
    released = build(name, RGB).state_dict()
    if suffix == ".pt":
        torch.save(released, path)
    else:
        save_file(released, path)
    config = ModelConfig(name=name, pretrained=str(path))
    assert config.pretrained_norm == "group"
    model = build_model(config, RGB, init_seed=2)
    load_pretrained(model, config)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in released.items())
    # Workers and readers of the release have the configuration and not the file.
    elsewhere = ModelConfig(**{**config.model_dump(), "pretrained": f"nowhere{suffix}"})
    assert build_model(elsewhere, RGB).state_dict().keys() == released.keys()
