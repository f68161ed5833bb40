"""What a run leaves behind, and who may see it.

::

    runs/<name>/
      result.json            what came out, in one object
      release/               may be published: model.safetensors, config.yaml, privacy.json
      private/               mode 0700: run key, ledger, full configuration, metrics, checkpoints

It lies on a disk, or in an object store if ``train.storage_path`` is a URI.
"""

from __future__ import annotations

from typing import Any

from dp_ray.artifacts.course import METRICS
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.result_directory import IGNORE, ResultDirectory
from dp_ray.artifacts.run_key import RUN_KEY, write_key
from dp_ray.config.files import parse_config
from dp_ray.config.model import ObjectiveConfig
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.data.sources.registry import unheeded_fields
from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import RunKey
from dp_ray.ledger.ledger import Ledger
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.mechanism import DEFAULT
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import Folder, open_folder

RELEASE = "release"
CONFIG = "config.yaml"
LEDGER = "ledger"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
STOP = "stop"
REFUSED = "refused"
OBSERVATIONS = "observations"
NEIGHBOURS = "neighbours"
RAY = "ray"

DECLARED = ("data.evaluation", "data.evaluation_noise", "privacy.search_epsilon")
"""Fields by which the user says something about a run; none decides its mathematics."""


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

    def is_incomplete(self) -> bool:
        """Whether creation was interrupted before the ledger was written."""
        traces = set(self.private.names()) - {IGNORE, CONFIG, RUN_KEY}
        return not self.ledger.names() and traces <= {LEDGER}

    def forget(self) -> None:
        """Removes what was learnt; what it cost stays in the ledger."""
        self.root.delete(RELEASE)
        for name in (CHECKPOINTS, METRICS, Progress.FILE, TENSORBOARD):
            self.private.delete(name)

    def check_free(self) -> None:
        """Refuses a name that is taken: a run is never overwritten.

        Raises:
            RunError: it is; the message says how to go on.
        """
        if self.exists() or self.root.exists(Result.FILE):
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

    def request_stop(self) -> None:
        """Ask the run to stop after the step at hand, with a checkpoint."""
        self.private.write(STOP, b"")

    def stop_requested(self) -> bool:
        """Whether the user asked the run to stop after the step at hand."""
        return self.private.exists(STOP)


def declarations(config: Config) -> dict[str, Any]:
    """Return :data:`DECLARED` fields by dotted path."""
    values = config.dump()
    named = {name: name.split(".") for name in DECLARED}
    return {name: values[section][field] for name, (section, field) in named.items()}


def deciding_fields(config: Config) -> dict[str, Any]:
    """Return the fields that decide the mathematics by dotted path, all but the seed.

    Keys are bound to them. A field that is added later must be left out where it has its default,
    or runs of before could not be resumed, nor their noise be had again.
    """
    values = config.dump()
    fields = {
        f"{section}.{name}": value
        for section in ("data", "augment", "model", "privacy", "optimizer")
        for name, value in values[section].items()
    }
    del fields["model.pretrained_norm"]  # follows from the weights, whose digest counts
    may_differ = ("data.root", "data.cache", "data.download", "data.class_names", *DECLARED)
    for may_change in may_differ:
        del fields[may_change]
    for name in unheeded_fields(config.data):
        del fields[f"data.{name}"]
    if config.privacy.mechanism == DEFAULT:  # keys and runs of before there were others stay valid
        del fields["privacy.mechanism"], fields["privacy.mechanism_arguments"]
    if config.objective != ObjectiveConfig():  # likewise
        fields |= {f"objective.{name}": value for name, value in values["objective"].items()}
    return fields | {"train.precision": config.train.precision}
