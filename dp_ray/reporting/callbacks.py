"""What a run reports as it runs: the protocol that the terminal's display implements as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dp_ray.artifacts.course import Stepped
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Ending
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.search.search import Search


@dataclass(frozen=True)
class PublicValues:
    """What an evaluation shows of the model, computed from releases: ε covers it.

    Attributes:
        step: updates taken.
        steps: T.
        epsilon: spent so far; infinite without noise.
        delta: δ.
        max_grad_norm: C of the next step.
        metrics: of the test split by name, such as ``test_accuracy``; None for one that is not
            finite. ε does not cover the test split (docs/privacy.md). Empty without test examples,
            and with ``data.evaluation_noise``, which makes exact figures private.
    """

    step: int
    steps: int
    epsilon: float
    delta: float
    max_grad_norm: float
    metrics: Mapping[str, float | None]

    @property
    def accuracy(self) -> float | None:
        """Share of the test examples that the model is right on; None if it is not known here."""
        return self.metrics.get("test_accuracy")


@dataclass(frozen=True)
class PrivateValues:
    """What an evaluation shows of the private data: never to be published.

    Attributes:
        steps: examples drawn, loss, clipped fraction, norm and time of each step since the last
            evaluation.
        metrics: exact figures of the test split.
    """

    steps: tuple[Stepped, ...]
    metrics: Mapping[str, float | None]


class Callback:
    """Follows a run, a search or an audit. Override what you need; each method does nothing.

    All methods are called in one thread of their own, in order, one at a time. A run does not wait
    for them until its end. They receive copies: nothing that they do to an argument reaches the
    run, which trains the same parameters with any callbacks. If a method raises, the run stops
    after the step at hand, with a checkpoint, and ``dp_ray.train`` raises one line that names it;
    the run can be resumed.
    """

    def on_start(self, path: str, plan: PrivacyPlan) -> None:
        """Take note that a run begins or continues.

        Args:
            path: of the run's folder.
            plan: its solved budget.
        """

    def on_status(self, text: str) -> None:
        """Show what is going on, such as the start of Ray; the next text replaces it.

        What goes on for long is reported again every half minute.
        """

    def on_message(self, text: str, *, detail: bool = False) -> None:
        """Show one line, such as what was skipped of the data.

        Args:
            text: the line; it names nothing of the data that a log may not hold.
            detail: whether it only says that all is as usual.
        """

    def on_progress(self, progress: Progress) -> None:
        """Show how far the run is, after a step and every half minute of a longer one.

        Private: its speed shows how many examples were drawn.
        """

    def on_evaluation(self, public: PublicValues, private: PrivateValues) -> None:
        """Use the figures of an evaluation; each evaluation is reported once, in order.

        Args:
            public: what may be shown.
            private: what must not be published.
        """

    def on_search(self, search: Search, epsilon: float) -> None:
        """Take note that a search begins or continues, and of the ε that all of it costs."""

    def on_end(self, result: Ending | None) -> None:
        """Take note of the end.

        Args:
            result: what ``result.json`` holds; None if an error ended it.
        """
