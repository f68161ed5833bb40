"""The live lines of a search: trials done, the best so far, time left, and the running trials.

They read what trials leave on the disk, so they are the same wherever trials run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rich.console import Console

from dp_ray.artifacts.notes import DataNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.data.files import skipped_line
from dp_ray.errors import DpRayError, RunError
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.live import LiveLines, say
from dp_ray.reporting.words import about, describe_point, duration
from dp_ray.search.search import Search, TrialRecord

_INTERVAL_S = 0.5
_INTERVAL_OF_OBJECTS_S = 5.0


@dataclass(frozen=True)
class TrialProgress:
    """How far one trial is.

    Attributes:
        name: its name.
        words: where in the space it is.
        state: running, done or failed.
        step: updates taken.
        plan: T, B̄ and K.
        metric: as last evaluated.
    """

    name: str
    words: str
    state: str
    step: int
    plan: PrivacyPlan
    metric: float | None

    @property
    def views_done(self) -> float:
        """Views that were differentiated: what time is spent on."""
        return self.step * self.plan.expected_batch_size * self.plan.views


class SweepProgress(LiveLines):
    """Shows a search's progress while it is entered.

    Args:
        search: whose trials.
        epsilon: of the whole search, as planned.
        console: where to show it.
    """

    def __init__(self, search: Search, epsilon: float, console: Console) -> None:
        on_disk = search.directory.private.path is not None
        super().__init__(console, _INTERVAL_S if on_disk else _INTERVAL_OF_OBJECTS_S)
        self._search = search
        self._epsilon = epsilon
        self._settled: dict[str, TrialProgress] = {}
        self._views_before: float | None = None
        self._skipped_told = False

    def lines(self, *, exact: bool = True) -> list[str]:
        """See :class:`LiveLines`.

        Args:
            exact: for the user's eyes; otherwise times have one digit.
        """
        trials = self._read()
        if exact:
            self.tell_skipped()
        elapsed, shown = self.elapsed_s, duration if exact else about
        running = [trial for trial in trials if trial.state == "running"]
        if not trials:
            return [f"starting Ray … {shown(elapsed)}"]
        states = [trial.state for trial in trials]
        parts = [f"{states.count('done')} of {self._search.most_trials} trials done"]
        if failed := states.count("failed"):
            parts.append(f"{failed} failed")
        # Whoever sees how trials do, and stops or starts anew for it, breaks a selection's bound.
        blind = self._search.sweep.tune.only_best_may_be_seen
        if not blind and (best := self._best(trials)) is not None:
            assert best.metric is not None
            parts.append(f"best {self._search.metric} {best.metric:.3f}")
        parts.append(f"ε of the search {self._epsilon:.2f}")
        if (left := self._seconds_left(trials, elapsed)) is not None:
            parts.append(f"{shown(left)} left")
        return [", ".join(parts), *(_running_line(trial, blind=blind) for trial in running)]

    def log_line(self) -> str:
        """See :class:`LiveLines`; how many trials there are may be a secret, and logs are kept."""
        if self._search.sweep.tune.only_best_may_be_seen:
            return f"searching … {about(self.elapsed_s)}"
        return self.lines(exact=False)[0]

    def tell_skipped(self) -> None:
        """Says once what workers on a cluster left out of the data, which all trials share."""
        folder = self._search.directory.trials
        if self._skipped_told or self._search.example().cluster.address is None:
            return  # the driver has read the data itself
        lines = (_left_out(RunDirectory(folder / name)) for name in folder.names())
        if (line := next(filter(None, lines), None)) is not None:
            self._skipped_told = True
            say(self._console, line)

    def _best(self, trials: list[TrialProgress]) -> TrialProgress | None:
        sign = 1 if self._search.larger_is_better else -1
        done = [t for t in trials if t.state == "done" and t.metric is not None]
        return max(done, key=lambda t: sign * (t.metric or 0.0), default=None)

    def _seconds_left(self, trials: list[TrialProgress], elapsed: float) -> float | None:
        """From the views that are left and the pace of this session."""
        done = sum(trial.views_done for trial in trials)
        if self._views_before is None:
            self._views_before = done
        pace = (done - self._views_before) / elapsed
        if pace <= 0:
            return None
        return max(self._all_views(trials) - done, 0.0) / pace

    def _all_views(self, trials: list[TrialProgress]) -> float:
        if self._search.points is not None:
            return self._drawn_views
        plans = [trial.plan for trial in trials]
        return _views(plans) / len(plans) * max(self._search.most_trials, len(plans))

    @cached_property
    def _drawn_views(self) -> float:
        budgets = self._search.budgets
        return _views([budgets.trial_at(point)[1] for point in self._search.points or ()])

    def _read(self) -> list[TrialProgress]:
        folder = self._search.directory.trials
        found = []
        for name in folder.names():
            try:
                trial = self._settled.get(name) or self._read_trial(name)
            except (OSError, LookupError, DpRayError):  # being written
                continue
            if trial is not None:
                found.append(trial)
                if trial.state == "done":
                    self._settled[name] = trial
        return found

    def _read_trial(self, name: str) -> TrialProgress | None:
        run = RunDirectory(self._search.directory.trials / name)
        record = TrialRecord.read(run.root)
        if record is None:
            return None
        _, plan = self._search.budgets.trial_at(record.point)
        words = describe_point(record.point)
        metric = self._search.metric
        if run.finished():
            value = Result.read(run.root).metrics[metric]
            return TrialProgress(name, words, "done", plan.steps, plan, value)
        state = "running" if record.error is None else "failed"
        progress = Progress.find(run.private)
        if progress is None:
            return TrialProgress(name, words, state, 0, plan, None)
        return TrialProgress(name, words, state, progress.step, plan, progress.metrics[metric])


def _left_out(run: RunDirectory) -> str | None:
    """What a trial's workers left out of the data; None if they noted nothing."""
    try:
        return skipped_line(DataNote.read(run.private).skipped)
    except RunError:
        return None


def _views(plans: list[PrivacyPlan]) -> float:
    return sum(plan.steps * plan.expected_batch_size * plan.views for plan in plans)


def _running_line(trial: TrialProgress, *, blind: bool) -> str:
    shown = "" if trial.metric is None or blind else f", {trial.metric:.3f}"
    return f"  {trial.name}  step {trial.step}/{trial.plan.steps}{shown}  ({trial.words})"
