"""The ledger: what was charged, written before anything is released.

One JSON record a line. Each carries an HMAC, under a key derived from the run key, over itself and
the record before, so a line that was changed, removed from the middle or moved is found. A record
is on disk (fsync) before :meth:`Ledger.charge` returns, and the noise is drawn after that: a crash
can leave a charge without a release, never a release without a charge.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dp_ray.errors import LedgerError
from dp_ray.privacy.accounting import History


@dataclass(frozen=True)
class Charge:
    """One noised sum.

    Attributes:
        step: the logical step.
        incarnation: which invocation of the mechanism; it keys draw, views and noise.
        digest: keyed digest of the sum before noise.
        noise_multiplier: σ.
        max_grad_norm: C.
        sample_rate: q.
    """

    step: int
    incarnation: int
    digest: str
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float


class Verdict(Enum):
    """What may be done with a sum."""

    CHARGED = "a new release, now on record"
    REPLAYED = "the very release that is on record: same sum, same noise, no charge"
    CONFLICT = "another sum is on record: this one must not get the same noise"


class Ledger:
    """A write-ahead log of charges; one writer at a time.

    Args:
        path: the file, made by :meth:`create`.
        key: 32 bytes that authenticate the records.
        writable: take the writer's lock, which :meth:`close` gives back.

    Raises:
        LedgerError: it is missing, in use, or a record is torn, altered or out of order.
    """

    def __init__(self, path: Path, key: bytes, *, writable: bool = False) -> None:
        self._path = path
        self._key = key
        self._macs = [""]
        self._latest: dict[int, Charge] = {}  # by step, the newest incarnation
        self._executions: dict[int, dict[str, Any]] = {}  # of those charges
        self._execution: dict[str, Any] = {}
        self._counts: Counter[tuple[float, float]] = Counter()
        self._plan: dict[str, Any] = {}
        self._descriptor = self._open(writable)
        self.incarnation = 0
        try:
            self._read()
        except LedgerError:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, key: bytes, plan: dict[str, Any]) -> None:
        """Starts a ledger whose first record is the plan that the run is held to.

        Raises:
            FileExistsError: there is one already.
        """
        line, _ = _seal(key, "", "plan", plan)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        _write_durably(descriptor, line)
        os.close(descriptor)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the file's name must survive a crash too
        os.close(folder)

    def close(self) -> None:
        """Gives the writer's lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def plan(self) -> dict[str, Any]:
        """What :meth:`create` was given."""
        return dict(self._plan)

    @property
    def charges(self) -> int:
        """Noised sums paid for."""
        return sum(self._counts.values())

    @property
    def history(self) -> History:
        """What was paid for, as the accountants take it."""
        return tuple((sigma, rate, count) for (sigma, rate), count in sorted(self._counts.items()))

    @property
    def position(self) -> str:
        """Names the last record; :meth:`reaches` tells whether a ledger still holds it."""
        return self._macs[-1]

    def reaches(self, position: str) -> bool:
        """Whether the record that ``position`` named is still there."""
        return position in self._macs

    def next_step(self) -> int:
        """One past the last step on record."""
        return max(self._latest, default=-1) + 1

    def recorded(self, step: int) -> Charge | None:
        """The newest charge of a step, if there is one."""
        return self._latest.get(step)

    def executions_from(self, step: int) -> list[dict[str, Any]]:
        """How the steps on record from ``step`` on were executed."""
        return [self._executions[s] for s in sorted(self._latest) if s >= step]

    def open_session(self, execution: dict[str, Any]) -> None:
        """Records how the run is executed from here on."""
        self._append("session", execution)
        self._execution = execution

    def charge(self, charge: Charge) -> Verdict:
        """Decides on a sum and, where it is new, makes its charge durable.

        Args:
            charge: the sum's address, digest and noise.

        Returns:
            Whether the sum may be noised, and at what cost.
        """
        known = self._latest.get(charge.step)
        if known is not None and known.incarnation >= charge.incarnation:
            return Verdict.REPLAYED if known == charge else Verdict.CONFLICT
        self._append("charge", asdict(charge))
        self._count(charge)
        return Verdict.CHARGED

    def _count(self, charge: Charge) -> None:
        self._latest[charge.step] = charge
        self._executions[charge.step] = self._execution
        self._counts[charge.noise_multiplier, charge.sample_rate] += 1
        self.incarnation = max(self.incarnation, charge.incarnation)

    def _open(self, writable: bool) -> int | None:
        flags = os.O_RDWR | os.O_APPEND if writable else os.O_RDONLY
        try:
            descriptor = os.open(self._path, flags)
        except OSError as error:
            raise LedgerError(
                f"the ledger {self._path} cannot be opened: {error}. Without it nobody can say "
                "what this run has spent; restore it from a backup, or start a new run"
            ) from error
        if not writable:
            os.close(descriptor)
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise LedgerError(
                f"another process is writing this run ({self._path} is locked): wait for it, or "
                "end it, then go on with --resume"
            ) from error
        return descriptor

    def _append(self, kind: str, content: dict[str, Any]) -> None:
        line, mac = _seal(self._key, self.position, kind, content)
        try:
            if self._descriptor is None:
                raise OSError("it was opened for reading")
            _write_durably(self._descriptor, line)
        except OSError as error:
            raise LedgerError(
                f"the ledger {self._path} cannot be written: {error}; nothing was released"
            ) from error
        self._macs.append(mac)

    def _read(self) -> None:
        lines = self._path.read_bytes().split(b"\n")
        if lines.pop() != b"":
            raise self._broken(len(lines) + 1, "it is torn")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                body, mac = record["body"], record["mac"]
                genuine = hmac.compare_digest(mac, _mac(self._key, self.position, body))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._broken(number, "it is no record") from None
            if not genuine:
                raise self._broken(number, "it, or the line before, was changed")
            self._macs.append(mac)
            self._take(json.loads(body))
        if not self._plan:
            raise self._broken(1, "the run's plan is missing")

    def _take(self, content: dict[str, Any]) -> None:
        kind = content.pop("kind")
        if kind == "charge":
            self._count(Charge(**content))
        elif kind == "session":
            self._execution = content
        else:
            self._plan = content

    def _broken(self, number: int, problem: str) -> LedgerError:
        return LedgerError(
            f"{self._path}, line {number}: {problem}. What this run has spent can no longer be "
            "shown, so it is not continued; restore the file from a backup, or start a new run"
        )


def _seal(key: bytes, previous: str, kind: str, content: dict[str, Any]) -> tuple[bytes, str]:
    """A record as a line, and the HMAC that the next one carries on."""
    body = json.dumps({"kind": kind, **content}, sort_keys=True)
    mac = _mac(key, previous, body)
    return (json.dumps({"body": body, "mac": mac}) + "\n").encode(), mac


def _mac(key: bytes, previous: str, body: str) -> str:
    return hmac.digest(key, f"{previous}\n{body}".encode(), "sha256").hex()


def _write_durably(descriptor: int, line: bytes) -> None:
    if os.write(descriptor, line) != len(line):
        raise OSError("the record was written in part")
    os.fsync(descriptor)
