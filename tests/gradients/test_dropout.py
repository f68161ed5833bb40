"""Random layers have torch's distribution on every shape, and are keyed by the example alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torch.func import vmap
from torchvision.ops import StochasticDepth

from dp_ray.config.model import ModelConfig
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.dropout import KeyedDropout
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.models.build import build_model

EXAMPLES = 3000

Layer = Callable[[Tensor], Tensor]


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)


def causal_attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x.cos(), x, None, 0.3, True, scale=0.7)


def grouped_attention(x: Tensor) -> Tensor:
    mask = torch.tensor([[True, False], [True, True]])
    few = x[:, :1] * torch.tensor([1.0, 2.0])
    options = {"attn_mask": mask, "dropout_p": 0.3, "enable_gqa": True}
    return F.scaled_dot_product_attention(x, few, few, **options)


def in_place(x: Tensor) -> Tensor:
    y = x * torch.rand_like(x).ceil()
    F.dropout(y, 0.3, inplace=True)  # the value that it returns is not used
    return y


CASES: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Dropout(0.3), (2, 3)),
    (nn.Dropout(1.0), (2, 3)),
    (nn.Dropout1d(0.3), (2, 3)),
    (nn.Dropout1d(0.3), (2, 2, 2)),
    (nn.Dropout2d(0.3), (2, 3)),
    (nn.Dropout2d(0.3), (2, 2, 2)),
    (nn.Dropout2d(0.3), (2, 2, 2, 1)),
    (nn.Dropout2d(0.3), (2, 2, 1, 2, 1)),
    (nn.Dropout3d(0.3), (2, 2, 2)),
    (nn.Dropout3d(0.3), (2, 2, 2, 1)),
    (nn.Dropout3d(0.3, inplace=True), (2, 2, 2, 1, 1)),
    (nn.AlphaDropout(0.3), (2, 3)),
    (nn.AlphaDropout(1.0), (2, 3)),
    (nn.FeatureAlphaDropout(0.3), (2, 2)),
    (nn.FeatureAlphaDropout(0.3), (2, 2, 2)),
    (StochasticDepth(0.3, "row"), (2, 3)),
    (StochasticDepth(0.3, "batch"), (2, 3)),
    (StochasticDepth(1.0, "row"), (2, 3)),
    (DropPath(0.3), (2, 3)),
    (nn.RReLU(-0.5, 0.5), (4,)),
    (attention, (2, 3)),
    (causal_attention, (1, 2, 2)),
    (grouped_attention, (1, 2, 2, 2)),
    (in_place, (4,)),
    (lambda x: x + torch.randn_like(x), (2,)),
    (lambda x: x * torch.rand(2), (2,)),
    (lambda x: torch.empty(2).uniform_(-1, 1) * x, (2,)),
    (lambda x: x.new_empty(2).normal_(1, 2) * x, (2,)),
    (F.gumbel_softmax, (2,)),
    (lambda x: torch.bernoulli(0.3 * x.abs().clamp(max=1)), (2,)),
]


@pytest.mark.filterwarnings("ignore:dropout.d. Received a:UserWarning")
@pytest.mark.parametrize(
    ("layer", "shape"), CASES, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_a_layer_has_torchs_distribution(layer: Layer, shape: tuple[int, ...]) -> None:
    """Means, and products of pairs of entries, which show what is dropped together."""
    torch.manual_seed(0)
    size = torch.Size(shape).numel()
    x = (torch.arange(size) % 3 - 1.5).reshape(shape)

    def keyed(seed: Tensor) -> Tensor:
        with KeyedDropout(seed):
            return layer(x.clone())

    ours = vmap(keyed, randomness="error")(torch.arange(EXAMPLES) * 7919 + 5)
    theirs = torch.stack([layer(x.clone()) for _ in range(EXAMPLES)])
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    ours, theirs = (torch.cat([t, t.abs()], 1) for t in (ours.flatten(1), theirs.flatten(1)))
    spread = theirs.std() + theirs.abs().mean()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() <= 0.12 * spread
    pairs = [t.T @ t / EXAMPLES for t in (ours, theirs)]
    assert (pairs[0] - pairs[1]).abs().max() <= 0.15 * pairs[1].abs().max() + 1e-9


def test_masks_are_those_of_earlier_versions() -> None:
    """A run that is resumed with a newer version draws what the older one drew."""

    def keyed(seed: Tensor) -> Tensor:
        with KeyedDropout(seed):
            x = F.dropout2d(torch.ones(2, 50, 2, 2), 0.3)
            return F.dropout(x, 0.5) + F.dropout1d(torch.ones(2, 50, 2), 0.2)[..., None]

    kept = vmap(keyed)(torch.tensor([1, -(1 << 62), 1 << 40])).ne(0).to(torch.uint8)
    found = hashlib.sha256(kept.numpy().tobytes()).hexdigest()[:16]
    assert found == "b0e7107b5283658d"


class Tokens(nn.Module):
    """A small transformer: attention with dropout, stochastic depth of two libraries."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.drop = PatchDropout(0.5, num_prefix_tokens=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.need_weights = need_weights
        self.depth, self.path = StochasticDepth(0.5, "row"), DropPath(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.drop(self.patch(x).flatten(2).transpose(1, 2))
        t = t + self.depth(self.layer(t))
        t = t + self.path(self.attention(t, t, t, need_weights=self.need_weights)[0])
        out: Tensor = self.head(t.mean(1))
        return out


def losses(network: nn.Module, engine: str = "vmap", size: int | None = None) -> Tensor:
    """Of equal examples with unequal seeds."""
    return clipped_gradient_sum(
        network,
        {name: p.detach() for name, p in network.named_parameters()},
        torch.ones(6, 2, 1, 8, 8),
        torch.zeros(6, dtype=torch.int64),
        max_grad_norm=1.0,
        dropout_seeds=torch.tensor([3, 4, 5, 3, 6, -7]),
        microbatch_size=size,
        engine=build_engine(engine),
    ).losses


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_of_attention_depends_on_the_seed_alone(need_weights: bool) -> None:
    torch.manual_seed(0)
    network = Tokens(need_weights)
    found = losses(network)
    torch.manual_seed(1)
    torch.testing.assert_close(found, losses(network, size=1))
    torch.testing.assert_close(found, losses(network, size=4))
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 5


@pytest.mark.slow
def test_random_layers_are_compiled() -> None:
    torch.manual_seed(0)
    network = Tokens()
    torch.testing.assert_close(losses(network, "vmap_compiled"), losses(network))


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., torch.randperm(x.shape[-1])]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(1, 1, 2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cells(x.unsqueeze(-1))[0][..., 0]
        return out


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Shuffled(), r"layer 1 \(Shuffled\): randperm draws random numbers .*torch.rand"),
        (Recurrent(), r"layer 1.cells \(LSTM\): lstm draws random .* dropout to 0"),
    ],
)
def test_other_random_operations_are_refused_by_name(layer: nn.Module, named: str) -> None:
    network = nn.Sequential(nn.Flatten(), layer, nn.Linear(64, 3))
    with pytest.raises(NotImplementedError, match=named):
        losses(network)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "vit_b_16", "alexnet"])
def test_torchvisions_networks_get_arguments_that_suit_the_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the message says which size of images is taken."""
    import torchvision

    asked: list[dict[str, object]] = []

    def get_model(_: str, **arguments: object) -> nn.Module:
        asked.append(arguments)
        if name == "alexnet":
            return nn.Sequential(nn.MaxPool2d(65, 65), nn.Flatten(), nn.Linear(3, 4))
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    facts = DataFacts(99, 4, 64, 3, (0.5,) * 3, (0.5,) * 3)
    if name == "alexnet":
        with pytest.raises(ConfigError, match=r"takes 75×75 images: set data\.image_size=75"):
            build_model(ModelConfig(name=name), facts)
        return
    build_model(ModelConfig(name=name), facts)
    wanted = {"vit_b_16": {"image_size": 64}}.get(name, {"aux_logits": False})
    assert wanted.items() <= asked[0].items()
    given: dict[str, object] = {key: not value for key, value in wanted.items()}
    build_model(ModelConfig(name=name, arguments=given), facts)  # the user's come first
    assert given.items() <= asked[1].items()
