"""The normalizer-free network of Brock et al. 2021: its size, its signals, its gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from helpers.oracle import loop_clipped_sum, loop_gradients, loop_norms
from torch import Tensor, nn

from dp_ray import clipped_gradient_sum
from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.models.build import build_model
from dp_ray.models.nf_resnet import NormFreeResNet

ALPHA = 0.2
DEPTHS, WIDTHS = (3, 4, 6, 3), (256, 512, 1024, 2048)


def facts(image_size: int, num_classes: int = 10) -> DataFacts:
    return DataFacts(1000, num_classes, image_size, 3, (0.5,) * 3, (0.5,) * 3)


def small_network(skip_gain: float = 1.0) -> NormFreeResNet:
    """Two stages of one and two blocks; every parameter random, so that none is neutral."""
    model = NormFreeResNet(3, 16, 3, depths=[1, 2], widths=[16, 32], skip_gain=skip_gain)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def expected_variances() -> list[float]:
    """Of the input of each block, where all gains are one: α² more a block, and 1 anew a stage."""
    inputs = [1.0]
    for depth in DEPTHS:
        inputs += [1 + ALPHA**2 * (block + 1) for block in range(depth)]
    return inputs[:-1]


def test_number_of_parameters() -> None:
    """ResNet-50's convolutions, a gain and a bias for each batch norm's two, and 16 skip gains."""
    with torch.device("meta"):  # counted, not filled
        model = build_model(ModelConfig(name="nf_resnet_50"), facts(32, 1000))
        resnet = torchvision.models.resnet50()
    count, expected = (sum(p.numel() for p in m.parameters()) for m in (model, resnet))
    assert expected == 25_557_032  # as published with torchvision
    assert count == expected + 16
    assert not list(model.buffers())
    assert not any("Norm" in type(m).__name__ for m in model.modules() if m is not model)


def test_convolutions_are_those_of_resnet_50() -> None:
    """Its strides too: torchvision's are in the 3×3 convolutions, as here."""
    with torch.device("meta"):
        model, resnet = NormFreeResNet(3, 224, 10), torchvision.models.resnet50()
    ours, theirs = (
        sorted(
            (m.in_channels, m.out_channels, *m.kernel_size, *m.stride, *m.padding)
            for m in network.modules()
            if isinstance(m, nn.Conv2d)
        )
        for network in (model, resnet)
    )
    assert len(ours) == 53
    assert ours == theirs


def test_scaled_activations_of_each_block_have_variance_one() -> None:
    """Fed with normal numbers of the variance that the block is to expect."""
    torch.manual_seed(0)
    model = NormFreeResNet(3, 32, 10)
    blocks = [m for m in model if hasattr(m, "skip_gain")]
    expected = expected_variances()
    assert len(blocks) == len(expected) == 16
    for block, variance in zip(blocks, expected, strict=True):
        activated = block.activation(math.sqrt(variance) * torch.randn(2**18))
        assert float(activated.var()) == pytest.approx(1.0, abs=0.01)
        assert float(activated.min()) == 0.0


def test_signals_keep_their_variance() -> None:
    """Of normal images, through the network at initialisation, with all gains one.

    Without the ReLU's γ a stage would keep a third of it, and a branch a ninth; borders, which are
    padded with zeros, take some of it as well.
    """
    torch.manual_seed(1)
    model = NormFreeResNet(3, 128, 10, widths=[64, 128, 256, 512], skip_gain=1.0)
    x = torch.randn(4, 3, 128, 128)
    variances = []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if hasattr(layer, "skip_gain"):
                variances.append(float(x.var(dim=(0, 2, 3)).mean()))
    assert len(variances) == sum(DEPTHS)
    for depth in DEPTHS:
        stage, variances = variances[:depth], variances[depth:]
        assert stage[0] == pytest.approx(1 + ALPHA**2, rel=0.25)
        assert (stage[-1] - stage[0]) / (depth - 1) == pytest.approx(ALPHA**2, rel=0.5)


def test_branches_start_silent_as_published() -> None:
    """SkipInit: at the start only shortcuts are heard, and gains are what learns first."""
    model = NormFreeResNet(3, 16, 3, depths=[2], widths=[16])
    first, second = (m for m in model if hasattr(m, "skip_gain"))
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(second(x), x)
    second(x).square().sum().backward()
    assert second.skip_gain.grad.abs() > 0
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(
        first(x), first.shortcut(x.relu() * math.sqrt(2 * math.pi / (math.pi - 1)))
    )


def test_examples_do_not_see_each_other() -> None:
    model = small_network()
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)


def test_per_example_gradients_equal_a_loop() -> None:
    """In float64: one example, one view at a time, clipped by itself."""
    model = small_network().double()
    generator = torch.Generator().manual_seed(7)
    views = torch.randn(4, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    mask = torch.tensor([True, True, False, True])
    examples = loop_gradients(model, views, labels)
    norms = loop_norms(examples)
    bound = float(norms.median()) * 1.01  # some are clipped and some are not

    params: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    found = clipped_gradient_sum(model, params, views, labels, max_grad_norm=bound, mask=mask)
    torch.testing.assert_close(found.norms, norms, rtol=1e-9, atol=0)
    expected = loop_clipped_sum(examples, mask, bound * (1 - 2.0**-18))  # clipped to a hair less
    assert set(found.gradients) == set(expected)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)
        assert gradient.any(), name
