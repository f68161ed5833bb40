"""What a run needs to go on: parameters, averages, optimizer and where it stood.

A checkpoint is one file, which torch reads without running any code of it (``weights_only=True``).
The ledger records each one with its keyed digest: only those on record are gone on from, so one
that was altered, or written a moment before a crash, is never taken for a state of the run. Ray's
own checkpoints are not used: Ray commits them late and leaves those that it did not commit behind.
"""

from __future__ import annotations

import hmac
import io
import zipfile
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from dp_ray.document import take_format
from dp_ray.errors import LedgerError, RunError
from dp_ray.ledger.ledger import Ledger
from dp_ray.storage import Folder


@dataclass(frozen=True)
class Checkpoint:
    """The coordinator's state before ``step``.

    Attributes:
        step: the next step to take.
        params: [P].
        average: [P], the moving average of the parameters, if there is one.
        optimizer: state of the torch optimizer.
        scheduler: state of its schedule, if there is one.
        max_grad_norm: C of that step.
        ledger_position: names the last record of the ledger when this was taken.
    """

    FORMAT: ClassVar[int] = 1

    step: int
    params: Tensor
    average: Tensor | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    max_grad_norm: float
    ledger_position: str

    def to_bytes(self) -> bytes:
        """Return the content of a file, with the format number."""
        buffer = io.BytesIO()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        torch.save({"format": self.FORMAT, **values}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, place: str = "a checkpoint") -> Checkpoint:
        """Return the checkpoint in a file, of this format or of format 0.

        Args:
            data: the content of the file.
            place: names the file in messages.

        Raises:
            ValueError: the data are torn or no checkpoint.
            RunError: a newer version of dp-ray wrote it.
        """
        if not zipfile.is_zipfile(io.BytesIO(data)):  # other formats of torch are never read
            raise ValueError("no checkpoint")
        try:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            take_format(values, place, cls.FORMAT)
            return cls(**values)
        except RunError:
            raise
        except Exception as error:  # a damaged file fails in any way
            raise ValueError(str(error)) from error


class Checkpoints:
    """The checkpoints of a run, in step with its ledger.

    Args:
        folder: where they lie.
        ledger: open for writing.
        key: 32 bytes that authenticate them.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Folder, ledger: Ledger, key: bytes, *, keep: int = 2) -> None:
        self._folder = folder
        self._ledger = ledger
        self._key = key
        self._keep = keep
        self.lost = 0
        """Newer ones on record that :meth:`newest` found damaged or missing."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, records it, and only then removes older ones.

        Raises:
            OSError: it cannot be written; those before are still there.
        """
        data = checkpoint.to_bytes()
        digest = self._digest(data)
        # Named by its content too: a step that is repeated must not overwrite one on record.
        name = f"checkpoint_{checkpoint.step:08d}{_ending(digest)}"
        self._folder.write(name, data)
        self._ledger.add_checkpoint(name, digest)
        there = self._folder.names()
        recorded = [name for name in self._ledger.checkpoints if name in there]
        self._remove_all_but(recorded[-self._keep :])

    def keep_newest(self) -> None:
        """Remove all but the newest checkpoint, from which a finished run can be given more steps.

        Does nothing if that one is not whole.
        """
        name = next(reversed(self._ledger.checkpoints), None)
        if name is not None and self._read(name) is not None:
            with suppress(OSError):  # the run is finished; dp-ray clean removes what stays
                self._remove_all_but([name])

    def newest(self) -> Checkpoint | None:
        """The newest one on record that is whole; None if the run had not come to its first.

        Orphans (written, and never recorded because of a crash) are removed.

        Raises:
            RunError: there were checkpoints, and none is left.
            LedgerError: the ledger is older than a checkpoint.
        """
        on_disk = self._folder.names()
        self._check_orphans([name for name in on_disk if name not in self._ledger.checkpoints])
        for name in reversed(self._ledger.checkpoints):
            if name in on_disk and (found := self._load(name)) is not None:
                older = list(self._ledger.checkpoints)
                self.lost = len(older) - older.index(name) - 1
                self._remove_all_but(older[: older.index(name) + 1])
                return found
        if self._ledger.checkpoints:
            raise RunError(
                f"no readable checkpoint is left in {self._folder}, and the run had some: restore "
                "them from a backup, or start a new run. The ledger is intact"
            )
        return None

    def _load(self, name: str) -> Checkpoint | None:
        data = self._read(name)
        return None if data is None else Checkpoint.from_bytes(data, f"{self._folder}/{name}")

    def _read(self, name: str) -> bytes | None:
        """The content of a checkpoint on record; None if it is not whole."""
        try:
            data = self._folder.read(name)
        except OSError:
            return None
        whole = hmac.compare_digest(self._digest(data), self._ledger.checkpoints[name])
        return data if whole else None

    def _check_orphans(self, names: list[str]) -> None:
        for name in names:
            try:
                data = self._folder.read(name)
                if not name.endswith(_ending(self._digest(data))):
                    continue  # torn, or no checkpoint of this run
                checkpoint = Checkpoint.from_bytes(data, f"{self._folder}/{name}")
            except (OSError, ValueError):
                continue
            if not self._ledger.reaches(checkpoint.ledger_position):
                raise LedgerError(
                    f"the ledger is older than the checkpoint {name}: records of what was spent "
                    "are missing. Restore it from a backup, or start a new run with another --name"
                )

    def _remove_all_but(self, names: list[str]) -> None:
        for name in self._folder.names():
            if name not in names:
                self._folder.delete(name)

    def _digest(self, data: bytes) -> str:
        return hmac.digest(self._key, data, "sha256").hex()


def _ending(digest: str) -> str:
    """Of the name of a checkpoint."""
    return f"_{digest[:8]}.pt"
