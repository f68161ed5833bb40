"""All engines give the sum that plain vmap gives; compiled ones are compiled once."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from helpers.oracle import loop_clipped_sum, loop_gradients, loop_norms
from torch import Tensor, nn

from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.gradients.clipped_sum import ClippedSum, clipped_gradient_sum
from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines import layer_rules
from dp_ray.gradients.engines.engine import Engine, EngineError
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.models.build import build_model
from dp_ray.models.wide_resnet import WideResNet

RGB = DataFacts(99, 3, 8, 3, (0.5,) * 3, (0.5,) * 3)
PLAIN: tuple[str, ...] = ("vmap", "per_layer")
COMPILED: tuple[str, ...] = ("vmap_compiled", "per_layer_compiled")


def smooth(network: nn.Module) -> nn.Module:
    """Without kinks: at a ReLU's, rounding may move a gradient by any amount."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return network


def wide_resnet() -> nn.Module:
    """Two blocks' worth of every layer that WRN-16-4 has, with parameters that matter."""
    torch.manual_seed(4)
    network = smooth(WideResNet(3, 8, 3, depth=10, width=1, groups=4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def tanh_cnn() -> nn.Module:
    return build_model(ModelConfig(name="tanh_cnn"), RGB, init_seed=1)


def tiny_cnn() -> nn.Module:
    """A strided convolution, a norm and a linear layer.

    Compiling takes seconds of a core for each operation, so the properties of compiled graphs are
    tested on this network, with five examples each time: a graph of before is found again.
    """
    torch.manual_seed(4)
    convolution, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4)
    return nn.Sequential(convolution, norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def data(examples: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    views = torch.randn(examples, 2, 3, 8, 8, generator=generator, dtype=dtype)
    return views, torch.randint(3, (examples,), generator=generator)


def run(
    engine: Engine,
    network: nn.Module,
    views: Tensor,
    labels: Tensor,
    mask: Tensor,
    c: float,
    clipping: Clipping = "flat",
) -> ClippedSum:
    params = {name: p.detach() for name, p in network.named_parameters()}
    seeds = torch.arange(len(views))
    return clipped_gradient_sum(
        network,
        params,
        views,
        labels,
        max_grad_norm=c,
        clipping=clipping,
        mask=mask,
        dropout_seeds=seeds,
        engine=engine,
    )


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference, in parts of the largest number."""
    scale = max(float(t.abs().max()) for t in expected.values())
    return max(float((found[n] - expected[n]).abs().max()) for n in expected) / scale


@pytest.mark.parametrize(
    ("name", "build"),
    [
        *((name, build) for name in PLAIN for build in (wide_resnet, tanh_cnn)),
        ("per_layer_compiled", tiny_cnn),
        pytest.param("vmap_compiled", tiny_cnn, marks=pytest.mark.slow),
        *(
            pytest.param(name, build, marks=pytest.mark.slow)
            for name in COMPILED
            for build in (wide_resnet, tanh_cnn)
        ),
    ],
)
def test_equals_a_plain_loop(name: str, build: type[nn.Module]) -> None:
    """Also with a mask, with other parameters, and where a gradient is no number."""
    network, engine = build(), build_engine(name)
    views, labels = data()
    mask = torch.tensor([True, True, False, True, True])
    for _ in range(2):
        examples = loop_gradients(network, views, labels)
        norms = loop_norms(examples)
        c = float(norms.median())
        found = run(engine, network, views, labels, mask, c)
        torch.testing.assert_close(found.norms.double(), norms, rtol=1e-5, atol=0)
        expected = loop_clipped_sum(examples, mask, c)
        assert distance({k: g.double() for k, g in found.gradients.items()}, expected) < 1e-5
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)

    without_first = run(engine, network, views, labels, mask & (torch.arange(5) > 0), c)
    for poison in (float("nan"), float("inf"), 1e38):
        poisoned = views.clone()
        poisoned[0, 0, 0, 0, 0] = poison
        found = run(engine, network, poisoned, labels, mask, c)
        if not found.norms[0].isfinite():
            assert distance(found.gradients, without_first.gradients) < 1e-6
        assert poison < 1e39 or not found.norms[0].isfinite()


@pytest.mark.parametrize(
    ("name", "build", "clipping"),
    [
        *(("per_layer", tanh_cnn, clipping) for clipping in get_args(Clipping)),
        ("per_layer_compiled", tiny_cnn, "flat"),
        *(
            pytest.param("per_layer_compiled", tiny_cnn, clipping, marks=pytest.mark.slow)
            for clipping in ("automatic", "per_layer")
        ),
    ],
)
def test_engines_clip_in_every_way(
    name: str, build: Callable[[], nn.Module], clipping: Clipping
) -> None:
    network, engine = build(), build_engine(name)
    views, labels = data()
    mask = torch.arange(5) != 2
    examples = loop_gradients(network, views, labels)
    for c in (0.3, float(loop_norms(examples).median())):
        found = run(engine, network, views, labels, mask, c, clipping)
        assert distance(found.gradients, loop_clipped_sum(examples, mask, c, clipping)) < 1e-5
    assert engine.num_compiled == (engine.uncompiled is not engine)


CONVOLUTIONS = {
    "strided": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "grouped": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "padding by word": lambda: nn.Conv2d(3, 4, 3, padding="same"),
    "no bias, 1×1": lambda: nn.Conv2d(3, 4, 1, bias=False),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("small", [0, 10**9], ids=["by example", "by patches"])
def test_the_rule_for_convolutions_is_exact(
    kind: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_rules, "_SMALL", small)
    torch.manual_seed(2)
    layers = [CONVOLUTIONS[kind](), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)]
    network = nn.Sequential(*layers)
    network(torch.zeros(1, 3, 8, 8))
    network.double()
    views, labels = data(4, torch.float64)
    mask = torch.ones(4, dtype=torch.bool)
    plain, ours = (run(build_engine(n), network, views, labels, mask, 0.5) for n in PLAIN)
    torch.testing.assert_close(ours.norms, plain.norms, rtol=1e-12, atol=0)
    assert distance(ours.gradients, plain.gradients) < 1e-12


@pytest.mark.parametrize(
    "name", ["per_layer_compiled", pytest.param("vmap_compiled", marks=pytest.mark.slow)]
)
def test_a_run_of_one_shape_compiles_once(name: str) -> None:
    from torch._dynamo.utils import counters

    network, engine = tiny_cnn(), build_engine(name)
    views, labels = data()
    mask = torch.ones(5, dtype=torch.bool)
    run(engine, network, views, labels, mask, 1.0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for step in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
        mask = torch.arange(5) < step
        run(engine, network, views + step, (labels + step) % 3, mask, 1.0)
    assert counters["stats"]["unique_graphs"] == graphs
    assert engine.num_compiled == 1


def test_what_is_compiled_saw_no_data() -> None:
    """The graph is made from shapes: it is right for values of which it never saw the like."""
    network, engine = tiny_cnn(), build_engine("per_layer_compiled")
    views, labels = data()
    nothing = torch.zeros(5, dtype=torch.bool)
    first = run(engine, network, torch.zeros_like(views), torch.zeros_like(labels), nothing, 0.1)
    assert not any(g.any() for g in first.gradients.values())
    everything = ~nothing
    found = run(engine, network, views, labels, everything, 0.1)
    expected = run(build_engine(), network, views, labels, everything, 0.1)
    assert distance(found.gradients, expected.gradients) < 1e-5
    assert engine.num_compiled == 1


@pytest.mark.parametrize(
    ("name", "build"),
    [
        *((name, build) for name in PLAIN for build in (wide_resnet, tanh_cnn)),
        pytest.param("per_layer_compiled", tiny_cnn, marks=pytest.mark.slow),
        # torch 2.15's compiler writes C++ with a name twice for some other networks: vmap then.
        pytest.param("per_layer_compiled", tanh_cnn, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_computes_shortly_and_sums_in_full(name: str, build: type[nn.Module]) -> None:
    network = build()
    views, labels = data(6)
    mask = torch.ones(6, dtype=torch.bool)
    full = run(build_engine(), network, views, labels, mask, 1e9)
    short = run(build_engine(name, "bfloat16"), network, views, labels, mask, 1e9)
    assert 1e-6 < distance(short.gradients, full.gradients) < 0.1
    torch.testing.assert_close(short.norms, full.norms, rtol=0.05, atol=0)
    assert {g.dtype for g in short.gradients.values()} == {torch.float64}
    assert short.norms.dtype == short.losses.dtype == torch.float32
    engine = build_engine(name, "bfloat16")
    for i in range(6):  # clipped to C in float32, whatever the network computed in
        one = run(engine, network, views, labels, torch.arange(6) == i, 0.01)
        vector = torch.cat([g.flatten() for g in one.gradients.values()]).double()
        assert 0.0099 < float(vector.norm()) <= 0.01


class Linear(nn.Module):
    """Its gradient by the weight is the image itself."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("name", ["vmap", pytest.param("vmap_compiled", marks=pytest.mark.slow)])
def test_rounding_carries_no_neighbour_past_c(name: str) -> None:
    """Without its first example all others move by a place, into microbatches that round anew.

    With equal numbers everywhere the errors of a float32 sum line up with the gradient.
    """
    size, b, engine = 1024, 128, build_engine(name)
    network, generator = Linear(size), torch.Generator().manual_seed(3)

    def total(images: Tensor, c: float) -> Tensor:
        whole = torch.zeros(size, dtype=torch.float64)
        for start in range(0, 4 * b, b):
            part = images[start : start + b]
            padded = torch.zeros(b, 1, 1, 1, size)
            padded[: len(part), 0, 0, 0] = part
            found = clipped_gradient_sum(
                network,
                {"weight": network.weight.detach()},
                padded,
                torch.zeros(b, dtype=torch.int64),
                max_grad_norm=c,
                mask=torch.arange(b) < len(part),
                loss_fn=_mean_output,
                engine=engine,
            )
            whole += found.gradients["weight"]
        return whole

    for c in (0.7, 1.3):
        for _ in range(8):
            lengths = 3 * (1 + torch.rand(4 * b, 1, generator=generator))
            images = lengths.expand(-1, size)
            moved = float((total(images, c) - total(images[1:], c)).norm())
            assert 0.999 * c < moved <= c


def _mean_output(outputs: Tensor, _labels: Tensor) -> Tensor:
    return outputs.mean()


class WeightsByExample(nn.Module):
    """A convolution whose weights depend on the example: no rule fits it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.conv2d(x, self.conv.weight * x.mean(), self.conv.bias)
        return y.mean(dim=(2, 3))


def test_a_network_that_no_rule_fits_is_left_to_vmap() -> None:
    views, labels = data(3)
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="weights differ"):
        run(build_engine("per_layer"), WeightsByExample(), views, labels, mask, 1.0)
    run(build_engine("vmap"), WeightsByExample(), views, labels, mask, 1.0)


def test_a_compiler_that_fails_is_told_of() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            y = x.mean(dim=(2, 3)) * self.weight
            return y if float(self.weight.detach().sum()) > 0 else -y

    views, labels = data(3)
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(EngineError, match=r"DataDependent|data-dependent"):
        run(build_engine("vmap_compiled"), Branching(), views, labels, mask, 1.0)


def test_graphs_are_kept_apart_by_model_and_take_any_bound() -> None:
    first, engine = tiny_cnn(), build_engine("per_layer_compiled")
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    views, labels = data()
    mask = torch.ones(5, dtype=torch.bool)
    sums = [run(engine, n, views, labels, mask, c) for n in (first, second) for c in (0.1, 0.2)]
    plain = [
        run(build_engine(), n, views, labels, mask, c) for n in (first, second) for c in (0.1, 0.2)
    ]
    assert engine.num_compiled == 2  # C is an input: it may move from step to step
    for ours, theirs in zip(sums, plain, strict=True):
        assert distance(ours.gradients, theirs.gradients) < 1e-5


def test_the_core_loads_no_compiler_until_it_is_asked_for() -> None:
    code = (
        "import sys, dp_ray; dp_ray.clipped_gradient_sum; "
        "sys.exit('torch._inductor.compile_fx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "name", [*PLAIN, *(pytest.param(name, marks=pytest.mark.slow) for name in COMPILED)]
)
def test_views_have_weights(name: str) -> None:
    """Unequal ones against a float64 loop; equal ones give the sum of none, bit for bit."""
    network = tiny_cnn()
    views, labels = data()
    mask = torch.tensor([True, True, False, True, True])
    weights = torch.tensor([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.4, 0.6]])
    params = {n: p.detach() for n, p in network.named_parameters()}
    engine = build_engine(name)

    def weighted(weights: Tensor | None, microbatch_size: int | None = None) -> ClippedSum:
        return clipped_gradient_sum(
            network,
            params,
            views,
            labels,
            max_grad_norm=0.7,
            weights=weights,
            mask=mask,
            microbatch_size=microbatch_size,
            engine=engine,
        )

    units = loop_gradients(network, views, labels, weights)
    found = weighted(weights)
    assert distance(found.gradients, loop_clipped_sum(units, mask, 0.7)) < 1e-5
    torch.testing.assert_close(found.norms.double(), loop_norms(units), rtol=1e-4, atol=1e-6)
    if name in PLAIN:
        assert distance(weighted(weights, 2).gradients, found.gradients) < 1e-6
    equal, none = weighted(torch.full((5, 2), 0.5)), weighted(None)
    assert all(torch.equal(equal.gradients[n], none.gradients[n]) for n in none.gradients)


class Tokens(nn.Module):
    """A mean of embeddings, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, T] whole numbers → [n, 3]."""
        logits: Tensor = self.head(torch.tanh(self.table(x)).mean(dim=1))
        return logits


def shaped(kind: str) -> tuple[nn.Module, Tensor]:
    """A network and views [4, 2, …] of features, sequences, volumes or tokens."""
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(1)
    if kind == "tokens":
        return Tokens(), torch.randint(11, (4, 2, 6), generator=generator)
    networks: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "features": (nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), (7,)),
        "sequences": (
            nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
            (2, 8),
        ),
        "volumes": (
            nn.Sequential(nn.Conv3d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
            (1, 4, 4, 4),
        ),
    }
    network, shape = networks[kind]
    return network, torch.randn(4, 2, *shape, generator=generator)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", ["features", "sequences", "volumes", "tokens"])
def test_views_have_any_shape(name: str, kind: str) -> None:
    network, views = shaped(kind)
    labels, mask = torch.tensor([0, 1, 2, 1]), torch.tensor([True, True, True, False])
    found = run(build_engine(name), network, views, labels, mask, 0.4)
    expected = loop_clipped_sum(loop_gradients(network, views, labels), mask, 0.4)
    assert distance(found.gradients, expected) < 1e-5
