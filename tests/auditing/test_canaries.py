"""How canaries get into the data, and what an audit's witness makes of what is released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import MakeConfig, key_of
from scipy import stats
from torch import Tensor, nn

from dp_ray.auditing.canaries import Canaries, CanaryKind, plant
from dp_ray.auditing.observers import GradientObserver, scores
from dp_ray.auditing.planted import Directions, Planted
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import RunError
from dp_ray.gradients.clipped_sum import clipped_gradient_sum
from dp_ray.gradients.clipping import Clipping
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.layout import trained_parameters
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.privacy.adaptive import LARGEST_CLIP
from dp_ray.storage import open_folder
from dp_ray.training.probe import Observation

KEY = key_of(5)
COMPILED: tuple[str, ...] = ("vmap_compiled", "per_layer_compiled")
N = 1437
CPU = torch.device("cpu")


@pytest.fixture
def digits(make_config: MakeConfig) -> Dataset:
    """Handwritten digits, as they are loaded."""
    return open_dataset(make_config().data)


def planted(canaries: Canaries, clipping: Clipping = "flat") -> Planted:
    """Gradient canaries in a network of two layers and 785 parameters, for five classes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    settings: Any = {"objective": SingleLabel(5), "num_classes": 5, "max_grad_norm": 1.0}
    found = Planted.of(canaries, network, clipping, **settings, device=CPU)
    assert found is not None
    return found


def clipped_sum(given: Planted, labels: list[int], norm: float, engine: str = "vmap") -> Tensor:
    """[P] of as many examples, each with three views of its own, in one microbatch."""
    views = torch.randn(len(labels), 3, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    found = clipped_gradient_sum(
        given.network,
        trained_parameters(given.network),
        views,
        torch.tensor(labels),
        max_grad_norm=norm,
        clipping=given.clipping,
        loss_fn=given.loss,
        engine=build_engine(engine),
    )
    return given.layout.join(found.gradients)


def test_coins_are_fair_and_have_a_key_of_their_own() -> None:
    canaries = Canaries.draw("gradient", 20_000, 50_000, key=KEY)
    assert stats.binomtest(int(canaries.included.sum()), 20_000).pvalue > 1e-3
    assert len(np.unique(canaries.replaced)) == 20_000
    assert stats.kstest(canaries.replaced / 50_000, "uniform").pvalue > 1e-3
    # Neither places nor choices tell anything of a coin.
    for other in (canaries.replaced, canaries.choices(20_000)):
        table = stats.contingency.crosstab(other % 2, canaries.included).count
        assert stats.chi2_contingency(table).pvalue > 1e-3
    again = Canaries.draw("gradient", 20_000, 50_000, key=KEY)
    assert again.digest() == canaries.digest()
    for differs in (
        Canaries.draw("gradient", 20_000, 50_000, key=KEY, run=1),
        Canaries.draw("gradient", 20_000, 50_000, key=key_of(6)),
        replace(canaries, included=~canaries.included),
        replace(canaries, kind="mislabelled"),
    ):
        assert differs.digest() != canaries.digest()


@pytest.mark.parametrize("kind", ["gradient", "mislabelled"])
def test_a_coin_is_one_example_more_or_less(digits: Dataset, kind: CanaryKind) -> None:
    """All other examples, and their labels, are what they are whatever the coins."""
    canaries = Canaries.draw(kind, 300, N, key=KEY)
    one = int(np.flatnonzero(~canaries.included)[0])
    flipped = canaries.included.copy()
    flipped[one] = True
    without, with_it = plant(digits, canaries), plant(digits, replace(canaries, included=flipped))
    assert len(without.train) == N - 300 + canaries.included.sum()
    assert len(with_it.train) == len(without.train) + 1
    assert with_it.facts.num_examples == without.facts.num_examples == N
    assert with_it.digest != without.digest != digits.digest

    place = int(np.searchsorted(canaries.rows(N), canaries.replaced[one]))
    images, labels = with_it.train.read(np.arange(len(with_it.train)))
    others = np.arange(len(labels)) != place
    kept_images, kept_labels = without.train.read(np.arange(len(without.train)))
    assert np.array_equal(images[others], kept_images)
    assert np.array_equal(labels[others], kept_labels)
    assert np.array_equal(images[place], digits.train.read(canaries.replaced)[0][one])


def test_only_included_canaries_are_mislabelled(digits: Dataset) -> None:
    canaries = Canaries.draw("mislabelled", 1000, N, key=KEY)
    wrong = canaries.wrong_labels(digits.train.labels[canaries.replaced], 10)
    shift = (wrong - digits.train.labels[canaries.replaced]) % 10
    assert set(shift) == set(range(1, 10))
    assert stats.chisquare(np.bincount(shift)[1:]).pvalue > 1e-3
    split = plant(digits, canaries).train
    rows = canaries.rows(N)
    canary = np.full(N, -1)
    canary[canaries.replaced] = np.arange(1000)
    which = canary[rows]
    assert np.array_equal(split.labels[which < 0], digits.train.labels[rows[which < 0]])
    assert np.array_equal(split.labels[which >= 0], wrong[which[which >= 0]])
    assert np.array_equal(np.unique(which[which >= 0]), np.flatnonzero(canaries.included))


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per_layer"])
@pytest.mark.parametrize("norm", [0.01, 1.0, 30.0, LARGEST_CLIP])
def test_a_gradient_canary_adds_c_in_its_direction(clipping: Clipping, norm: float) -> None:
    """As much as any example may, and no more, also where C has grown; by layers, their share."""
    given = planted(Canaries.draw("gradient", 40, N, key=KEY), clipping)
    share = 1 / np.sqrt(2) if clipping == "per_layer" else 1.0
    for which in (0, 7):
        total = clipped_sum(given, [5 + which], norm)
        assert float(total.norm()) <= norm
        along = given.directions.along(total)[which]
        assert float(along) == pytest.approx(share * norm, rel=0.02)
        assert int((total != 0).sum()) == 1
    assert given.amplitude(norm) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize(
    "engine",
    ["vmap", "per_layer", *(pytest.param(e, marks=pytest.mark.slow) for e in COMPILED)],
)
def test_canaries_and_examples_share_a_microbatch(engine: str) -> None:
    """The engine takes both; an example adds what it adds in a run without canaries."""
    given = planted(Canaries.draw("gradient", 40, N, key=KEY))
    together = clipped_sum(given, [2, 5 + 7, 4], 1.0, engine)
    with_other = clipped_sum(given, [2, 5 + 9, 4], 1.0, engine)
    directions = given.directions
    change = torch.zeros_like(together)
    for which, sign in ((7, 1.0), (9, -1.0)):
        change[directions.parameter[which]] += sign * directions.sign[which]
    assert float((together - with_other - change).abs().max()) < 1e-4
    plain = clipped_gradient_sum(
        given.network.network,
        trained_parameters(given.network.network),
        torch.randn(3, 3, 1, 4, 5, generator=torch.Generator().manual_seed(1)),
        torch.tensor([2, 0, 4]),
        max_grad_norm=1.0,
        mask=torch.tensor([True, False, True]),
    )
    of_examples = torch.cat([g.flatten() for g in plain.gradients.values()])
    change = together - of_examples
    change[directions.parameter[7]] -= directions.sign[7]
    assert float(change.abs().max()) < 1e-4


def test_directions_are_apart_and_of_either_sign() -> None:
    canaries = Canaries.draw("gradient", 700, N, key=KEY)
    directions = Directions.of(canaries, 785, CPU)
    assert len(torch.unique(directions.parameter)) == 700
    assert stats.binomtest(int((directions.sign > 0).sum()), 700).pvalue > 1e-3
    shared = Directions.of(canaries, 50, CPU)  # more canaries than parameters share them evenly
    assert torch.bincount(shared.parameter).tolist() == [14] * 50


def test_a_label_says_which_canary_an_example_is(digits: Dataset) -> None:
    drawn = Canaries.draw("gradient", 300, N, key=KEY)
    _, labels = plant(digits, drawn).train.read(np.arange(len(drawn.rows(N))))
    assert np.array_equal(labels[labels >= 10] - 10, np.flatnonzero(drawn.included))
    rest = np.delete(np.arange(N), drawn.replaced)
    assert np.array_equal(drawn.rows(N)[labels < 10], rest)
    network, settings = nn.Linear(2, 2), {"objective": SingleLabel(2), "num_classes": 2}
    settings |= {"max_grad_norm": 1.0, "device": CPU}
    for other in (replace(drawn, kind="mislabelled"), None):
        assert Planted.of(other, network, "flat", **settings) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_scores_are_log_likelihood_ratios_of_all_releases(tmp_path: Path, rate: float) -> None:
    """Of N(0, s²) and of its mixture with N(1, s²), where s is what the scores themselves show."""
    canaries = Canaries.draw("gradient", 700, N, key=KEY)
    given, folder = planted(canaries), open_folder(str(tmp_path))
    witness = GradientObserver(folder, given.directions, 0.5, rate)
    generator = torch.Generator().manual_seed(0)
    expected, s = np.zeros(700), 3.0
    for step in range(2):
        noised = 0.5 * s * torch.randn(785, generator=generator)
        for _ in range(2):  # a release that is seen again counts once
            witness.observe(Observation(step, 0, noised, torch.zeros(785)))
        x = given.directions.along(noised).numpy() / 0.5
        low, high = np.quantile(x, [0.25, 0.75])
        spread = (high - low) / (2 * stats.norm.ppf(0.75))
        assert spread == pytest.approx(s, rel=0.1)
        with_it = (1 - rate) * stats.norm.pdf(x, 0, spread) + rate * stats.norm.pdf(x, 1, spread)
        expected += np.log(with_it / stats.norm.pdf(x, 0, spread)) / 2
    assert scores(folder) == pytest.approx(expected, abs=1e-4)


def test_nothing_seen_is_told(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(RunError, match="saw no release"):
        scores(folder)
    folder.write("00000000-0.npy", b"torn")
    with pytest.raises(RunError, match="cannot be read"):
        scores(folder)
