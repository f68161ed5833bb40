"""The wide residual network of De et al. 2022: its sizes, its order of layers, its filters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.oracle import loop_clipped_sum, loop_gradients, loop_norms
from torch import Tensor, nn

from dp_ray import clipped_gradient_sum
from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError
from dp_ray.models.build import build_model
from dp_ray.models.wide_resnet import WeightStandardizedConv2d, WideResNet


def facts(channels: int, image_size: int, num_classes: int = 10) -> DataFacts:
    half = (0.5,) * channels
    return DataFacts(1000, num_classes, image_size, channels, half, half)


def random_network(channels: int = 1, **arguments: Any) -> WideResNet:
    """Depth 10, width 1, 8×8 images, 3 classes; every parameter random, so that none is neutral."""
    model = WideResNet(channels, 8, 3, **{"depth": 10, "width": 1, **arguments})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def expected_parameters(
    depth: int, width: int, channels: int, num_classes: int, *, standardized: bool = True
) -> int:
    """By arithmetic: kernels, then a bias (and a gain) a filter, then two numbers a normed channel.

    With width > 1, so that the first group needs a projection as well.
    """
    blocks = (depth - 4) // 6
    a, b, c = 16 * width, 32 * width, 64 * width
    entries = [16 * a, a * b, b * c]  # of one tap of each group's first 3×3, and its whole 1×1
    inner = [(2 * blocks - 1) * w * w for w in (a, b, c)]
    kernels = 9 * 16 * channels + 10 * sum(entries) + 9 * sum(inner)
    filters = 16 + (2 * blocks + 1) * (a + b + c)
    normed = 2 * (16 + a + b) + (2 * blocks - 1) * (a + b + c) + c
    head = c * num_classes + num_classes
    return kernels + (2 if standardized else 1) * filters + 2 * normed + head


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "millions"), [(16, 4, 2.75), (40, 4, 8.96), (28, 10, 36.5)]
)
@pytest.mark.parametrize(("channels", "num_classes"), [(3, 10), (1, 7)])
def test_number_of_parameters(
    depth: int, width: int, millions: float, channels: int, num_classes: int
) -> None:
    """By name, against arithmetic; the millions are those known of the networks (1605.07146)."""
    name = f"wrn_{depth}_{width}"
    with torch.device("meta"):  # counted, not filled
        model = build_model(ModelConfig(name=name), facts(channels, 8, num_classes))
    assert isinstance(model, WideResNet)
    assert parameters(model) == expected_parameters(depth, width, channels, num_classes)
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=2e-3)
    assert not list(model.buffers())


@pytest.mark.parametrize(("channels", "image_size"), [(1, 28), (3, 32), (1, 8), (3, 11)])
def test_output_shape(channels: int, image_size: int) -> None:
    arguments = {"depth": 10, "width": 1}
    config = ModelConfig(name="wrn_16_4", arguments=arguments)
    model = build_model(config, facts(channels, image_size))
    logits = model(torch.randn(2, channels, image_size, image_size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_wrn_16_4_is_built_by_name() -> None:
    model = build_model(ModelConfig(name="wrn_16_4"), facts(3, 32))
    assert model.training
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 16  # which is what the name counts
    assert all(isinstance(m, WeightStandardizedConv2d) for m in convolutions)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            assert float(p.detach().var()) * p[0].numel() == pytest.approx(1.0, abs=0.15)
        else:
            assert torch.equal(p, torch.full_like(p, not name.endswith("bias")))


def test_without_standardisation_convolutions_are_plain() -> None:
    config = ModelConfig(name="wrn_16_4", arguments={"standardized": False})
    model = build_model(config, facts(3, 8))
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert parameters(model) == expected_parameters(16, 4, 3, 10, standardized=False)


@pytest.mark.parametrize(("depth", "width"), [(16, 4), (40, 4), (28, 10)])
def test_every_layer_takes_what_the_norm_of_an_activation_gave(depth: int, width: int) -> None:
    """ReLU → GroupNorm → convolution, followed by the tensors themselves; the stem has neither."""
    model = build_model(ModelConfig(name=f"wrn_{depth}_{width}"), facts(3, 8))
    maker: dict[int, nn.Module] = {}  # id of a tensor → the layer that returned it
    source: dict[nn.Module, Tensor] = {}
    kept: list[Tensor] = []  # or an id might be given twice

    def follow(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        source[layer] = inputs[0]
        maker[id(output)] = layer
        kept.append(output)

    leaves = [m for m in model.modules() if not list(m.children())]
    for leaf in leaves:
        leaf.register_forward_hook(follow)
    image = torch.randn(1, 3, 8, 8)
    model(image)

    stem, *convolutions = [m for m in leaves if isinstance(m, nn.Conv2d)]
    assert source[stem] is image
    blocks = (depth - 4) // 6
    assert len(convolutions) == 3 * 2 * blocks + 3 == depth - 1
    (pool,) = (m for m in leaves if isinstance(m, nn.AdaptiveAvgPool2d))
    norms = [maker[id(source[layer])] for layer in (*convolutions, pool)]
    assert all(isinstance(n, nn.GroupNorm) and n.num_groups == 16 for n in norms)
    assert all(isinstance(maker[id(source[norm])], nn.ReLU) for norm in norms)
    assert len(set(norms)) == len(norms) == sum(isinstance(m, nn.GroupNorm) for m in leaves)

    described = [(m.in_channels, m.out_channels, *m.kernel_size, *m.stride) for m in convolutions]
    in_channels = 16
    for out_channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        assert described.count((in_channels, out_channels, 3, 3, stride, stride)) == 1
        assert described.count((in_channels, out_channels, 1, 1, stride, stride)) == 1
        assert described.count((out_channels, out_channels, 3, 3, 1, 1)) == 2 * blocks - 1
        in_channels = out_channels


def test_shortcuts_are_the_identity_where_the_shape_stays() -> None:
    """With every residual branch silenced, blocks without a projection hand their input on."""
    model = random_network(depth=16)
    blocks = [m for m in model if hasattr(m, "shortcut")]
    assert len(blocks) == 6
    for index, block in enumerate(blocks):
        last = [m for m in block.residual.modules() if isinstance(m, WeightStandardizedConv2d)][-1]
        nn.init.zeros_(last.gain)
        nn.init.zeros_(last.bias)
        in_channels = block.residual[0][1].num_channels
        x = torch.randn(2, in_channels, 8, 8)
        stays = index not in (2, 4)  # width 1: the first group neither widens nor shrinks
        assert (block(x).shape == x.shape and torch.equal(block(x), x)) == stays


@pytest.mark.parametrize(("in_channels", "kernel_size"), [(1, 3), (3, 3), (16, 1)])
def test_filters_have_zero_mean_and_the_norm_of_their_gain(
    in_channels: int, kernel_size: int
) -> None:
    torch.manual_seed(6)
    conv = WeightStandardizedConv2d(in_channels, 5, kernel_size, 2, 1).double()
    nn.init.normal_(conv.gain)
    weight, gain = conv.weight.detach().clone(), conv.gain.detach()
    found = conv.standardized_weight().detach()
    fan_in = in_channels * kernel_size**2
    for out in range(5):
        w = weight[out]
        expected = gain[out] * (w - w.mean()) / (fan_in * w.var(correction=0)).sqrt()
        torch.testing.assert_close(found[out], expected)
        assert abs(float(found[out].mean())) < 1e-12
        assert float(found[out].norm()) == pytest.approx(abs(float(gain[out])))

    x = torch.randn(2, in_channels, 6, 6, dtype=torch.float64)
    plain = nn.functional.conv2d(x, found, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), plain)
    assert torch.equal(conv.weight, weight)
    with torch.no_grad():
        conv.weight.mul_(3).add_(7)  # neither scale nor mean of a filter has a say
    torch.testing.assert_close(conv(x), plain)


def test_a_constant_filter_is_zero_with_finite_gradients() -> None:
    conv = WeightStandardizedConv2d(2, 3, 3, 1, 1)
    nn.init.constant_(conv.weight, 0.5)
    assert not conv.standardized_weight().any()
    conv(torch.randn(1, 2, 4, 4)).square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize("standardized", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_per_example_gradients_equal_a_loop(channels: int, standardized: bool) -> None:
    """In float64: one example, one view at a time, clipped by itself."""
    model = random_network(channels, standardized=standardized).double()
    generator = torch.Generator().manual_seed(7)
    views = torch.randn(4, 2, channels, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    mask = torch.tensor([True, True, False, True])
    examples = loop_gradients(model, views, labels)
    norms = loop_norms(examples)
    bound = float(norms.median()) * 1.01  # some are clipped and some are not

    params = {name: p.detach() for name, p in model.named_parameters()}
    found = clipped_gradient_sum(model, params, views, labels, max_grad_norm=bound, mask=mask)
    torch.testing.assert_close(found.norms, norms, rtol=1e-9, atol=0)
    assert 0 < int((norms > bound)[mask].sum()) < int(mask.sum())
    expected = loop_clipped_sum(examples, mask, bound * (1 - 2.0**-18))  # clipped to a hair less
    assert set(found.gradients) == set(expected)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("image_size", "arguments", "words"),
    [
        (7, {}, "at least 8×8, not 7×7"),
        (8, {"depth": 4}, "depth must be 10, 16, 22"),
        (8, {"depth": 18}, "not 18"),
        (8, {"groups": 3}, "cannot be built"),
    ],
)
def test_what_cannot_be_built_is_refused(
    image_size: int, arguments: dict[str, Any], words: str
) -> None:
    config = ModelConfig(name="wrn_16_4", arguments=arguments)
    with pytest.raises(ConfigError) as caught:
        build_model(config, facts(1, image_size))
    assert words in str(caught.value)
