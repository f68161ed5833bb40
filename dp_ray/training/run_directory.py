"""What a run leaves on disk, and who may see it.

::

    runs/<name>/
      result.json            what came out, in one object
      release/               may be published: model.safetensors, config.yaml, privacy.json
      private/               mode 0700: run key, ledger, full configuration, metrics, checkpoints
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_ray.config import Config, parse_config, read_yaml, write_yaml
from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import KEY_BYTES, RunKey
from dp_ray.privacy.ledger import Ledger
from dp_ray.training.plan import PrivacyPlan


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run; ``path`` is absolute."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """Where the configured run lives."""
        return cls(Path(config.train.storage_path).expanduser().absolute() / config.name)

    @property
    def release(self) -> Path:
        """Folder of what may be published."""
        return self.path / "release"

    @property
    def private(self) -> Path:
        """Folder of what must not be published."""
        return self.path / "private"

    @property
    def result(self) -> Path:
        """The one-object summary."""
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints; under Ray it is the experiment's folder."""
        return self.private / "checkpoints"

    @property
    def ledger(self) -> Path:
        """The write-ahead log of charges."""
        return self.private / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        """One line a step; private."""
        return self.private / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """How far the run is, for whoever watches it."""
        return self.private / "progress.json"

    @property
    def stop_request(self) -> Path:
        """If this file is there, the run stops after the step at hand."""
        return self.private / "stop"

    def exists(self) -> bool:
        """Whether a run of this name was started."""
        return self.private.exists()

    def check_free(self) -> None:
        """Refuses a name that is taken: a run is never overwritten.

        Raises:
            RunError: it is; the message says how to go on.
        """
        if self.exists() or self.result.exists():
            raise RunError(self._taken())

    def create(self, config: Config, plan: PrivacyPlan) -> None:
        """Lays out a new run, draws its key and enters its plan into the ledger.

        Raises:
            RunError: the name is taken, or the folder cannot be written.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.private.mkdir(mode=0o700)
            self.write_private("config.yaml", write_yaml(config.dump()))
            key = RunKey.from_entropy() if config.seed is None else RunKey.from_seed(config.seed)
            self.write_private("run_key", key.secret.hex() + "\n")
            Ledger.create(self.ledger, key.derive("ledger"), plan.dump())
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error}; set train.storage_path to another folder"
            ) from error

    def _taken(self) -> str:
        finished = self.result.exists() and self.read_result().get("status") == "finished"
        if finished:
            return (
                f"{self.path} holds a finished run, which is kept as it is: choose another --name, "
                "or remove the folder"
            )
        return f"{self.path} holds an unfinished run: continue it with --resume, or choose a --name"

    def check_resume(self, config: Config) -> None:
        """Refuses to continue a run as something else.

        Raises:
            RunError: there is no run, or it is finished.
            ConfigError: a field that decides the mathematics differs from the run's own.
        """
        if not self.exists():
            raise RunError(f"{self.path} holds no run to resume: start it without --resume")
        if self.result.exists() and self.read_result().get("status") == "finished":
            raise RunError(self._taken())
        started = self.config()
        before = {**deciding_fields(started), "seed": started.seed}
        now = {**deciding_fields(config), "seed": config.seed}
        for field in sorted(before.keys() | now.keys()):
            if before.get(field) != now.get(field):
                raise ConfigError(
                    field,
                    now.get(field),
                    f"the run was started with {before.get(field)!r}",
                    "Resume it as it was, or start a new run with another --name",
                )

    def config(self) -> Config:
        """The configuration that the run was started with, whole."""
        try:
            text = (self.private / "config.yaml").read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"{self.path} holds no run: {error}") from error
        return parse_config(read_yaml(text))

    def run_key(self) -> RunKey:
        """The run's secret.

        Raises:
            RunError: it is missing or damaged.
        """
        path = self.private / "run_key"
        try:
            return RunKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: {error}. Without its key ({KEY_BYTES} bytes in hex) a run cannot be "
                "continued; restore the file from a backup, or start a new run"
            ) from error

    def open_ledger(self, *, writable: bool = False) -> Ledger:
        """The run's ledger; see :class:`~dp_ray.privacy.ledger.Ledger` for the errors."""
        return Ledger(self.ledger, self.run_key().derive("ledger"), writable=writable)

    def plan(self) -> PrivacyPlan:
        """The plan that the run was started with and is held to."""
        return PrivacyPlan.from_dump(self.open_ledger().plan)

    def write_private(self, name: str, text: str) -> None:
        """Writes a file that only its owner may read, whole or not at all."""
        _write_atomically(self.private / name, text, mode=0o600)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, whole or not at all."""
        _write_atomically(self.result, json.dumps(result, indent=2) + "\n", mode=0o644)

    def read_result(self) -> dict[str, Any]:
        """What result.json holds.

        Raises:
            RunError: it is missing or not JSON.
        """
        try:
            result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.result} cannot be read: {error}") from error
        return result


def deciding_fields(config: Config) -> dict[str, Any]:
    """Dotted path → value of the fields that decide the mathematics, all but the seed."""
    values = config.dump()
    fields = {
        f"{section}.{name}": value
        for section in ("data", "augment", "model", "privacy", "optimizer")
        for name, value in values[section].items()
    }
    for may_change in ("data.root", "data.cache", "data.download", "data.evaluation"):
        del fields[may_change]
    return fields


def _write_atomically(path: Path, text: str, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
