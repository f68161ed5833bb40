"""Errors that a user can act on: the command line prints them without a traceback."""

from __future__ import annotations

from typing import Any

_LONGEST = 400


class DpRayError(Exception):
    """A mistake or a condition outside dp-ray, told in words the user can act on."""

    @property
    def shared(self) -> str:
        """The message for a log that others may read: it names no file or folder of the data."""
        return str(self)


def shown(value: Any) -> str:
    """A user's value as a message quotes it: what is long is cut short."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


class ConfigError(DpRayError):
    """A configuration value that cannot be used.

    Args:
        field: dotted path of the field, for example ``privacy.delta``.
        value: the value that was found there.
        problem: what is wrong with it.
        remedy: what to do instead.
        shared: the problem without what it tells of the data; by default it tells nothing.
    """

    def __init__(
        self, field: str, value: Any, problem: str, remedy: str, *, shared: str | None = None
    ) -> None:
        super().__init__(field, value, problem, remedy)
        self._shared = shared
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return self._text(self.problem)

    def _text(self, problem: str) -> str:
        field = self.field if self.field.isprintable() else ascii(self.field)
        return f"{field} = {shown(self.value)}: {problem}. {self.remedy.rstrip('.')}."

    @property
    def shared(self) -> str:
        """See :class:`DpRayError`."""
        if self.field in _PLACES:
            return f"{self.field}: the value that is set cannot be used on this node"
        return str(self) if self._shared is None else self._text(self._shared)


_PLACES = ("data.root", "data.cache")
"""Fields that say where private data lies."""


class DataError(DpRayError):
    """Data that is missing, or not what the configuration says it is.

    Args:
        message: for the user; it may name private files.
        shared: the same without names of files or folders; by default the message has none.
    """

    def __init__(self, message: str, *, shared: str | None = None) -> None:
        super().__init__(message)
        self._shared = shared

    @property
    def shared(self) -> str:
        """See :class:`DpRayError`."""
        return str(self) if self._shared is None else self._shared


class ArgumentError(DpRayError, ValueError):
    """An argument of the functional step that cannot be used."""


class ModelError(DpRayError):
    """A model that cannot be trained with per-example gradients."""


class RunError(DpRayError):
    """A run directory that cannot be started, resumed or read."""


class DivergedError(RunError):
    """A run whose network gives no numbers any more.

    Args:
        what: what is not finite.
        charges: noised sums that were charged.
    """

    def __init__(self, what: str, charges: int) -> None:
        super().__init__(
            f"the run diverged: {what} are not finite (NaN or infinity). Nothing was published; "
            f"the ledger keeps {charges} noised sums. Start a new run with another --name and a "
            "lower optimizer.lr"
        )
        self.what = what
        self.charges = charges

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.charges)


class LedgerError(RunError):
    """A ledger that is torn, altered or does not belong to the run."""


class StorageError(DpRayError):
    """A folder that cannot be opened."""
