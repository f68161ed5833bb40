"""How a run ended: in memory, and as result.json."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dp_ray.artifacts.times import roughly
from dp_ray.config.run import Config
from dp_ray.document import Document, Scored, read_file
from dp_ray.json_text import finite
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.objectives.single_label import METRICS
from dp_ray.privacy.history import History
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import Folder

Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: False if it was stopped and can be resumed.
        steps: updates taken.
        charges: noised sums paid for; more than ``steps`` if some were repeated.
        history: these sums as the accountant takes them.
        epsilon: what the accountant says of them.
        evaluation: on the test split, of what is released; None without test examples.
        seconds: wall-clock time of the last session; private.
        metric_names: of the objective, the primary one first.
        engines: that computed the sums, of all sessions.
        charged: the same as the ledger charged them; needed where accountants take them otherwise.
    """

    finished: bool
    steps: int
    charges: int
    history: History
    epsilon: float
    evaluation: Evaluation | None
    seconds: float
    metric_names: tuple[str, ...] = tuple(METRICS)
    engines: tuple[str, ...] = ()
    charged: History = ()

    @property
    def metrics(self) -> dict[str, float | None]:
        """The evaluation by the names that results have; null without test examples."""
        if self.evaluation is None:
            return dict.fromkeys(self.metric_names)
        return {name: finite(value) for name, value in self.evaluation.metrics.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the evaluation warns of."""
        return () if self.evaluation is None else self.evaluation.warnings


class Ending(Document):
    """What the result of a run, of a search and of an audit all say.

    Attributes:
        name: as configured.
        path: of its folder.
        status: ``finished``, ``stopped``, or ``running`` again.
    """

    FILE: ClassVar[str] = "result.json"
    REMEDY: ClassVar[str] = "Restore it from a backup, or remove it"

    name: str
    path: str
    status: Literal["finished", "stopped", "running"]


def is_finished(folder: Folder) -> bool:
    """Return whether the result in a folder says so: of any format, of a run or of a search.

    Raises:
        RunError: the result is damaged.
    """
    if not folder.exists(Ending.FILE):
        return False
    status = read_file(
        folder, Ending.FILE, sys.maxsize, lambda values, _: values["status"], Ending.REMEDY
    )
    return bool(status == "finished")


class Result(Ending, Scored):
    """result.json of a run; public but for figures of the test split, which are exact.

    Whoever may not see those of a held-out split may not see it (docs/privacy.md).

    Attributes:
        steps: updates taken.
        steps_planned: T.
        charges: noised sums paid for.
        epsilon: of them; None without noise, and while the run continues.
        delta: δ.
        epsilon_with_search: with what the search before it spent; None without noise.
        delta_with_search: δ of that; not given without a search.
        seconds: of the last session, to one digit.
        replay: whether the run repeats the draws and the noise of another one.
        warnings: of predictions that are of no use; exact figures of the test split, in words.
    """

    steps: int
    steps_planned: int
    charges: Count
    epsilon: float | None
    delta: float
    epsilon_with_search: float | None = None
    delta_with_search: float | None = None
    seconds: float
    replay: bool
    warnings: list[str] = Field(default_factory=list)

    @classmethod
    def of(
        cls, config: Config, plan: PrivacyPlan, outcome: Outcome, *, path: str, replay: bool
    ) -> Result:
        """Return the result of a run.

        Args:
            config: what was trained.
            plan: the privacy plan.
            outcome: how the run ended.
            path: of the run's folder.
            replay: whether the run repeats another one.
        """
        return cls(
            name=config.name,
            path=path,
            status="finished" if outcome.finished else "stopped",
            steps=outcome.steps,
            steps_planned=plan.steps,
            charges=outcome.charges,
            epsilon=finite(outcome.epsilon),
            delta=plan.delta,
            **with_search(config, outcome.epsilon),
            metrics=outcome.metrics,
            seconds=roughly(outcome.seconds),
            replay=replay,
            **({"warnings": list(outcome.warnings)} if outcome.warnings else {}),
        )

    def running(self, charges: int) -> Result:
        """Return the result of a run that continues: what was evaluated is no longer so."""
        return self.model_copy(
            update={
                "status": "running",
                "charges": charges,
                "epsilon": None,
                "metrics": dict.fromkeys(self.metrics),
                "warnings": [],
            }
        )


def with_search(config: Config, epsilon: float) -> dict[str, Any]:
    """What a run and the search before it spend together; nothing if there was none.

    Both ε and both δ are added up (Dwork & Roth 2014, Theorem 3.16), which holds whatever the run
    was changed to since the search.
    """
    before = config.privacy.search_epsilon
    if before is None:
        return {}
    return {
        "epsilon_with_search": finite(before + epsilon),
        "delta_with_search": 2 * config.privacy.delta,
    }
