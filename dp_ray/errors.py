"""Errors that a user can act on: the command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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


def printable(text: str) -> str:
    """A text on one line, without what would steer a terminal, as a file's name could."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a question that suggests the known name nearest to one that is not, and a space.

    Empty if none is near. Capital letters do not count.
    """
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    return f"Did you mean {folded[near[0]]}? " if near else ""


def unknown_name(
    field: str,
    name: str,
    problem: str,
    known: Iterable[str],
    *,
    listed: Iterable[str] | None = None,
    own: str | None = None,
) -> ConfigError:
    """Return the error for a name that is in no registry; it suggests the nearest that is.

    Args:
        field: dotted path of the field that holds the name.
        name: what was found there.
        problem: what is wrong with it.
        known: names that can be used.
        listed: those that the remedy lists, where they are too many; by default all.
        own: how the import path of a user's own looks, if the field takes one.
    """
    known = list(known)
    names = ", ".join([*(known if listed is None else listed), *([f"or {own}"] if own else [])])
    return ConfigError(field, name, problem, f"{did_you_mean(name, known)}Use {names}")


def no_run(place: object) -> RunError:
    """Return the error for a path or URI where there is no run."""
    return RunError(f"there is no run {place}: give its folder, such as runs/digits")


_PLACES = ("data.root", "data.cache")
"""Fields that say where private data lies."""


class OwnCodeError(ConfigError):
    """Code that a file names which somebody else may have written, and that was not run.

    Args:
        field: of the configuration.
        path: the import path that it holds.
    """

    def __init__(self, field: str, path: str) -> None:
        super().__init__(
            field,
            path,
            "is code that the files name, and that no configuration of yours has run on this "
            "machine, so it was not imported",
            "If you trust who wrote files and code, give --own-code (own_code=True in Python)",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value)


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


class ChargesError(RunError):
    """A resumed run that would pay again for more steps than the user accepted.

    Args:
        message: which steps and why.
        charges: noised sums that would be charged again.
    """

    def __init__(self, message: str, charges: int) -> None:
        super().__init__(message)
        self.message = message
        self.charges = charges

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.charges)


class LedgerError(RunError):
    """A ledger that is torn, altered or does not belong to the run."""


class StorageError(DpRayError):
    """A folder that cannot be opened."""


class MissingExtraError(DpRayError):
    """An optional library that is needed and not installed.

    Args:
        purpose: what needs it.
        libraries: the names of those that are missing.
        extra: the extra of dp-ray that installs them.
        otherwise: another way out, if there is one.
    """

    def __init__(self, purpose: str, libraries: list[str], extra: str, otherwise: str = "") -> None:
        super().__init__(purpose, libraries, extra, otherwise)
        self.purpose = purpose
        self.libraries = libraries
        self.extra = extra
        self.otherwise = otherwise

    def __str__(self) -> str:
        verb = "is" if len(self.libraries) == 1 else "are"
        remedy = f"Run pip install 'dp-ray[{self.extra}]'"
        if self.otherwise:
            remedy += f", or {self.otherwise}"
        return (
            f"{self.purpose}: needs {' and '.join(self.libraries)}, which {verb} not installed. "
            f"{remedy}."
        )
