"""A chain of records: each carries an HMAC over itself and the one before.

A record that was changed, moved, doubled or taken out breaks the chain; records that were cut off
at the end are missed by the head. All of it is refused, never mended silently.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from dp_ray.errors import LedgerError
from dp_ray.ledger.records import create_records, open_records
from dp_ray.storage import Folder


class Record(NamedTuple):
    """What a record says: its kind, and its content."""

    kind: str
    content: dict[str, Any]


class Totals(NamedTuple):
    """What the head says of all records: it shows what lost ones may have held.

    Attributes:
        charges: noised sums paid for.
        incarnation: the highest that was used.
        block: the most sums that the next record may pay for.
    """

    charges: int = 0
    incarnation: int = 0
    block: int = 1


class Chain:
    """The records in a folder, verified.

    Args:
        folder: where they lie.
        key: 32 bytes that authenticate them.
        guard: called before and after a record is written; raises if this process may no longer
            write. None opens the chain for reading.
        mend: accept a damaged end, knowingly. Then :attr:`damaged` says that there was one,
            :attr:`totals` what the head knew, and :attr:`torn` that a record is in pieces which
            the head does not know.

    Raises:
        LedgerError: they are missing, torn, altered or out of order.
    """

    def __init__(
        self,
        folder: Folder,
        key: bytes,
        *,
        guard: Callable[[], None] | None = None,
        mend: bool = False,
    ) -> None:
        self._folder = folder
        self._key = key
        self._guard = guard
        self._macs = [""]
        self._durable = 0
        self._failed = False
        self.records: list[Record] = []
        self.totals = Totals()
        self.damaged = self.torn = False
        try:
            self._lines = open_records(folder, writable=guard is not None)
            head, data = self._lines.read_head(), self._lines.read()  # a writer may be adding
        except OSError as error:
            raise LedgerError(
                f"the ledger {folder} cannot be opened: {error}. Without it nobody can say what "
                "this run has spent; restore it from a backup, or start a new run"
            ) from error
        try:
            self._verify(data, head, mend=mend)
        except LedgerError:
            self._lines.close()
            raise

    @classmethod
    def create(cls, folder: Folder, key: bytes, kind: str, content: dict[str, Any]) -> None:
        """Begins a chain with its first record, durably.

        Raises:
            FileExistsError: there is one already.
            OSError: it cannot be written.
        """
        line, mac = _seal(key, "", _body(kind, content))
        create_records(folder, line, _head(key, 1, mac, Totals()))

    @property
    def position(self) -> str:
        """Names the last record that no crash and no power cut can take."""
        return self._macs[self._durable]

    def reaches(self, position: str) -> bool:
        """Whether the record that ``position`` named is still there."""
        return position in self._macs

    def append(
        self, kind: str, content: dict[str, Any], totals: Totals, *, durable: bool = True
    ) -> None:
        """Adds a record; if durable, it survives a power cut when this returns.

        Args:
            kind: what sort of record.
            content: what it says.
            totals: of all records with this one.
            durable: whether it, and all before it, must be.

        Raises:
            LedgerError: it could not be written, or this process lost the right to.
        """
        if self._guard is None or self._failed:
            raise LedgerError(
                f"the ledger {self._folder} is not open for writing, or failed before: go on with "
                "--resume"
            )
        line, mac = _seal(self._key, self._macs[-1], _body(kind, content))
        # Whatever cuts this short, nobody knows what a next record would follow on.
        self._failed = True
        guarded = durable or not self._lines.queues
        if guarded:
            self._guard()
        try:
            if self._lines.append(line, durable=durable):
                head = _head(self._key, len(self._macs), mac, totals)
                self._lines.write_head(head, durable=kind == "repair")
        except OSError as error:
            raise LedgerError(
                f"the ledger {self._folder} cannot be written: {error}; nothing was released. "
                "Make room or mend the disk, then go on with --resume"
            ) from error
        if guarded:
            self._guard()
        self._macs.append(mac)
        self._durable = len(self._macs) - 1 if durable else self._durable
        self._failed = False

    @property
    def writable(self) -> bool:
        """Whether a record can be added."""
        return self._guard is not None and not self._failed

    @property
    def waiting(self) -> bool:
        """Whether there are records that a crash or a power cut may take."""
        return self._durable < len(self._macs) - 1

    def cut(self) -> None:
        """Removes a record that is in pieces, to be able to add others.

        Raises:
            LedgerError: it cannot be removed.
        """
        if self._torn_from is not None:
            try:
                self._lines.cut(self._torn_from)
            except OSError as error:
                raise self._broken(f"a torn record cannot be removed: {error}") from error

    def close(self) -> None:
        """Ends writing."""
        self._failed = True
        self._lines.close()

    def _verify(self, data: bytes, head: bytes, *, mend: bool) -> None:
        *lines, tail = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                body = json.loads(line)["body"]
                whole, mac = _seal(self._key, self._macs[-1], body)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise self._broken(f"record {number} is no record") from None
            if not hmac.compare_digest(line + b"\n", whole):
                raise self._broken(f"record {number}, or the one before, was changed")
            content = json.loads(body)
            self._macs.append(mac)
            self.records.append(Record(content.pop("kind"), content))
        self._durable = len(lines)
        named, mac, self.totals = self._read_head(head)
        if named <= len(lines) and mac != self._macs[named]:
            raise self._broken("its head was changed")
        self.damaged = bool(tail) or named > len(lines)
        self.torn = bool(tail) and named <= len(lines)
        if self.damaged and not mend:
            raise self._broken(
                "its end is missing: a record is torn, or the last ones were cut off",
                "If a power cut or a full disk did it, dp-ray ledger --repair goes on without "
                "them and charges for what they may have held",
            )
        self._torn_from = len(data) - len(tail) if tail else None

    def _read_head(self, head: bytes) -> tuple[int, str, Totals]:
        """What the head says, checked against its own seal."""
        try:
            number, mac, *totals, _ = head.decode().split()
            found = int(number), mac, Totals(*map(int, totals))
            genuine = hmac.compare_digest(head, _head(self._key, *found))
        except (ValueError, TypeError):
            raise self._broken("its head was changed") from None
        if not genuine:
            raise self._broken("its head was changed")
        return found

    def _broken(self, problem: str, remedy: str = "") -> LedgerError:
        return LedgerError(
            f"the ledger {self._folder} does not verify: {problem}. What this run has spent can no "
            "longer be shown, so it is not continued; restore the ledger from a backup, or start "
            f"a new run. {remedy}".rstrip()
        )


def _body(kind: str, content: dict[str, Any]) -> str:
    return json.dumps({"kind": kind, **content}, sort_keys=True)


def _seal(key: bytes, previous: str, body: str) -> tuple[bytes, str]:
    """A record as a line, and its HMAC, on which the next one's rests."""
    mac = hmac.digest(key, f"{previous}\n{body}".encode(), "sha256").hex()
    return (json.dumps({"body": body, "mac": mac}) + "\n").encode(), mac


def _head(key: bytes, number: int, mac: str, totals: Totals) -> bytes:
    """Names record ``number`` (from 1); always of the same length, to be replaced in place."""
    text = f"{number:020d} {mac} " + " ".join(f"{value:020d}" for value in totals)
    seal = hmac.digest(key, f"head {text}".encode(), "sha256").hex()
    return f"{text} {seal}\n".encode()
