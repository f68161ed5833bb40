"""Lines that a thread keeps up to date in the terminal, or adds to a log every so often."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

LOG_INTERVAL_S = 30.0
"""Between lines where there is no terminal."""

LOG_EVERY = 2
"""Of lines that repeat the one before, one in this many is printed."""


def say(console: Console, text: str) -> None:
    """Prints a line as it is, above what is live."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveLines(ABC):
    """Shows :meth:`lines` while it is entered; where there is no terminal, :meth:`log_line`.

    Args:
        console: where to show them.
        interval_s: seconds between looks, in a terminal.
    """

    def __init__(self, console: Console, interval_s: float) -> None:
        self._console = console
        self._interval_s = interval_s
        self._ended = threading.Event()
        work = self._show if console.is_terminal else self._log
        self._thread = threading.Thread(target=work, daemon=True)
        self._started = time.monotonic()

    @abstractmethod
    def lines(self) -> list[str]:
        """The lines as they are now."""

    @abstractmethod
    def log_line(self) -> str:
        """The line that a log gets now and then, of what may be read by whoever reads it."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            while not self._ended.wait(self._interval_s):
                live.update(Text("\n".join(self.lines()), no_wrap=True, overflow="ellipsis"))

    def _log(self) -> None:
        last, repeated = "", 0
        while not self._ended.wait(LOG_INTERVAL_S):
            line = self.log_line()
            repeated = repeated + 1 if line == last else 0
            if repeated % LOG_EVERY == 0:  # the same line again shows that all is well
                say(self._console, line)
            last = line
