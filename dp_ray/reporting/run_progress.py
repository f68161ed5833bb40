"""The live line of a run: how far, how fast, how much ε, how long still.

It reads what rank 0 leaves in progress.json, so it is the same with and without Ray.
"""

from __future__ import annotations

from rich.console import Console

from dp_ray.artifacts.notes import DataNote, EngineNote, PhaseNote, StartNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.data.files import skipped_line
from dp_ray.errors import RunError
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.live import LiveLines, say
from dp_ray.reporting.words import about, duration

_INTERVAL_S = 0.5
_INTERVAL_OF_OBJECTS_S = 3.0


class ProgressLine(LiveLines):
    """Shows a run's progress while it is entered.

    Args:
        run: whose progress.json to read.
        plan: T and the accountant.
        console: where to show it.
    """

    def __init__(self, run: RunDirectory, plan: PrivacyPlan, console: Console) -> None:
        on_disk = run.private.path is not None
        super().__init__(console, _INTERVAL_S if on_disk else _INTERVAL_OF_OBJECTS_S)
        self._run = run
        self._plan = plan
        self._note = "starting"
        self._engine_told = False
        self._skipped_told = False
        self._start_told = False

    def note(self, text: str) -> None:
        """What is going on, shown until there are numbers, or in front of them."""
        self._note = text

    def lines(self) -> list[str]:
        """See :class:`LiveLines`."""
        self.tell_notes()
        return [self.line()]

    def log_line(self) -> str:
        """See :class:`LiveLines`; rounded, because speed shows how many examples join a step."""
        self.tell_notes()
        return self.line(exact=False)

    def tell_notes(self) -> None:
        """Print each of the workers' notes once, as soon as it is there."""
        self._tell_skipped()
        self._tell_engine()
        self._tell_start()

    def _tell_start(self) -> None:
        if self._start_told:
            return
        try:
            line = StartNote.read(self._run.private).line
        except RunError:
            return
        self._start_told = True
        if line:
            say(self._console, line)

    def _tell_skipped(self) -> None:
        """Says once what the workers left out of the data, where only they have it."""
        if self._skipped_told:
            return
        line = left_out(self._run)
        self._skipped_told = line is not None
        if line is not None:
            say(self._console, line)

    def _tell_engine(self) -> None:
        """Says once how microbatches are computed, as soon as the workers have agreed on it.

        Where there is no terminal it says so only if something is not as one would expect.
        """
        if self._engine_told:
            return
        try:
            choice = EngineNote.read(self._run.private)
        except RunError:
            return
        self._engine_told = True
        if self._console.is_terminal or choice.note:
            say(self._console, choice.line)

    def line(self, *, exact: bool = True) -> str:
        """The line as it is now; see :func:`describe_progress`."""
        try:
            progress = Progress.read(self._run.private)
        except RunError:
            return f"{self._phase()} … {(duration if exact else about)(self.elapsed_s)}"
        stopping = f"{self._note}, " if self._run.stop_requested() else ""
        return stopping + describe_progress(progress, self._plan, exact=exact)

    def _phase(self) -> str:
        """What the workers do before the first step; before they began, the driver's note."""
        if self._run.stop_requested():
            return self._note
        try:
            return PhaseNote.read(self._run.private).text
        except RunError:
            return self._note


def left_out(run: RunDirectory) -> str | None:
    """Return a line on what a run's workers left out of the data; None if they noted nothing."""
    try:
        return skipped_line(DataNote.read(run.private).skipped)
    except RunError:
        return None


def describe_progress(progress: Progress, plan: PrivacyPlan, *, exact: bool = True) -> str:
    """Return one line, for 80 columns.

    ε is shown for the next twentieth of the run, never too low: the accountant takes a moment.

    Args:
        progress: private, because it has the speed of the last steps.
        plan: T and the accountant.
        exact: for the user's eyes. Otherwise the step is that of the twentieth of the run, and
            speed and time left have one digit: logs are kept, and others may read them.
    """
    name, value = next(iter(progress.metrics.items()), ("", None))
    seconds_left = progress.seconds_left
    grid = max(plan.steps // 20, 1)
    spent = plan.epsilon_after(min(-(-progress.charges // grid) * grid, plan.steps))
    if progress.repaired and len(plan.noise_factors) > 1:
        spent = plan.epsilon  # a repair charges the least noise, whatever the place in the run
    step, speed = progress.step, progress.images_per_second
    if not exact:
        step, speed = step - step % grid, float(f"{speed:.1g}")
    parts = [f"step {step}/{plan.steps}"]
    if exact or speed:
        parts.append(f"{'' if exact else 'about '}{speed:,.0f} images/s")
    parts.append(f"ε ≤ {spent:.2f} of {plan.epsilon:.2f}")
    if value is not None:
        parts.append(f"{name.removeprefix('test_')} {value:.3f}")
    if seconds_left is not None:
        left = duration(seconds_left) if exact else about(seconds_left)
        parts.append(f"{left} left")
    return ", ".join(parts)
