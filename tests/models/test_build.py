"""Networks by name, what is refused and why, and the clash of Opacus #626 that is not here."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dp_ray import clipped_gradient_sum
from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError, ModelError
from dp_ray.models.build import _with_group_norm, build_model, check_model

TINY = DataFacts(1000, 3, 8, 1, (0.5,), (0.5,))
GREY = DataFacts(1000, 10, 28, 1, (0.5,), (0.5,))
RGB = DataFacts(1000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3)

OWN_BUILDERS = """
from opacus import GradSampleModule
from torch import nn

def plain(channels, image_size, num_classes, width=5):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * image_size**2, width), nn.Linear(width, num_classes)
    )

def with_batch_norm(**shape):
    return nn.Sequential(nn.BatchNorm2d(shape["channels"]), plain(**shape))

def wrapped(**shape):
    return GradSampleModule(plain(**shape))

def hooked(**shape):
    model = plain(**shape)
    model[1].register_forward_hook(lambda *_: None)
    return model

def frozen(**shape):
    return plain(**shape).requires_grad_(False)

def string(**shape):
    return "a network"

def module_class(**shape):
    return nn.Linear

def two_outputs(**shape):
    return plain(**{**shape, "num_classes": shape["num_classes"] + 1})
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelConfig]:
    """A configuration whose network is built by a function of the module ``OWN_BUILDERS``."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN_BUILDERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def config(function: str, **arguments: Any) -> ModelConfig:
        return ModelConfig(name=f"{name}:{function}", arguments=arguments)

    return config


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def small_network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize(("facts", "expected"), [(GREY, 26_010), (RGB, 550_570)])
def test_tanh_cnn_has_the_published_number_of_parameters(facts: DataFacts, expected: int) -> None:
    """Papernot et al. 2021, Tramèr & Boneh 2021."""
    model = build_model(ModelConfig(name="tanh_cnn"), facts)
    assert parameters(model) == expected
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


def test_gn_cnn_is_as_described() -> None:
    model = build_model(ModelConfig(name="gn_cnn", arguments={"widths": [8, 16, 24]}), RGB)
    convolutions = 3 * 8 * 9 + 8 + 8 * 16 * 9 + 16 + 16 * 24 * 9 + 24
    norms, head = 2 * (8 + 16 + 24), (24 * 4 * 4) * 10 + 10
    assert parameters(model) == convolutions + norms + head
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 3
    assert model.training


def test_torchvision_networks_get_group_norm_for_batch_norm() -> None:
    import torchvision

    model = build_model(ModelConfig(name="resnet18"), RGB)
    modules = list(model.modules())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    assert sum(isinstance(m, nn.GroupNorm) for m in modules) == 20
    original = torchvision.models.resnet18(num_classes=10)
    assert parameters(model) == parameters(original)  # weight and bias a channel, both of them
    assert not list(model.buffers())  # no running statistics of private data


@pytest.mark.parametrize(
    ("name", "facts"), [("gn_cnn", TINY), ("gn_cnn", RGB), ("tanh_cnn", GREY), ("tanh_cnn", RGB)]
)
def test_examples_do_not_see_each_other(name: str, facts: DataFacts) -> None:
    """An example's logits are the same alone and in a batch of others."""
    model = build_model(ModelConfig(name=name), facts)
    generator = torch.Generator().manual_seed(1)
    shape = (5, facts.channels, facts.image_size, facts.image_size)
    images = torch.randn(shape, generator=generator)
    together = model(images)
    assert together.shape == (5, facts.num_classes)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


def test_initial_parameters_are_a_function_of_the_seed() -> None:
    def flat(init_seed: int) -> Tensor:
        model = build_model(ModelConfig(name="gn_cnn"), TINY, init_seed=init_seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(1)
    first = flat(11)
    torch.manual_seed(2)
    assert torch.equal(first, flat(11))
    assert not torch.equal(first, flat(12))


def test_building_leaves_global_generators_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    python_before, numpy_before = random.getstate(), np.random.get_state(legacy=True)
    build_model(ModelConfig(name="gn_cnn"), TINY, init_seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 3
    assert random.getstate() == python_before
    assert str(np.random.get_state(legacy=True)) == str(numpy_before)


def test_own_network_by_import_path(own: Callable[..., ModelConfig]) -> None:
    assert parameters(build_model(own("plain"), TINY)) == 64 * 5 + 5 + 5 * 3 + 3
    assert parameters(build_model(own("plain", width=2), TINY)) == 64 * 2 + 2 + 2 * 3 + 3


BATCH_NORMS: dict[str, nn.Module] = {
    "BatchNorm2d": nn.BatchNorm2d(4),
    "BatchNorm2d without affine": nn.BatchNorm2d(4, affine=False),
    "BatchNorm2d without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "BatchNorm1d": nn.BatchNorm1d(4),
    "SyncBatchNorm": nn.SyncBatchNorm(4),
    "BatchNorm3d": nn.BatchNorm3d(4),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_statistics_are_refused(kind: str) -> None:
    """Also without affine parameters, which Opacus's own validator lets pass."""
    layer = BATCH_NORMS[kind]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(layer), nn.Linear(4, 3))
    with pytest.raises(ModelError) as caught:
        check_model(model)
    message = str(caught.value)
    assert f"layer 1.0 ({type(layer).__name__})" in message
    assert "mixes the examples of a batch" in message
    assert "GroupNorm" in message
    assert "replace it by nn.GroupNorm(" in message


def test_a_network_that_is_itself_a_batch_norm_is_refused() -> None:
    with pytest.raises(ModelError, match=r"BatchNorm2d.*mixes the examples"):
        check_model(nn.BatchNorm2d(1))


def test_instance_norm_is_refused_with_running_statistics_only() -> None:
    for layer in (nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True)):
        check_model(nn.Sequential(nn.Conv2d(1, 4, 3), layer))
    with pytest.raises(ModelError) as caught:
        check_model(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True))
        )
    message = str(caught.value)
    assert "layer 1 " in message
    assert "running statistics" in message
    assert "track_running_stats=False" in message


def hook_forward(model: nn.Module) -> nn.Module:
    model[1].register_forward_hook(lambda *_: None)  # type: ignore[index]
    return model


def hook_forward_before(model: nn.Module) -> nn.Module:
    model[1].register_forward_pre_hook(lambda *_: None)  # type: ignore[index]
    return model


def hook_backward(model: nn.Module) -> nn.Module:
    model[1].register_full_backward_hook(lambda *_: None)  # type: ignore[index]
    return model


def hook_backward_before(model: nn.Module) -> nn.Module:
    model[1].register_full_backward_pre_hook(lambda *_: None)  # type: ignore[index]
    return model


def inside_of_grad_sample_module(model: nn.Module) -> nn.Module:
    GradSampleModule(model)
    return model


HOOKED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "wrapped by Opacus": (GradSampleModule, "GradSampleModule"),
    "touched by Opacus": (inside_of_grad_sample_module, "0"),
}
OTHERS = {
    "forward": hook_forward,
    "forward_pre": hook_forward_before,
    "full_backward": hook_backward,
    "full_backward_pre": hook_backward_before,
}


@pytest.mark.parametrize("kind", HOOKED)
def test_hooked_networks_are_refused(kind: str) -> None:
    hook, place = HOOKED[kind]
    with pytest.raises(ModelError) as caught:
        check_model(hook(small_network()))
    message = str(caught.value)
    assert f"layer {place} (" in message
    assert "carries hooks of Opacus" in message
    assert "Opacus #626" in message
    assert "_forward_counter" in message
    assert "remove_hooks()" in message
    assert "pass the plain model" in message


@pytest.mark.parametrize("kind", OTHERS)
def test_hooks_of_others_are_refused_as_what_they_are(kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(OTHERS[kind](small_network()))
    message = str(caught.value)
    assert f"layer 1 (GroupNorm) has a {kind} hook" in message
    assert "may keep state from call to call" in message
    assert f"register_{kind}_hook" in message
    assert "Opacus" not in message


def test_the_way_out_that_the_message_names_works() -> None:
    model = GradSampleModule(small_network())
    model.remove_hooks()
    check_model(model._module)
    with pytest.raises(ModelError, match="carries hooks"):
        check_model(model)  # the wrapper itself stays refused


def test_a_network_with_nothing_to_train_is_refused() -> None:
    model = small_network().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter with requires_grad: nothing to train"):
        check_model(model)
    model[4].bias.requires_grad_(True)
    check_model(model)
    with pytest.raises(ModelError, match="nothing to train"):
        check_model(nn.Flatten())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("with_batch_norm", "mixes the examples of a batch"),
        ("wrapped", "carries hooks"),
        ("hooked", "has a forward hook"),
        ("frozen", "nothing to train"),
    ],
)
def test_own_networks_are_checked_when_built(
    own: Callable[..., ModelConfig], function: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        build_model(own(function), TINY)


@pytest.mark.parametrize("function", ["string", "module_class"])
def test_own_builder_that_returns_no_network_is_refused(
    own: Callable[..., ModelConfig], function: str
) -> None:
    config = own(function)
    with pytest.raises(ConfigError) as caught:
        build_model(config, TINY)
    assert str(caught.value).startswith(f"model.name = {config.name!r}: built no torch module")


def test_own_network_of_another_output_is_refused(own: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(own("two_outputs"), TINY)
    message = str(caught.value)
    assert message.startswith("model.name = ")
    assert "returns (1, 4) where (1, 3) is needed" in message


def refused(name: str, facts: DataFacts, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(name=name, arguments=arguments), facts)
    return str(caught.value)


def test_images_of_a_wrong_size_are_refused() -> None:
    message = refused("tanh_cnn", TINY)
    assert "tanh_cnn" in message
    assert "1×8×8 images" in message
    assert "image size" in message
    message = refused("alexnet", RGB)
    assert message.startswith("model.name = 'alexnet': does not take images of shape (3, 32, 32)")
    assert "data.image_size=64" in message


def test_an_rgb_network_takes_grey_images() -> None:
    model = build_model(ModelConfig(name="squeezenet1_1"), GREY)
    assert model(torch.zeros(2, 1, GREY.image_size, GREY.image_size)).shape[0] == 2


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    message = refused("resnet19", RGB)
    assert message.startswith("model.name = 'resnet19': no such network")
    for name in ("gn_cnn", "tanh_cnn", "my_module:build", "resnet18"):
        assert name in message


def test_a_builder_that_cannot_be_imported_is_refused() -> None:
    message = refused("no_such_module:build", RGB)
    assert message.startswith("model.name = 'no_such_module:build': cannot be imported")
    message = refused("dp_ray.models.networks:Nothing", RGB)
    assert "has no attribute 'Nothing'" in message


@pytest.mark.parametrize("arguments", [{"colour": 1}, {"widths": [15]}, {"groups": 0}])
def test_arguments_that_the_network_does_not_take_are_refused(arguments: dict[str, Any]) -> None:
    message = refused("gn_cnn", TINY, **arguments)
    assert message.startswith(f"model.arguments = {arguments}: gn_cnn cannot be built")


def batch(examples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn((examples, 1, 8, 8), generator=generator)
    return images, torch.arange(examples) % 3


def test_group_norm_takes_the_place_of_batch_norm_alone() -> None:
    """Opacus would replace attention too, and its layers are refused: no ViT could be built."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2))
    kinds = [type(layer) for layer in _with_group_norm(network)]
    assert kinds == [nn.Conv2d, nn.GroupNorm, nn.MultiheadAttention]
    check_model(network)


def test_the_clash_of_opacus_626_is_real() -> None:
    """Opacus's hooks and torch.func both rewrite the forward pass; the message is theirs.

    Should this test fail one day, Opacus has mended it, and the refusal can go.
    """
    model = GradSampleModule(small_network())
    params = {name: p.detach() for name, p in model.named_parameters()}
    images, labels = batch()

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, params, (image[None],))
        return F.cross_entropy(logits, label[None])

    with pytest.raises(AttributeError, match="'Tensor' object has no attribute '_forward_counter'"):
        vmap(grad(loss), in_dims=(None, 0, 0))(params, images, labels)


# A first layer's input needs no gradient, which torch remarks on for each of Opacus's hooks.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("max_grad_norm", [0.5, 2.0, 1e4])
def test_this_projects_path_is_free_of_the_clash_and_equals_opacus(max_grad_norm: float) -> None:
    """Clipped sum at K = 1 against the per-sample gradients of Opacus's own hooks."""
    plain = small_network()
    images, labels = batch()
    params = {name: p.detach() for name, p in plain.named_parameters()}
    found = clipped_gradient_sum(
        plain, params, images[:, None], labels, max_grad_norm=max_grad_norm
    )

    hooked = GradSampleModule(small_network(), loss_reduction="mean")
    F.cross_entropy(hooked(images), labels).backward()
    samples = {
        name.removeprefix("_module."): p.grad_sample.double()
        for name, p in hooked.named_parameters()
    }
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()]).norm(dim=0)
    factors = (max_grad_norm / norms).clamp(max=1.0)
    assert set(samples) == set(found.gradients)
    torch.testing.assert_close(found.norms.double(), norms, rtol=1e-5, atol=0)
    for name, sample in samples.items():
        expected = torch.einsum("b,b...->...", factors, sample)
        error = (found.gradients[name].double() - expected).norm() / expected.norm()
        assert float(error) < 1e-5, name
    if max_grad_norm == 2.0:  # some are clipped and some are not, or the comparison shows little
        assert 0 < int((norms > max_grad_norm).sum()) < len(norms)
