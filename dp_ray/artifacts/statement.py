"""The privacy statement of a release: what is promised, in numbers.

:mod:`dp_ray.artifacts.claim` makes the statement of a run; :mod:`dp_ray.reporting.statement` puts
one in plain words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from dp_ray.document import Document, Part, Scored
from dp_ray.privacy.accounting import AccountantName, epsilon_of
from dp_ray.privacy.adaptive import AdaptiveClipping
from dp_ray.privacy.history import History

_AGREES = 1e-2
"""Relative difference of ε that other versions of an accountant may have."""

_FINITE = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Epsilons = dict[AccountantName, NonNegative | None]
"""ε by accountant; None without noise."""


class Sums(Part):
    """Noised sums of one kind."""

    model_config = _FINITE

    noise_multiplier: NonNegative
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    sums: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, history: History) -> list[Sums]:
        """Return the parts of a history."""
        return [cls(noise_multiplier=s, sample_rate=q, sums=count) for s, q, count in history]

    @staticmethod
    def history(parts: Sequence[Sums]) -> History:
        """Return parts as a history."""
        return tuple((part.noise_multiplier, part.sample_rate, part.sums) for part in parts)


class OwnCost(Part):
    """What training the model of a search spent by itself, which is not the cost."""

    model_config = _FINITE

    epsilon: NonNegative | None
    epsilon_by_accountant: Epsilons = Field(default_factory=dict)
    note: str = ""


class SearchNote(Part):
    """What a statement says of the search that its model came out of.

    Attributes:
        privacy_mode: of the search.
        epsilon_of_search: of the whole search; None if it is infinite.
        how: by which theorem.
        of_this_run_alone: not given where the data of the search is public.
    """

    model_config = _FINITE

    privacy_mode: str
    epsilon_of_search: NonNegative | None
    how: str
    of_this_run_alone: OwnCost | None = None


class Statement(Document, Scored):
    """privacy.json of a release; published.

    A release folder may come from anywhere: every number is checked to be one.

    Attributes:
        released: the noised sums, as accountants take them.
        charged: the same as the ledger charged them; given where accountants take them otherwise.
    """

    FILE: ClassVar[str] = "privacy.json"
    REMEDY: ClassVar[str] = "Restore it from a backup, or use the version of dp-ray that wrote it"
    model_config = _FINITE

    metrics: Annotated[dict[str, float | None], Field(min_length=1)]
    epsilon: NonNegative | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: AccountantName
    epsilon_by_accountant: Epsilons = Field(default_factory=dict)
    epsilon_with_search: NonNegative | None = None
    delta_with_search: Positive | None = None
    noise_multiplier: NonNegative
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: int
    charges: int
    noise_factors: Annotated[list[Positive], Field(min_length=1)]
    max_grad_norm: Positive
    clipping: str
    adaptive_clipping: AdaptiveClipping | None
    views: int
    expected_batch_size: int
    num_examples: Annotated[int, Field(ge=1)]
    mechanism: str
    released: list[Sums]
    charged: list[Sums] | None = None
    unit_of_privacy: str
    adjacency: str
    replay: bool
    warning: str | None
    test_accuracy_noise: Positive | None = None
    test_accuracies_published: Annotated[int, Field(ge=1)] | None = None
    epsilon_of_test_accuracy: NonNegative | None = None
    data_evaluation: Literal["held_out", "public"]
    assumptions: list[str]
    versions: dict[str, str]
    search: SearchNote | None = None

    @model_validator(mode="after")
    def _noise_is_shared(self) -> Statement:
        if self.adaptive_clipping is not None:
            self.adaptive_clipping.sum_noise_multiplier(self.noise_multiplier)
        return self

    @property
    def test_accuracy(self) -> float | None:
        """Share of the test images that the model is right on; None without test images."""
        return self.metrics.get("test_accuracy")

    @property
    def history(self) -> History:
        """What was released in training, as the accountants take it."""
        return Sums.history(self.released)

    @property
    def is_of_search(self) -> bool:
        """Whether ε is that of a search, and not of training this one model."""
        return self.search is not None and self.search.privacy_mode != "public"

    @property
    def counts_search(self) -> bool:
        """Whether the cost is more than what training this one model spent."""
        return self.is_of_search or self.epsilon_with_search is not None

    @property
    def cost(self) -> tuple[float | None, float]:
        """(ε, δ) of all that is counted, a search included; ε is None without noise."""
        if self.epsilon_with_search is not None and self.delta_with_search is not None:
            return self.epsilon_with_search, self.delta_with_search
        return self.epsilon, self.delta

    @property
    def own_epsilon(self) -> float:
        """ε of training this model alone, a search not counted; infinite without noise."""
        epsilon, search = self.epsilon, self.search
        if self.is_of_search and search is not None and search.of_this_run_alone is not None:
            epsilon = search.of_this_run_alone.epsilon
        return math.inf if epsilon is None else epsilon

    @property
    def declared(self) -> str:
        """What the user declares the test images to be, in words."""
        return self.data_evaluation.replace("_", " ")

    def understates(self) -> bool:
        """Whether the ε that it claims is less than its own list of noised sums comes to."""
        claimed = math.inf if self.epsilon is None else self.epsilon
        return claimed < (1 - _AGREES) * epsilon_of(self.accountant, self.history, self.delta)
