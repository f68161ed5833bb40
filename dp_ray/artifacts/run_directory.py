"""What a run leaves behind, and who may see it.

::

    runs/<name>/
      result.json            what came out, in one object
      release/               may be published: model.safetensors, config.yaml, privacy.json
      private/               mode 0700: run key, ledger, full configuration, metrics, checkpoints

It lies on a disk, or in an object store if ``train.storage_path`` is a URI.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_ray.config.files import parse_config
from dp_ray.config.run import Config, ObjectiveConfig
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.data.sources.registry import unheeded_fields
from dp_ray.errors import ConfigError, RunError
from dp_ray.json_text import write_json
from dp_ray.keys import KEY_BYTES, RunKey
from dp_ray.ledger.ledger import Ledger
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.mechanism import DEFAULT
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import Folder, open_folder

RESULT = "result.json"
RELEASE = "release"
CONFIG = "config.yaml"
RUN_KEY = "run_key"
METRICS = "metrics.jsonl"
LEDGER = "ledger"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
PROGRESS = "progress.json"
STOP = "stop"
REFUSED = "refused"
ENGINE = "engine.json"
DATA = "data.json"
OBSERVATIONS = "observations"
NEIGHBOURS = "neighbours"
RAY = "ray"
IGNORE = ".gitignore"

_REPLAY = " replay"
"""After the key of a run that repeats another one."""


@dataclass(frozen=True)
class ResultDirectory:
    """A folder with a result that all may see and a part that only its owner may."""

    root: Folder

    @property
    def private(self) -> Folder:
        """What must not be published."""
        return self.root / "private"

    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.root.exists(RESULT) and self.read_result().get("status") == "finished"

    def lay_out(self) -> None:
        """Makes the folders of something new.

        Raises:
            RunError: they cannot be written, or others could read the private one.
        """
        if not isinstance(path := self.root.path, Path):
            return
        try:
            path.mkdir(parents=True, exist_ok=True)  # to be seen by others, unlike private/
            private = path / "private"
            private.mkdir(mode=0o700, exist_ok=True)
            try:
                self.check_private()
            except RunError:
                with suppress(OSError):  # the name stays free, unless something is there already
                    private.rmdir()
                raise
            # Neither git nor Ray, which uploads the folder that a job is submitted from, takes it.
            self.private.write(IGNORE, b"*\n")
        except OSError as error:
            raise self.unwritable(error) from error

    def check_private(self) -> None:
        """Refuses a private part that is not.

        Raises:
            RunError: others could read or replace it; the message says what to do.
        """
        exposure = self.private.exposure()
        if exposure is not None:
            raise RunError(
                f"{exposure}. Or set train.storage_path to another folder: the run key, by which "
                "noise can be subtracted, must be its owner's alone"
            )

    def unwritable(self, error: OSError) -> RunError:
        """What to tell of a folder that cannot be written."""
        return RunError(
            f"{self.root} cannot be written: {error}; set train.storage_path to another folder"
        )

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, whole or not at all."""
        write_object(self.root, RESULT, result)

    def read_result(self) -> dict[str, Any]:
        """What result.json holds.

        Raises:
            RunError: it is missing or damaged.
        """
        return read_object(self.root, RESULT, "restore it from a backup, or remove it")

    def key(self) -> RunKey:
        """Its secret, from which all others are derived.

        Raises:
            RunError: it is missing or damaged.
        """
        return self._read_key()[0]

    def is_replay(self) -> bool:
        """Whether its key is that of another run, whose draw and noise it repeats.

        Raises:
            RunError: the key is missing or damaged.
        """
        return self._read_key()[1]

    def replay_of(self, part: str) -> RunKey | None:
        """The key for a part of a replay; None if this is none: the part draws a key by itself.

        Raises:
            RunError: the key is missing or damaged.
        """
        key, replay = self._read_key()
        return RunKey(key.derive(part)) if replay else None

    def _read_key(self) -> tuple[RunKey, bool]:
        try:
            return _parse_key(self.private.read(RUN_KEY).decode())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.private}/{RUN_KEY}: {error}. Without its key ({KEY_BYTES} bytes in hex) a "
                "run cannot be continued; restore the file from a backup, or start a new run"
            ) from error


class RunDirectory(ResultDirectory):
    """The files of one run, in ``root``."""

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """Where the configured run lives.

        Raises:
            StorageError: ``train.storage_path`` is a URI that cannot be opened.
        """
        return cls(open_folder(config.train.storage_path) / config.name)

    @property
    def checkpoints(self) -> Folder:
        """See :class:`~dp_ray.artifacts.checkpoint.Checkpoints`."""
        return self.private / CHECKPOINTS

    @property
    def ledger(self) -> Folder:
        """The write-ahead log of charges."""
        return self.private / LEDGER

    @property
    def observations(self) -> Folder:
        """The scores of an audited run's canaries, one file for each release."""
        return self.private / OBSERVATIONS

    @property
    def neighbours(self) -> Folder:
        """How far one example moved the sums of an audited run."""
        return self.private / NEIGHBOURS

    def exists(self) -> bool:
        """Whether a run of this name was started."""
        return self.root.exists("private")

    def unborn(self) -> bool:
        """Whether it was cut off while it was laid out: there is no ledger, and no other trace."""
        traces = set(self.private.names()) - {IGNORE, CONFIG, RUN_KEY}
        return not self.ledger.names() and traces <= {LEDGER}

    def forget(self) -> None:
        """Removes what was learnt; what it cost stays in the ledger."""
        self.root.delete(RELEASE)
        for name in (CHECKPOINTS, METRICS, PROGRESS, TENSORBOARD):
            self.private.delete(name)

    def check_free(self) -> None:
        """Refuses a name that is taken: a run is never overwritten.

        Raises:
            RunError: it is; the message says how to go on.
        """
        if self.exists() or self.root.exists(RESULT):
            raise RunError(self.taken())

    def taken(self) -> str:
        """Why no new run can have this name, and how to go on."""
        if self.finished():
            return (
                f"{self.root} holds a finished run, which is kept as it is: choose another --name, "
                "remove the folder, or go on with --resume and more privacy.steps"
            )
        return f"{self.root} holds an unfinished run: continue it with --resume, or choose a --name"

    def create(self, config: Config, plan: PrivacyPlan, *, replay: RunKey | None = None) -> None:
        """Lays out a new run, draws its key and enters its plan into the ledger.

        Args:
            config: what is trained.
            plan: what may be spent.
            replay: the key of another run, to repeat it; otherwise the operating system draws one.

        Raises:
            RunError: the name is taken, or see :meth:`lay_out`.
        """
        self.check_free()
        self.lay_out()
        try:
            self.private.write(CONFIG, write_yaml(config.dump()).encode())
            key = replay or RunKey.from_entropy()
            write_key(self.private, key, replay=replay is not None)
            Ledger.create(self.ledger, key.derive("ledger"), plan)
        except OSError as error:
            raise self.unwritable(error) from error

    def config(self) -> Config:
        """The configuration that the run was started with, whole.

        Raises:
            RunError: there is none, or it is damaged.
        """
        try:
            return parse_config(read_yaml(self.private.read(CONFIG).decode()))
        except (OSError, ValueError, ConfigError) as error:
            raise RunError(
                f"{self.private}/{CONFIG} cannot be read: {error}. Restore it from a backup, or "
                "start a new run"
            ) from error

    def read_ledger(self) -> Ledger:
        """The run's ledger, verified.

        Raises:
            LedgerError: see :class:`~dp_ray.ledger.ledger.Ledger`.
            RunError: the run key is missing.
        """
        return Ledger(self.ledger, self.key().derive("ledger"))

    def write_ledger(
        self,
        attempt: str,
        *,
        wait_s: float = 0.0,
        take_over: bool = False,
        block: int = 1,
        repair: bool = False,
    ) -> Ledger:
        """The run's ledger, open for this process alone.

        Args:
            attempt: see :class:`~dp_ray.ledger.lock.Owner`.
            wait_s: how long to wait for a writer that is about to end.
            take_over: break the lock of a writer that is known to be gone.
            block: steps that are paid for at once.
            repair: go on without a damaged end.

        Raises:
            LedgerError: another process writes it, or it does not verify.
            RunError: the run key is missing.
        """
        key = self.key().derive("ledger")
        lock = WriterLock(self.ledger, attempt, wait_s=wait_s, take_over=take_over)
        try:
            return Ledger(self.ledger, key, lock=lock, block=block, repair=repair)
        except BaseException:
            lock.release()
            raise

    def stop_requested(self) -> bool:
        """Whether the user asked the run to stop after the step at hand."""
        return self.private.exists(STOP)


def read_object(folder: Folder, name: str, remedy: str) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        RunError: it is missing or damaged; the message ends with the remedy.
    """
    try:
        found = json.loads(folder.read(name))
        if isinstance(found, dict):
            return found
        problem = "it holds something else"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    raise RunError(f"{folder}/{name} cannot be read: {problem}; {remedy}")


def write_object(folder: Folder, name: str, value: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = write_json(value, indent=2) + "\n"
    folder.write(name, text.encode())


def write_key(private: Folder, key: RunKey, *, replay: bool) -> None:
    """Writes a secret down, for its owner's eyes, and whether it was another run's before.

    Raises:
        OSError: it cannot be written.
    """
    private.write(RUN_KEY, f"{key.secret.hex()}{_REPLAY if replay else ''}\n".encode())


def refuse_key_of_seed(key: RunKey, seed: int) -> None:
    """Refuse a key that can be computed from a published seed.

    Raises:
        ConfigError: an earlier version derived the key from the seed, which a release names now.
    """
    if key.follows_from(seed):
        raise ConfigError(
            "seed",
            seed,
            "an earlier version started this, in which the noise followed from the seed; a release "
            "names the seed now",
            "Finish it with that version, or start anew with another --name",
        )


def read_replay_key(file: Path, seed: int | None) -> RunKey:
    """Return the key of a run that is to be repeated.

    Args:
        file: that run's ``private/run_key``.
        seed: the configuration's.

    Raises:
        ConfigError: the file holds none, or it follows from the seed.
    """
    try:
        key = _parse_key(file.read_text(encoding="utf-8"))[0]
    except (OSError, ValueError) as error:
        raise ConfigError(
            "--replay-key",
            str(file),
            f"no run key: {error}",
            f"Give the private/{RUN_KEY} of the run to repeat ({KEY_BYTES} bytes in hex)",
        ) from error
    if seed is not None:
        refuse_key_of_seed(key, seed)
    return key


def _parse_key(text: str) -> tuple[RunKey, bool]:
    secret = text.strip()
    own = secret.removesuffix(_REPLAY)
    return RunKey(bytes.fromhex(own)), own != secret


def deciding_fields(config: Config) -> dict[str, Any]:
    """Dotted path → value of the fields that decide the mathematics, all but the seed."""
    values = config.dump()
    fields = {
        f"{section}.{name}": value
        for section in ("data", "augment", "model", "privacy", "optimizer")
        for name, value in values[section].items()
    }
    # By the user, about the run.
    said = ("data.evaluation", "data.evaluation_noise", "privacy.search_epsilon")
    del fields["model.pretrained_norm"]  # follows from the weights, whose digest counts
    for may_change in ("data.root", "data.cache", "data.download", *said):
        del fields[may_change]
    for name in unheeded_fields(config.data):
        del fields[f"data.{name}"]
    if config.privacy.mechanism == DEFAULT:  # keys and runs of before there were others stay valid
        del fields["privacy.mechanism"], fields["privacy.mechanism_arguments"]
    if config.objective != ObjectiveConfig():  # likewise
        fields |= {f"objective.{name}": value for name, value in values["objective"].items()}
    return fields | {"train.precision": config.train.precision}
