"""``clipped_gradient_sum`` against a plain loop in float64, and the bound it promises."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import GREY, RGB, make, relative_error, trained
from helpers.oracle import loop_clipped_sum, loop_gradients, loop_norms
from torch import Tensor, nn

from dp_ray import clipped_gradient_sum
from dp_ray.data.facts import DataFacts
from dp_ray.gradients.clipping import Clipping

CLIPPINGS: tuple[Clipping, ...] = get_args(Clipping)
MODELS = {
    "gn_cnn": ("gn_cnn", GREY, 6),
    "tanh_cnn grey": ("tanh_cnn", GREY, 6),
    "tanh_cnn rgb": ("tanh_cnn", RGB, 3),
    "resnet18": ("resnet18", RGB, 2),
}


def data(facts: DataFacts, examples: int, views: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (examples, views, facts.channels, facts.image_size, facts.image_size)
    labels = torch.randint(0, facts.num_classes, (examples,), generator=generator)
    return torch.randn(shape, generator=generator), labels


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten().double() for g in gradients.values()])


@pytest.mark.parametrize(
    "model_name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "resnet18" else []) for n in MODELS],
)
@pytest.mark.parametrize("views", [1, 4, 5])
def test_equals_plain_loop(model_name: str, views: int) -> None:
    name, facts, examples = MODELS[model_name]
    model = make(name, facts)
    images, labels = data(facts, examples, views)
    mask = torch.ones(examples, dtype=torch.bool)
    mask[-1] = False
    examples_gradients = loop_gradients(model, images, labels)
    norms = loop_norms(examples_gradients)
    for max_grad_norm in (0.01, 0.1, 1.0, 10.0):
        for clipping in CLIPPINGS:
            expected = loop_clipped_sum(examples_gradients, mask, max_grad_norm, clipping)
            found = clipped_gradient_sum(
                model,
                trained(model),
                images,
                labels,
                max_grad_norm=max_grad_norm,
                clipping=clipping,
                mask=mask,
            )
            assert relative_error(found.gradients, expected) < 1e-5
            torch.testing.assert_close(found.norms.double(), norms, rtol=1e-4, atol=1e-7)
            assert found.sensitivity == max_grad_norm
        single = clipped_gradient_sum(
            model, trained(model), images[:1], labels[:1], max_grad_norm=max_grad_norm
        )
        alone = loop_clipped_sum(examples_gradients[:1], mask[:1], max_grad_norm)
        assert relative_error(single.gradients, alone) < 1e-5


@pytest.mark.parametrize("microbatch_size", [1, 4, 5, 64, None])
def test_microbatches_do_not_change_the_sum(microbatch_size: int | None) -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 13, 2)
    whole = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=0.5)
    cut = clipped_gradient_sum(
        model, trained(model), images, labels, max_grad_norm=0.5, microbatch_size=microbatch_size
    )
    assert relative_error(cut.gradients, {n: g.double() for n, g in whole.gradients.items()}) < 1e-6
    torch.testing.assert_close(cut.norms, whole.norms)
    torch.testing.assert_close(cut.losses, whole.losses)


def test_a_sum_is_added_to_what_is_given() -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 6, 2)
    params = trained(model)
    alone = clipped_gradient_sum(model, params, images, labels, max_grad_norm=0.5).gradients
    before = {name: torch.full_like(g, 0.25) for name, g in alone.items()}
    found = clipped_gradient_sum(
        model, params, images, labels, max_grad_norm=0.5, microbatch_size=6, into=before
    )
    for name, gradient in alone.items():
        assert found.gradients[name] is before[name]
        assert torch.equal(before[name], gradient + 0.25)


def test_no_example_gives_zero() -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 0, 4)
    found = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=1.0)
    assert all(float(g.abs().max()) == 0 for g in found.gradients.values())
    assert found.norms.shape == found.losses.shape == (0,)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_masked_examples_add_exactly_zero(clipping: Clipping) -> None:
    """Whatever stands in the padding, NaN too, the sum is bit for bit that of the real ones."""
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 6, 3)
    mask = torch.tensor([True, False, True, False, True, False])
    sums = []
    for filling in (0.0, 1e3, float("nan"), float("inf")):
        images[~mask] = filling
        found = clipped_gradient_sum(
            model,
            trained(model),
            images,
            labels,
            max_grad_norm=0.1,
            clipping=clipping,
            mask=mask,
        )
        sums.append(flat(found.gradients))
    assert all(torch.equal(sums[0], other) for other in sums[1:])
    nothing = clipped_gradient_sum(
        model, trained(model), images, labels, max_grad_norm=0.1, mask=torch.zeros_like(mask)
    )
    assert float(flat(nothing.gradients).abs().max()) == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_broken_gradients_add_exactly_zero(clipping: Clipping, poison: float) -> None:
    model = make("tanh_cnn", GREY)
    images, labels = data(GREY, 4, 2)

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        # Example with label 0 gets a gradient that is not finite, or whose norm is not.
        return F.cross_entropy(logits, label) * torch.where(label[0] == 0, poison, 1.0)

    labels = torch.tensor([1, 0, 2, 3])
    keep = torch.tensor([True, False, True, True])
    found = clipped_gradient_sum(
        model, trained(model), images, labels, max_grad_norm=0.1, clipping=clipping, loss_fn=loss
    )
    expected = loop_clipped_sum(loop_gradients(model, images, labels), keep, 0.1, clipping)
    assert not found.norms[1].isfinite()
    assert relative_error(found.gradients, expected) < 1e-5


@pytest.mark.parametrize("kind", ["constant", "normal"])
@pytest.mark.parametrize("size", [100, 10_000, 1_000_000])
def test_the_clipped_gradient_is_never_longer_than_c(kind: str, size: int) -> None:
    """Constant numbers are the worst case of a sum's rounding: it errs to one side."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 1, bias=False))
    generator = torch.Generator().manual_seed(size)
    images = torch.randn((4, 1, 1, 1, size), generator=generator)
    if kind == "constant":
        images = torch.full_like(images, 0.1)

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        return logits.mean() * (1 + label[0])

    for keep in range(4):
        found = clipped_gradient_sum(
            model,
            trained(model),
            images,
            torch.arange(4),
            max_grad_norm=1e-3,
            mask=torch.arange(4) == keep,
            loss_fn=loss,
        )
        assert 1 - 1e-5 < float(flat(found.gradients).norm()) / 1e-3 <= 1.0


@pytest.mark.parametrize("max_grad_norm", [0.1, 1.0])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("change", ["removed", "replaced", "nan", "huge"])
def test_one_example_moves_the_sum_by_at_most_c(
    max_grad_norm: float, clipping: Clipping, change: str
) -> None:
    """The sensitivity that the noise is scaled to, on neighbouring batches."""
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 16, 3)
    images *= 20  # gradients far above C
    other, mask = images.clone(), torch.ones(16, dtype=torch.bool)
    bound = max_grad_norm
    if change == "removed":
        mask[7] = False
    elif change == "replaced":
        other[7] = -other[7]
        bound = 2 * max_grad_norm  # one removed and one added
    else:
        other[7] = float("nan") if change == "nan" else 1e20
    before, after = (
        clipped_gradient_sum(
            model,
            trained(model),
            batch,
            labels,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            mask=kept,
        )
        for batch, kept in ((images, torch.ones_like(mask)), (other, mask))
    )
    moved = float((flat(before.gradients) - flat(after.gradients)).norm())
    assert moved <= bound + 1e-6
    if change == "removed":
        assert moved > 0.99 * max_grad_norm  # the bound is met, so the test can fail


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_no_example_is_lifted_above_c(clipping: Clipping) -> None:
    """Small gradients too, zero among them, and layers of which some are large."""
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 6, 2)
    scales = torch.tensor([0.0, 1e-12, 1e-3, 1.0, 30.0, 1e4])

    for keep, scale in enumerate(scales):

        def loss(logits: Tensor, label: Tensor, scale: Tensor = scale) -> Tensor:
            return scale * F.cross_entropy(logits, label)

        found = clipped_gradient_sum(
            model,
            trained(model),
            images,
            labels,
            max_grad_norm=0.7,
            clipping=clipping,
            mask=torch.arange(6) == keep,
            loss_fn=loss,
        )
        norm = float(flat(found.gradients).norm())
        assert norm <= 0.7
        assert (norm == 0) == (scale == 0)
        if clipping == "automatic" and scale == 1e-3:
            assert norm > float(found.norms[keep])  # lifted, towards C


def test_clipping_is_tight_for_many_parameters() -> None:
    """torch's own float32 norm of ten million numbers is 4e-4 short, which would break C."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1_000_000, 10, bias=False))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((1, 1, 1, 1000, 1000), generator=generator) + 0.5
    found = clipped_gradient_sum(
        model, trained(model), images, torch.tensor([3]), max_grad_norm=1.0
    )
    assert 1 - 1e-5 < float(flat(found.gradients).norm()) <= 1.0


def test_frozen_parameters_and_buffers_are_used_and_kept() -> None:
    class WithBuffer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(4, 4)
            self.frozen.requires_grad_(False)
            self.register_buffer("scale", torch.tensor(3.0))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.frozen(x.flatten(1)) * self.scale)
            return out

    torch.manual_seed(0)
    model = WithBuffer()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    images, labels = torch.randn(5, 2, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1])
    mask = torch.ones(5, dtype=torch.bool)
    found = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=0.3)
    expected = loop_clipped_sum(loop_gradients(model, images, labels), mask, 0.3)
    assert set(found.gradients) == {"head.weight", "head.bias"}
    assert relative_error(found.gradients, expected) < 1e-5
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_parameters_passed_in_are_the_ones_differentiated() -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 3, 1)
    moved = {name: p + 0.1 for name, p in trained(model).items()}
    at_model = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=9.0)
    at_moved = clipped_gradient_sum(model, moved, images, labels, max_grad_norm=9.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(moved[name])
    again = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=9.0)
    assert torch.equal(flat(at_moved.gradients), flat(again.gradients))
    assert not torch.equal(flat(at_model.gradients), flat(again.gradients))


def test_custom_loss() -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 4, 2)

    def smoothed(logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, label_smoothing=0.3)

    plain = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=1.0)
    custom = clipped_gradient_sum(
        model, trained(model), images, labels, max_grad_norm=1.0, loss_fn=smoothed
    )
    assert not torch.equal(plain.losses, custom.losses)
    logits = model(images[2])
    torch.testing.assert_close(custom.losses[2], smoothed(logits, labels[2].expand(2)))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5)])
def test_keyed_dropout_depends_on_seed_alone(layer: nn.Module) -> None:
    """The mask of an example is the same in any batch, and differs between seeds and views."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), layer, nn.Flatten(), nn.Linear(8 * 4, 3))
    images = torch.randn(1, 1, 1, 4, 4).expand(6, 2, 1, 4, 4)  # equal examples, equal views
    labels = torch.zeros(6, dtype=torch.int64)
    seeds = torch.tensor([11, 12, 13, 11, 15, -16])

    def losses(microbatch_size: int | None) -> Tensor:
        return clipped_gradient_sum(
            model,
            trained(model),
            images,
            labels,
            max_grad_norm=1.0,
            dropout_seeds=seeds,
            microbatch_size=microbatch_size,
        ).losses

    found = losses(None)
    torch.testing.assert_close(found, losses(1))
    torch.testing.assert_close(found[0], found[3])
    assert len(set(found.tolist())) == 5


def test_keyed_dropout_keeps_the_right_share() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(10_000, 2, bias=False))
    with torch.no_grad():
        model[2].weight.fill_(1e-4)
    # With equal weights both logits are the kept mean; the gradient shows the kept entries.
    found = clipped_gradient_sum(
        model,
        trained(model),
        torch.ones(4, 1, 1, 100, 100),
        torch.zeros(4, dtype=torch.int64),
        max_grad_norm=1e6,
        dropout_seeds=torch.tensor([1, 2, 3, 4]),
        mask=torch.tensor([False, True, False, False]),
    )
    kept = float((found.gradients["2.weight"][0] != 0).double().mean())
    assert abs(kept - 0.7) < 3.3 * (0.3 * 0.7 / 10_000) ** 0.5
    values = found.gradients["2.weight"][0]
    torch.testing.assert_close(
        values[values != 0], torch.full_like(values[values != 0], -0.5 / 0.7)
    )


def test_unkeyed_randomness_is_an_error_when_keyed() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x.flatten(1)[:, torch.randperm(4)])
            return out

    model = Noisy()
    images, labels = torch.randn(2, 1, 1, 2, 2), torch.tensor([0, 1])
    clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=1.0)
    with pytest.raises(NotImplementedError, match=r"Noisy.*randperm draws random"):
        clipped_gradient_sum(
            model,
            trained(model),
            images,
            labels,
            max_grad_norm=1.0,
            dropout_seeds=torch.tensor([1, 2]),
        )


def test_wrong_shapes_are_refused() -> None:
    model = make("gn_cnn", GREY)
    images, labels = data(GREY, 4, 2)
    params = trained(model)
    with pytest.raises(ValueError, match=r"\[B, K, …\]"):
        clipped_gradient_sum(model, params, images[:, 0].flatten(1), labels, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"\[B, K, …\] with K of at least 1"):
        clipped_gradient_sum(model, params, images[:, :0], labels, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"weights must be \[B, K\] = \(4, 2\), not \(4,\)"):
        clipped_gradient_sum(
            model, params, images, labels, max_grad_norm=1.0, weights=torch.ones(4)
        )
    whole = nn.Sequential(nn.Flatten(0), nn.Linear(images[0].numel(), 10))
    with pytest.raises(ValueError, match="for the views of one unit"):
        clipped_gradient_sum(whole, trained(whole), images, labels, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="same number"):
        clipped_gradient_sum(model, params, images, labels[:3], max_grad_norm=1.0)
    with pytest.raises(ValueError, match="same number"):
        clipped_gradient_sum(
            model, params, images, labels, max_grad_norm=1.0, mask=torch.ones(3, dtype=torch.bool)
        )
    for bound in (0.0, -1.0, 1e-30, float("nan")):
        with pytest.raises(ValueError, match="at least"):
            clipped_gradient_sum(model, params, images, labels, max_grad_norm=bound)
    with pytest.raises(ValueError, match="microbatch_size"):
        clipped_gradient_sum(model, params, images, labels, max_grad_norm=1.0, microbatch_size=-1)
    half = {name: p.bfloat16() for name, p in params.items()}
    with pytest.raises(ValueError, match="float32"):
        clipped_gradient_sum(model, half, images.bfloat16(), labels, max_grad_norm=1.0)


def test_a_scalar_parameter_is_trained_like_any_other() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x.flatten(1)) * self.scale
            return out

    torch.manual_seed(0)
    model = Scaled()
    images, labels = torch.randn(3, 2, 1, 2, 2), torch.tensor([0, 1, 2])
    found = clipped_gradient_sum(model, trained(model), images, labels, max_grad_norm=0.2)
    mask = torch.ones(3, dtype=torch.bool)
    expected = loop_clipped_sum(loop_gradients(model, images, labels), mask, 0.2)
    assert relative_error(found.gradients, expected) < 1e-5
