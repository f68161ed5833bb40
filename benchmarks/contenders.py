"""The ways to take one step that step_speed.py compares, each for the same network and images.

A contender is built once and then called; a call returns the clipped sum as one vector in the order
of torch's parameters, or None where nothing is clipped. Shapes: B examples, K views, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.engines.engine import Precision, allow_tf32
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.models.build import build_model

MAX_GRAD_NORM = 1.0

Call = Callable[[], Tensor | None]

Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
        network: a name of :data:`NETWORKS`.
        examples: B.
        views: K.
        device: where.
    """

    network: str
    examples: int
    views: int
    device: str = "cpu"

    @property
    def shape(self) -> tuple[str, int, int]:
        """Network, B, K."""
        return self.network, self.examples, self.views

    @property
    def name(self) -> str:
        """Network, B × K."""
        return f"{self.network}, {self.examples} × {self.views}"


NETWORKS: dict[str, tuple[ModelConfig, DataFacts]] = {
    "WRN-16-4": (
        ModelConfig(name="wrn_16_4"),
        DataFacts(50_000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3),
    ),
    "WRN-16-4 plain": (
        ModelConfig(name="wrn_16_4", arguments={"standardized": False}),
        DataFacts(50_000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3),
    ),
    "WRN-40-4": (
        ModelConfig(name="wrn_40_4"),
        DataFacts(50_000, 10, 32, 3, (0.5,) * 3, (0.5,) * 3),
    ),
    "NF-ResNet-50": (
        ModelConfig(name="nf_resnet_50"),
        DataFacts(1_281_167, 1000, 224, 3, (0.5,) * 3, (0.5,) * 3),
    ),
    "ViT-B/16": (
        ModelConfig(name="vit_b_16"),
        DataFacts(1_281_167, 1000, 224, 3, (0.5,) * 3, (0.5,) * 3),
    ),
    "small CNN": (ModelConfig(name="tanh_cnn"), DataFacts(60_000, 10, 28, 1, (0.5,), (0.5,))),
}


def inputs(case: Case) -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    """Network, parameters, views [B, K, C, H, W] and labels [B]; the same for a given case."""
    config, facts = NETWORKS[case.network]
    network = build_model(config, facts, init_seed=0).to(case.device)
    params = {name: p.detach() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    shape = (case.examples, case.views, facts.channels, facts.image_size, facts.image_size)
    views = torch.randn(shape, generator=generator)
    labels = torch.randint(facts.num_classes, (case.examples,), generator=generator)
    return network, params, views.to(case.device), labels.to(case.device)


def ours(
    case: Case, name: str, precision: Precision = "float32", layout: Layout = "contiguous"
) -> Call:
    """This project's step; ``layout`` is that of its images in memory."""
    network, params, views, labels = inputs(case)
    if layout == "channels_last":
        images = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        views = images.unflatten(0, views.shape[:2])
    engine = build_engine(name, precision)

    def call() -> Tensor:
        found = clipped_gradient_sum(
            network, params, views, labels, max_grad_norm=MAX_GRAD_NORM, engine=engine
        )
        return torch.cat([found.gradients[name].flatten() for name in params])

    return call


def in_float64(case: Case) -> Tensor:
    """The clipped sum, by plain vmap in double precision."""
    network, params, views, labels = inputs(case)
    found = clipped_gradient_sum(
        network.double(),
        {name: p.double() for name, p in params.items()},
        views.double(),
        labels,
        max_grad_norm=MAX_GRAD_NORM,
        microbatch_size=min(case.examples, 8),
    )
    return torch.cat([found.gradients[name].flatten() for name in params])


def non_private(case: Case, *, compiled: bool, precision: Precision = "float32") -> Call:
    """The gradient of the mean loss over the same B·K images: the limit."""
    network, params, views, labels = inputs(case)
    images, labels = views.flatten(0, 1), labels.repeat_interleave(case.views)

    def step(params: dict[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        def loss(params: dict[str, Tensor]) -> Tensor:
            with torch.autocast(
                case.device,
                torch.bfloat16,
                enabled=precision == "bfloat16",
                cache_enabled=False,
            ):
                logits = functional_call(network, params, (images,))
            return F.cross_entropy(logits.float(), labels)

        gradients: dict[str, Tensor] = grad(loss)(params)
        return gradients

    run: Callable[..., Any] = step
    if compiled:  # as this project's step is
        graph = make_fx(step, tracing_mode="fake")(params, images, labels)
        run = torch.compile(graph, dynamic=False, fullgraph=True)

    def call() -> None:
        with allow_tf32(precision == "tf32"):
            run(params, images, labels)

    return call


def opacus(case: Case, *, functorch: bool) -> Call:
    """Opacus's per-sample gradients of all B·K views, averaged per example, then clipped."""
    from opacus.grad_sample import GradSampleModule

    network, _, views, labels = inputs(case)
    images, labels = views.flatten(0, 1), labels.repeat_interleave(case.views)
    module = GradSampleModule(
        copy.deepcopy(network), loss_reduction="sum", force_functorch=functorch
    )

    def call() -> Tensor:
        module.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels, reduction="sum").backward()
        means_b = [
            p.grad_sample.unflatten(0, (case.examples, case.views)).mean(1).flatten(1)
            for p in module.parameters()
        ]
        norms_b = torch.stack([g.norm(dim=1) for g in means_b]).norm(dim=0)
        factor_b = (MAX_GRAD_NORM / norms_b).clamp(max=1.0)
        return torch.cat([factor_b @ g for g in means_b])

    return call


def opacus_ghost(case: Case) -> Call:
    """Opacus's ghost clipping: norms from a first backward pass, the sum from a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    assert case.views == 1, "it clips each view by itself"
    network, _, views, labels = inputs(case)
    images = views.flatten(0, 1)
    module = GradSampleModuleFastGradientClipping(
        copy.deepcopy(network), loss_reduction="sum", max_grad_norm=MAX_GRAD_NORM
    )

    def call() -> Tensor:
        module.zero_grad(set_to_none=True)
        losses_b = F.cross_entropy(module(images), labels, reduction="none")
        module.enable_hooks()
        losses_b.sum().backward(retain_graph=True)
        factor_b = module.get_clipping_coef()
        module.zero_grad(set_to_none=True)
        module.disable_hooks()
        (factor_b * losses_b).sum().backward()
        module.enable_hooks()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    return call


def jax_privacy(case: Case) -> Call:
    """jax_privacy's clipped_grad of the same network in JAX, compiled by XLA."""
    import jax
    import jax.numpy as jnp
    from jax_networks import FORWARD
    from jax_privacy.clipping import clipped_grad

    _, params, views, labels = inputs(case)
    forward = FORWARD[case.network]
    jax_params = {name: jnp.asarray(p.numpy()) for name, p in params.items()}
    images = jnp.asarray(views.permute(0, 1, 3, 4, 2).contiguous().numpy())  # [B, K, H, W, C]
    jax_labels = jnp.asarray(labels.numpy())

    def loss(params: Any, images: Any, label: Any) -> Any:
        logits = forward(params, images)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(images)), label].mean()

    step = jax.jit(
        clipped_grad(loss, l2_clip_norm=MAX_GRAD_NORM, batch_argnums=(1, 2), keep_batch_dim=False)
    )

    def call() -> Tensor:
        found = jax.block_until_ready(step(jax_params, images, jax_labels))
        return torch.cat([torch.from_numpy(found[name].__array__()).flatten() for name in params])

    return call


def contenders(case: Case) -> dict[str, Callable[[], Call]]:
    """Name → builder of all that apply to a case."""
    found: dict[str, Callable[[], Call]] = {
        "non-private, eager": partial(non_private, case, compiled=False),
        "non-private, compiled": partial(non_private, case, compiled=True),
        "dp-ray vmap": partial(ours, case, "vmap"),
        "dp-ray per_layer": partial(ours, case, "per_layer"),
        "dp-ray vmap_compiled": partial(ours, case, "vmap_compiled"),
        "dp-ray per_layer_compiled": partial(ours, case, "per_layer_compiled"),
        "dp-ray vmap, bfloat16": partial(ours, case, "vmap", "bfloat16"),
        "dp-ray per_layer_compiled, bfloat16": partial(
            ours, case, "per_layer_compiled", "bfloat16"
        ),
        "Opacus functorch": partial(opacus, case, functorch=True),
        "jax_privacy": partial(jax_privacy, case),
    }
    if case.network != "WRN-16-4":  # its own convolutions have no rule in Opacus
        found["Opacus hooks"] = partial(opacus, case, functorch=False)
        if case.views == 1:
            found["Opacus ghost clipping"] = partial(opacus_ghost, case)
    return found
