"""The ledger: what was charged, written before anything is released.

One JSON record a line. Each carries an HMAC, under a key derived from the run key, over itself and
the record before, so a line that was changed, removed from the middle or moved is found. A record
is on disk (fsync) before :meth:`Ledger.charge` returns, and the noise is drawn after that: a crash
can leave a charge without a release, never a release without a charge.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dp_ray.errors import LedgerError


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
    """A write-ahead log of charges at ``path``; created if it is not there.

    Args:
        path: the file; its folder exists.
        key: 32 bytes that authenticate the records.

    Raises:
        LedgerError: a record is torn, altered, missing or out of order.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._last_mac = ""
        self._latest: dict[int, Charge] = {}  # by step, the newest incarnation
        self._sessions: list[dict[str, Any]] = []
        self.charges = 0
        self.incarnation = 0
        if path.exists():
            self._read()

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The execution fingerprint of each start of the run, in order."""
        return list(self._sessions)

    def next_step(self) -> int:
        """One past the last step on record."""
        return max(self._latest, default=-1) + 1

    def recorded(self, step: int) -> Charge | None:
        """The newest charge of a step, if there is one."""
        return self._latest.get(step)

    def open_session(self, fingerprint: dict[str, Any]) -> None:
        """Records how the run is executed from here on."""
        self._append("session", fingerprint)
        self._sessions.append(fingerprint)

    def charge(self, charge: Charge) -> Verdict:
        """Decides on a sum and, where it is new, makes its charge durable.

        Args:
            charge: the sum's address, digest and noise.

        Returns:
            Whether the sum may be noised, and at what cost.
        """
        known = self._latest.get(charge.step)
        if known is not None and known.incarnation == charge.incarnation:
            return Verdict.REPLAYED if known == charge else Verdict.CONFLICT
        self._append("charge", asdict(charge))
        self._count(charge)
        return Verdict.CHARGED

    def _count(self, charge: Charge) -> None:
        self._latest[charge.step] = charge
        self.charges += 1
        self.incarnation = max(self.incarnation, charge.incarnation)

    def _append(self, kind: str, content: dict[str, Any]) -> None:
        body = json.dumps({"kind": kind, **content}, sort_keys=True)
        mac = self._mac(body, self._last_mac)
        new = not self._path.exists()
        line = json.dumps({"body": body, "mac": mac}) + "\n"
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                if os.write(descriptor, line.encode()) != len(line.encode()):
                    raise OSError("the record was written in part")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if new:  # the file's name must survive a crash too
                folder = os.open(self._path.parent, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
        except OSError as error:
            raise LedgerError(
                f"the ledger {self._path} cannot be written: {error}; nothing was released"
            ) from error
        self._last_mac = mac

    def _read(self) -> None:
        lines = self._path.read_bytes().split(b"\n")
        if lines.pop() != b"":
            raise self._broken(len(lines) + 1, "it is torn")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                body, mac = record["body"], record["mac"]
                genuine = hmac.compare_digest(mac, self._mac(body, self._last_mac))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._broken(number, "it is no record") from None
            if not genuine:
                raise self._broken(number, "it, or the line before, was changed")
            self._last_mac = mac
            content = json.loads(body)
            if content.pop("kind") == "charge":
                self._count(Charge(**content))
            else:
                self._sessions.append(content)

    def _broken(self, number: int, problem: str) -> LedgerError:
        return LedgerError(
            f"{self._path}, line {number}: {problem}. What this run has spent can no longer be "
            "shown, so it is not continued; restore the file from a backup, or start a new run"
        )

    def _mac(self, body: str, previous: str) -> str:
        return hmac.digest(self._key, f"{previous}\n{body}".encode(), "sha256").hex()
