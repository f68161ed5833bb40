"""A run in the terminal: how far, how fast, how much ε, how long still."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Ending
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.callbacks import Callback
from dp_ray.reporting.live import LOG_EVERY, LOG_INTERVAL_S, say
from dp_ray.reporting.search_progress import SweepProgress
from dp_ray.reporting.words import about, duration
from dp_ray.search.search import Search


class TerminalProgress(Callback):
    """Shows a run, a search or an audit in a terminal; a log gets a line now and then.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._search: SweepProgress | None = None
        self._plan: PrivacyPlan | None = None
        self._progress: Progress | None = None
        self._status = ""
        self._stopping = False
        self._started = self._logged = time.monotonic()
        self._last = ""

    def on_start(self, path: str, plan: PrivacyPlan) -> None:
        """See :class:`Callback`."""
        del path
        self._plan, self._progress, self._stopping = plan, None, False
        self._started = self._logged = time.monotonic()
        self._status = self._status or "starting"
        self._show()

    def on_status(self, text: str) -> None:
        """See :class:`Callback`."""
        self._status = text
        self._stopping = self._progress is not None
        if self._search is None:
            self._show()
            self._log()

    def on_message(self, text: str, *, detail: bool = False) -> None:
        """See :class:`Callback`; a log is spared what is as usual."""
        if self._console.is_terminal or not detail:
            say(self._console, text)

    def on_progress(self, progress: Progress) -> None:
        """See :class:`Callback`."""
        self._progress = progress
        self._log()

    def on_search(self, search: Search, epsilon: float) -> None:
        """See :class:`Callback`."""
        self._hide()
        self._search = SweepProgress(search, epsilon, self._console)
        self._search.__enter__()

    def on_end(self, result: Ending | None) -> None:
        """See :class:`Callback`."""
        del result
        self._hide()
        if self._search is not None:
            self._search.__exit__(None, None, None)
            self._search.tell_skipped()  # without a terminal it was not printed before
            self._search = None
        self._status, self._plan, self._progress = "", None, None

    def line(self, *, exact: bool = True) -> str:
        """Return the line as it is now; see :func:`describe_progress`."""
        if self._plan is None or self._progress is None:
            elapsed = time.monotonic() - self._started
            return f"{self._status} … {(duration if exact else about)(elapsed)}"
        stopping = f"{self._status}, " if self._stopping else ""
        return stopping + describe_progress(self._progress, self._plan, exact=exact)

    def _log(self) -> None:
        """Add a line to a log now and then; one that stays the same shows that all is well."""
        if self._console.is_terminal or self._plan is None:
            return
        waited, line = time.monotonic() - self._logged, self.line(exact=False)
        if waited > LOG_INTERVAL_S * (LOG_EVERY if line == self._last else 1):
            say(self._console, line)
            self._logged, self._last = time.monotonic(), line

    def _show(self) -> None:
        if self._console.is_terminal and self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=lambda: Text(self.line(), no_wrap=True, overflow="ellipsis"),
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


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
