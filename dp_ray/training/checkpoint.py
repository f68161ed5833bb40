"""What a run needs to go on: parameters, averages, optimizer and where it stood.

A checkpoint is a folder with one file, which torch reads without running any code of it
(``weights_only=True``). It is written beside its place and renamed: whole or not there.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp_ray.errors import RunError

_FILE = "state.pt"
_PREFIX = "checkpoint_"


@dataclass(frozen=True)
class Checkpoint:
    """The coordinator's state before ``step``.

    Attributes:
        step: the next step to take.
        params: [P].
        average: [P], the moving average of the parameters, if there is one.
        optimizer: state of the torch optimizer.
        scheduler: state of its schedule, if there is one.
        data_digest: digest of the training data.
        ledger_position: names the last record of the ledger when this was taken.
    """

    step: int
    params: Tensor
    average: Tensor | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    data_digest: str
    ledger_position: str

    def save(self, folder: Path) -> None:
        """Writes into ``folder``, which exists."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Reads what :meth:`save` wrote.

        Raises:
            RunError: the file is missing, torn or no checkpoint.
        """
        path = folder / _FILE
        if not zipfile.is_zipfile(path):  # torch's own format since 1.6; others are never read
            raise RunError(f"{path} is no readable checkpoint: missing, torn or something else")
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**values)
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise RunError(f"{path} is no readable checkpoint: {error}") from error


def save_in(root: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Saves as a new folder of ``root`` and removes all but the newest ``keep``."""
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=root))
    checkpoint.save(temporary)
    folder = root / f"{_PREFIX}{checkpoint.step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    for old in sorted(root.glob(f"{_PREFIX}*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest_in(root: Path) -> Checkpoint | None:
    """The readable checkpoint with the highest step below ``root``, whoever wrote it.

    Ray may commit an older checkpoint than the newest on disk, and a folder may be half uploaded;
    so all are looked at. A newer one that is whole means fewer steps to repeat.

    Raises:
        RunError: there are checkpoints, and none of them can be read.
    """
    best: Checkpoint | None = None
    folders = sorted(root.glob(f"{_PREFIX}*"))
    failure: RunError | None = None
    for folder in folders:
        try:
            found = Checkpoint.load(folder)
        except RunError as error:
            failure = error
            continue
        if best is None or found.step > best.step:
            best = found
    if best is None and failure is not None:
        raise failure  # to begin again silently would spend the budget on nothing
    return best
