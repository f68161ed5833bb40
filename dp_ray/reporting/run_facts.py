"""What a report tells of a run, read from what the run left, and sorted by who may see it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from dp_ray.artifacts.card import usage
from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.consistency import can_compare_sums, disagreement
from dp_ray.artifacts.course import Evaluated, Stepped, read_course
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.public_config import published_config
from dp_ray.artifacts.released_model import ClassNames
from dp_ray.artifacts.result import Outcome, Result
from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.artifacts.statement import Statement
from dp_ray.config.files import parse_config
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.data.sources.registry import is_self_contained
from dp_ray.errors import ConfigError, DpRayError, OwnCodeError, RunError
from dp_ray.imports import reading
from dp_ray.ledger.balance import Session
from dp_ray.ledger.ledger import Ledger
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.reporting.ledger import facts_of
from dp_ray.reporting.prediction_sheet import PICTURE
from dp_ray.reporting.words import without_paths
from dp_ray.search.search import TRIAL
from dp_ray.storage import Folder


@dataclass(frozen=True)
class PrivateFacts:
    """What only the run's owner may see.

    Attributes:
        steps: in order, each as it was taken last.
        ledger: from :func:`~dp_ray.reporting.ledger.facts_of`; None if it does not verify.
        sessions: coordinators that worked on the run.
        seconds: of the last session, wall-clock; None before its end.
        examples: PNG of test images with prediction and truth; None before an evaluation.
    """

    steps: list[Stepped]
    ledger: dict[str, Any] | None
    sessions: list[Session]
    seconds: float | None
    examples: bytes | None

    @property
    def seconds_per_step(self) -> float | None:
        """The median."""
        return median(step.seconds for step in self.steps) if self.steps else None


@dataclass(frozen=True)
class RunFacts:
    """All that a report tells.

    Attributes:
        name: of the run.
        finished: whether its model is released.
        statement: what may be claimed of it.
        checked: whether the ledger bears the statement out.
        config: public, as YAML.
        needs_data: whether the data's folder has to be given to train it again.
        notices: what the reader must know before all else.
        evaluations: over the steps.
        private: None in what may be published.
        class_names: by label; empty if the classes have no names.
        use: how the released model is used, in Markdown; empty where nothing is released.
        warnings: of predictions that are of no use: exact figures of the test split.
    """

    name: str
    finished: bool
    statement: Statement
    checked: bool
    config: str
    needs_data: bool
    notices: list[str]
    evaluations: list[Evaluated]
    private: PrivateFacts | None
    class_names: tuple[str, ...] = ()
    use: str = ""
    warnings: tuple[str, ...] = ()


def read_run(folder: Folder, *, public: bool, own_code: bool = False) -> RunFacts:
    """What there is to tell of a run.

    Args:
        folder: the run's.
        public: leave out what is private, and refuse what may not be published.
        own_code: see :func:`~dp_ray.imports.reading`.

    Raises:
        DpRayError: there is nothing to tell, or with ``public`` nothing that may be told.
    """
    with _readable(folder), reading(own_code=own_code):
        facts = _read_run(RunDirectory(folder))
    if not public:
        return facts
    if folder.exists(TRIAL):
        raise RunError(
            f"{folder} is a trial of a search, and what may be published of a search is its best "
            "trial alone: give the search"
        )
    if not facts.finished:
        raise RunError(
            f"{folder} is unfinished, and nothing of it is published: continue it with dp-ray "
            "train … --resume, or leave out --public"
        )
    if not facts.checked:
        raise RunError(f"{folder} cannot be reported on in public: {facts.notices[0]}")
    evaluations = facts.evaluations
    if facts.statement.test_accuracy_noise is not None:  # those of other steps have none
        evaluations = [replace(e, metrics=dict.fromkeys(e.metrics)) for e in evaluations]
    # They say more of a test split than its declared metrics do.
    warnings = facts.warnings if facts.statement.data_evaluation == "public" else ()
    return replace(facts, evaluations=evaluations, private=None, warnings=warnings)


def read_release(release: Folder, *, own_code: bool = False) -> RunFacts:
    """What a release folder tells by itself, wherever it was copied to.

    Args:
        release: the folder.
        own_code: see :func:`~dp_ray.imports.reading`.

    Raises:
        RunError: it is none, or damaged.
    """
    with _readable(release), reading(own_code=own_code):
        statement = Statement.read(release)
        values = _released_config(release)
        return RunFacts(
            name=str(values["name"]),
            finished=True,
            statement=statement,
            checked=False,
            **_config(values),
            notices=[
                *_notices(statement),
                *_contradictions(values, statement),
                *_uncompared(values),
            ],
            evaluations=[],
            private=None,
            **_use(release, values),
        )


def _read_run(run: RunDirectory) -> RunFacts:
    evaluations, steps = read_course(run.private)
    result = Result.find(run.root)
    ended = result is not None and result.status == "finished"
    published, release = None, run.root / RELEASE
    if run.root.exists(RELEASE):
        published = Statement.read(release)
    ledger, damage = _read_ledger(run)
    if ledger is None:
        if published is None:
            raise RunError(damage)
        statement, finished = published, True
        notices = [f"The ledger could not be read, so nothing bears the numbers out: {damage}"]
    else:
        finished = published is not None and ended
        statement = _as_charged(run, ledger, evaluations)
        if finished and published is not None and published.history == ledger.history:
            statement, notices = published, _notices(published)
        elif finished:
            finished, notices = False, [_GONE_ON]
        else:
            notices = [_UNRELEASED if ended else _UNFINISHED]
    if run.root.exists(TRIAL):
        notices.insert(0, _OF_A_SEARCH)
    if statement.warning is not None:
        notices.append(statement.warning)
    contradictions: list[str] = []
    if finished:
        values = _released_config(release)
        contradictions = _contradictions(values, statement)
        notices += _uncompared(values)
    elif ledger is not None:
        values = published_config(run.config(), ledger.plan)
    notices = [*contradictions, *notices]
    return RunFacts(
        name=str(values["name"]),
        finished=finished,
        statement=statement,
        checked=ledger is not None and not contradictions and not statement.understates(),
        **_config(values),
        notices=[without_paths(notice) for notice in dict.fromkeys(notices)],
        evaluations=evaluations,
        private=PrivateFacts(
            steps=steps,
            ledger=None if ledger is None else facts_of(ledger),
            sessions=[] if ledger is None else ledger.sessions,
            seconds=_read_seconds(run),
            examples=run.private.read(PICTURE) if run.private.exists(PICTURE) else None,
        ),
        warnings=tuple(result.warnings) if result is not None and finished else (),
        **(_use(release, values) if finished else {}),
    )


def _config(values: dict[str, Any]) -> dict[str, Any]:
    """What is said of a public configuration."""
    needs_data = not is_self_contained(values["data"]["name"])
    return {"config": without_paths(write_yaml(values)), "needs_data": needs_data}


def _use(release: Folder, values: dict[str, Any]) -> dict[str, Any]:
    """What is said of how a release is used."""
    found = ClassNames.find(release)
    names = () if found is None else tuple(found.names)
    try:
        return {"class_names": names, "use": usage(values, names)}
    except ConfigError:  # which is a contradiction by itself
        return {"class_names": names}


_UNFINISHED = (
    "This run is not finished. Nothing of it is published yet, and what it has spent so far is "
    "what the ledger says; it will be more."
)
_UNRELEASED = (
    "This run came to its end, and its release is not here: a trial that was not chosen has none."
)
_OF_A_SEARCH = (
    "This run is a trial of a search. The ε here is its own, which is not the cost: that is in the "
    "report of the search."
)
_GONE_ON = (
    "The ledger and the published statement (release/privacy.json) list different noised sums: the "
    "run was gone on with after it was published, or one of the two was replaced. The numbers here "
    "are the ledger's."
)
_UNDERSTATED = (
    "The ε that is claimed is less than what the accountant makes of the noised sums that the "
    "statement itself lists. Do not rely on it."
)

_UNCOMPARED = (
    "The mechanism is somebody's own code (privacy.mechanism), which was not run (see "
    "--own-code): the sums were not compared with the configuration."
)


def _released_config(release: Folder) -> dict[str, Any]:
    values: dict[str, Any] = read_yaml(release.read(CONFIG).decode())
    return values


def _contradictions(values: dict[str, Any], statement: Statement) -> list[str]:
    """What the statement and the configuration of a release contradict each other in.

    Args:
        values: of the configuration; anybody may have written it.
        statement: which.
    """
    if statement.understates():  # which is a notice by itself
        return []
    try:
        found = disagreement(statement, parse_config(values))
    except ConfigError as error:
        found = f"config.yaml cannot be read: {error}"
    return [] if found is None else [f"The published documents contradict each other: {found}."]


def _uncompared(values: dict[str, Any]) -> list[str]:
    """What :func:`_contradictions` did not check."""
    try:
        return [] if can_compare_sums(parse_config(values)) else [_UNCOMPARED]
    except ConfigError:  # which is a contradiction by itself
        return []


def _notices(statement: Statement) -> list[str]:
    found = [_UNDERSTATED] if statement.understates() else []
    return found if statement.warning is None else [*found, statement.warning]


def _read_ledger(run: RunDirectory) -> tuple[Ledger | None, str]:
    """The ledger, or what is wrong with it."""
    try:
        ledger = run.read_ledger()
        _ = ledger.history  # which its mechanism knows
        return ledger, ""
    except (OwnCodeError, RunError) as error:
        return None, str(error)
    except (KeyError, TypeError, ValueError) as error:
        return None, f"another version of dp-ray wrote it ({type(error).__name__}: {error})"


def _as_charged(run: RunDirectory, ledger: Ledger, evaluations: list[Evaluated]) -> Statement:
    """The statement that the run would make if it ended here."""
    plan, config = ledger.plan, run.config()
    metrics = evaluations[-1].metrics if evaluations else {}
    values = {name: math.nan if value is None else value for name, value in metrics.items()}
    outcome = Outcome(
        finished=False,
        steps=ledger.steps,
        charges=ledger.charges,
        history=ledger.history,
        epsilon=epsilon_of(plan.accountant, ledger.history, plan.delta),
        evaluation=Evaluation(values) if values else None,
        seconds=0.0,
        metric_names=tuple(metrics) or ("test_accuracy",),
        engines=ledger.engines,
        charged=ledger.charged,
    )
    statement = privacy_statement(config, plan, outcome, replay=run.is_replay())
    machine = ledger.sessions[-1].execution.machine if ledger.sessions else {}
    versions = {name: str(machine[name]) for name in ("torch", "numpy") if name in machine}
    return statement.model_copy(update={"versions": versions})


def _read_seconds(run: RunDirectory) -> float | None:
    """What the last session took; result.json has it rounded."""
    try:
        return Progress.read(run.private).seconds
    except RunError:
        return None


@contextmanager
def _readable(folder: Folder) -> Iterator[None]:
    """Whatever is wrong with files that anybody may have written is told, not raised."""
    try:
        yield
    except DpRayError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} cannot be read ({type(error).__name__}: {error}): a file is damaged, or "
            "another version of dp-ray wrote it. Restore it from a backup, or use that version"
        ) from error
