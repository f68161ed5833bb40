"""Callbacks, called in a thread of their own from what a run leaves on its storage.

So they are the same with and without Ray, and hold nothing that the run computes with.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from dp_ray.artifacts.course import METRICS, Evaluated, Stepped, read_line
from dp_ray.artifacts.notes import DataNote, EngineNote, PhaseNote, StartNote
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.data.files import skipped_line
from dp_ray.errors import RunError
from dp_ray.imports import USER_ERRORS, cause_of
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.callbacks import Callback, PrivateValues, PublicValues

_INTERVAL_S = 0.25
_INTERVAL_OF_OBJECTS_S = 3.0
"""Between looks at the run's files: on a disk, in an object store."""

_STILL_S = 30.0
"""After so long without news, what is going on is reported again."""

_Note = TypeVar("_Note", DataNote, EngineNote, StartNote)

Event = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Method of a callback, and its arguments."""


class Dispatcher:
    """Calls callbacks in order, in a thread of their own; the first that fails stops the run.

    Args:
        callbacks: what is called.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._watch: RunWatch | None = None
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, name="dp-ray callbacks", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.send("on_end", None)
        self._events.put(None)
        self._thread.join()

    def message(self, text: str) -> None:
        """Send a line; see :meth:`Callback.on_message`."""
        self.send("on_message", text)

    def send(self, method: str, *args: Any, **options: Any) -> None:
        """Have a method called on each callback, after what was sent before."""
        self._events.put((method, args, options))

    def follow(self, watch: RunWatch) -> None:
        """Begin to report what a run leaves."""
        self._watch = watch
        if self._failure is not None:
            watch.stop()

    def check(self, *, finished: bool) -> None:
        """Raise the failure of a callback, once all were called.

        Args:
            finished: whether what they followed came to its end all the same.

        Raises:
            RunError: one failed; the message says which, and where.
        """
        if self._failure is None:
            return
        remedy = "What was charged is in the ledger: correct the callback, and resume the run"
        if finished:
            remedy = "All else is finished, and its results are whole"
        raise RunError(f"{self._failure}. {remedy}")

    def _work(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=_INTERVAL_S)
            except queue.Empty:
                self._look()
                continue
            # What the run left before this was sent comes before it.
            self._look(at_once=event is None or event[0] == "on_end")
            if event is None:
                return
            self._call(*event)

    def _look(self, *, at_once: bool = False) -> None:
        if self._watch is not None:
            for method, args, options in self._watch.news(at_once=at_once):
                self._call(method, args, options)

    def _call(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        for callback in list(self._callbacks):
            try:
                # Copies: a callback that changes what it is given changes nothing of the run.
                getattr(callback, method)(*copy.deepcopy(args), **options)
            except USER_ERRORS as error:
                self._callbacks.remove(callback)
                if self._failure is None:
                    name = type(callback).__name__
                    self._failure = f"callback {name}.{method} failed: {cause_of(error)}"
                    if self._watch is not None:
                        self._watch.stop()


class RunWatch:
    """What a run leaves on its storage while it runs, as events.

    Args:
        run: which.
        plan: its budget.
        config: what is trained.
    """

    def __init__(self, run: RunDirectory, plan: PrivacyPlan, config: Config) -> None:
        self._run = run
        self._plan = plan
        self._noised = config.data.evaluation_noise is not None
        self._interval_s = 0.0 if run.private.path is not None else _INTERVAL_OF_OBJECTS_S
        self._looked = 0.0
        self._offset = 0
        self._new_lines()  # of the sessions before
        self._steps: list[Stepped] = []
        self._progress: Progress | None = None
        self._notes: set[str] = set()
        self._phase = ""
        self._sent = time.monotonic()

    def stop(self) -> None:
        """Stop the run after the step at hand, with a checkpoint."""
        self._run.request_stop()

    def news(self, *, at_once: bool = False) -> Iterator[Event]:
        """Yield what happened since the last call; in an object store only now and then.

        Args:
            at_once: whether to look in any case.
        """
        if not at_once and time.monotonic() - self._looked < self._interval_s:
            return
        self._looked = time.monotonic()
        yield from self._told()
        for line in self._new_lines():
            yield from self._event(line)
        try:
            progress = Progress.read(self._run.private)
        except RunError:  # there is none yet
            yield from self._phases()
            return
        if progress != self._progress or self._is_still():
            self._progress, self._sent = progress, time.monotonic()
            yield "on_progress", (progress,), {}

    def _phases(self) -> Iterator[Event]:
        """Yield what the workers do before their first step, as it begins and now and then."""
        try:
            phase = PhaseNote.read(self._run.private).text
        except RunError:
            return
        if phase != self._phase or self._is_still():
            self._phase, self._sent = phase, time.monotonic()
            yield "on_status", (phase,), {}

    def _is_still(self) -> bool:
        return time.monotonic() - self._sent > _STILL_S

    def _told(self) -> Iterator[Event]:
        """Yield what the workers noted, each once."""
        if (data := self._note(DataNote)) is not None:
            line = skipped_line(data.skipped)
            if line is not None:
                yield "on_message", (line,), {}
        if (engine := self._note(EngineNote)) is not None:
            yield "on_message", (engine.line,), {"detail": not engine.note}
        if (start := self._note(StartNote)) is not None and start.line:
            yield "on_message", (start.line,), {}

    def _note(self, kind: type[_Note]) -> _Note | None:
        if kind.FILE in self._notes:
            return None
        try:
            note = kind.read(self._run.private)
        except RunError:
            return None
        self._notes.add(kind.FILE)
        return note

    def _event(self, line: bytes) -> Iterator[Event]:
        found = read_line(line)
        if isinstance(found, Stepped):
            self._steps.append(found)
        elif isinstance(found, Evaluated):
            public = PublicValues(
                step=found.step,
                steps=self._plan.steps,
                epsilon=found.epsilon,
                delta=self._plan.delta,
                max_grad_norm=found.max_grad_norm,
                metrics={} if self._noised else found.metrics,
            )
            private = PrivateValues(tuple(self._steps), found.metrics)
            self._steps = []
            yield "on_evaluation", (public, private), {}

    def _new_lines(self) -> list[bytes]:
        """Return the lines that were added to the run's course, once they are whole."""
        path = self._run.private.path
        try:
            if path is None:
                text = self._run.private.read(METRICS)[self._offset :]
            else:
                with (path / METRICS).open("rb") as file:
                    file.seek(self._offset)
                    text = file.read()
        except OSError:  # there is none yet
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
