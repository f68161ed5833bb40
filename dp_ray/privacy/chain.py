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
from dp_ray.privacy.records import create_records, open_records
from dp_ray.storage import Folder


class Record(NamedTuple):
    """What a record says: its kind, and its content."""

    kind: str
    content: dict[str, Any]


class Chain:
    """The records in a folder, verified.

    Args:
        folder: where they lie.
        key: 32 bytes that authenticate them.
        guard: called before and after a record is made durable; raises if this process may no
            longer write. None opens the chain for reading.
        mend: accept a damaged end, knowingly; :attr:`lost` then counts what may be missing.

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
        self._failed = False
        self.records: list[Record] = []
        self.lost = 0
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
        create_records(folder, line, _head(key, 1, mac))

    @property
    def position(self) -> str:
        """Names the last record."""
        return self._macs[-1]

    def reaches(self, position: str) -> bool:
        """Whether the record that ``position`` named is still there."""
        return position in self._macs

    def append(self, kind: str, content: dict[str, Any], *, durable: bool = True) -> None:
        """Adds a record; if durable, it survives a power cut when this returns.

        Raises:
            LedgerError: it could not be written, or this process lost the right to.
        """
        if self._guard is None or self._failed:
            raise LedgerError(f"the ledger {self._folder} is not open for writing")
        line, mac = _seal(self._key, self.position, _body(kind, content))
        self._guard()
        try:
            if self._lines.append(line, durable=durable):
                self._lines.write_head(_head(self._key, len(self._macs), mac))
        except OSError as error:
            self._failed = True  # nobody knows what a next record would follow on
            raise LedgerError(
                f"the ledger {self._folder} cannot be written: {error}; nothing was released. "
                "Make room or mend the disk, then go on with --resume"
            ) from error
        self._guard()
        self._macs.append(mac)

    def close(self) -> None:
        """Ends writing."""
        self._failed = True
        self._lines.close()

    def _verify(self, data: bytes, head: bytes, *, mend: bool) -> None:
        *lines, tail = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                body = json.loads(line)["body"]
                whole, mac = _seal(self._key, self.position, body)
            except (ValueError, KeyError, TypeError):
                raise self._broken(f"record {number} is no record") from None
            if not hmac.compare_digest(line + b"\n", whole):
                raise self._broken(f"record {number}, or the one before, was changed")
            content = json.loads(body)
            self._macs.append(mac)
            self.records.append(Record(content.pop("kind"), content))
        named = self._read_head(head)
        if named > len(lines) or tail:
            if not mend:
                raise self._broken(
                    "its end is missing: a record is torn, or the last ones were cut off",
                    "If a power cut or a full disk did it, dp-ray ledger --repair goes on without "
                    "them and charges for what they may have held",
                )
            self.lost = max(named - len(lines), int(bool(tail)))
            if tail:
                self._lines.cut(len(data) - len(tail))
        elif not hmac.compare_digest(head, _head(self._key, named, self._macs[named])):
            raise self._broken("its head was changed")

    def _read_head(self, head: bytes) -> int:
        """The number of records that the head names; the head is checked against its own seal."""
        try:
            number, mac, _ = head.decode().split()
            genuine = hmac.compare_digest(head, _head(self._key, int(number), mac))
        except ValueError:
            genuine = False
        if not genuine or int(number) < 1:
            raise self._broken("its head was changed")
        return int(number)

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


def _head(key: bytes, number: int, mac: str) -> bytes:
    """Names record ``number`` (from 1); always of the same length, to be replaced in place."""
    seal = hmac.digest(key, f"head {number} {mac}".encode(), "sha256").hex()
    return f"{number:020d} {mac} {seal}\n".encode()
