"""What an audit leaves behind; all of it is private.

::

    runs/<name>/
      private/               mode 0700
        audit.json           what was asked for
        config.yaml          the configuration that is audited
        run_key              the audit's secret: coins and places of the canaries
        runs/0000, …         the runs, each with its own key, ledger and spoiled model
        outcome.json         what came out
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dp_ray.artifacts.result import Ending
from dp_ray.artifacts.result_directory import ResultDirectory
from dp_ray.artifacts.run_directory import CONFIG
from dp_ray.artifacts.run_key import write_key
from dp_ray.auditing.canaries import CanaryKind
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.document import Part, encode, read_file
from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import RunKey
from dp_ray.privacy.accounting import AccountantName
from dp_ray.storage import Folder, open_folder

AUDIT = "audit.json"
RUNS = "runs"


@dataclass(frozen=True)
class AuditSettings:
    """What an audit is asked for.

    Attributes:
        kind: of the canaries.
        canaries: m, in each run.
        significance: probability that the bound may be wrong.
        runs: 1, or how many are told apart by one canary each.
    """

    FORMAT: ClassVar[int] = 1

    kind: CanaryKind
    canaries: int
    significance: float
    runs: int

    def write(self, private: Folder) -> None:
        """Write audit.json.

        Raises:
            OSError: it cannot be written.
        """
        private.write(AUDIT, encode(asdict(self), self.FORMAT))

    @classmethod
    def read(cls, private: Folder) -> AuditSettings:
        """Return what audit.json holds.

        Raises:
            RunError: it is lost or damaged, or another version of dp-ray wrote it.
        """

        def build(values: dict[str, Any], number: int) -> AuditSettings:
            if number == 0:  # its runs have observations under another name, which are not read
                raise RunError(
                    f"{private}/{AUDIT} was written by an older dp-ray (format 0), whose audits "
                    "cannot be continued: finish it with that version, or start a new audit with "
                    "another --name"
                )
            return cls(**values)

        remedy = "Restore it from a backup, or start a new audit"
        return read_file(private, AUDIT, cls.FORMAT, build, remedy)


class Verdict(Part):
    """What was found.

    Attributes:
        epsilon_claimed: what the ledger's sums spend, by the tightest accountant.
        epsilon_stated: likewise, by the run's own accountant.
        epsilon_lower: with the confidence no less was spent, if the steps and q are the ledger's.
        epsilon_lower_of_any: likewise, whatever the mechanism.
        refuted: whether the claim is refuted by one of them, or one example moved a sum by more
            than C, on which the claim rests.
        can_refute: whether an attack that is always right would have refuted it.
        confidence: that both bounds hold.
        delta: δ of all three ε.
        guesses: of the attack that gives ``epsilon_lower``.
        right: how many of them are right.
        moved: how far one example moved a sum at the most, over C; None if none was looked at.
        moved_too_far: whether that is more than C allows.
        looks: sums that were looked at for that; none where all examples are gradient canaries,
            which say nothing of the network.
    """

    epsilon_claimed: float
    epsilon_stated: float
    epsilon_lower: float
    epsilon_lower_of_any: float
    refuted: bool
    can_refute: bool
    confidence: float
    delta: float
    guesses: int
    right: int
    moved: float | None = None
    moved_too_far: bool = False
    looks: int = 0


class AuditOutcome(Ending, Verdict):
    """outcome.json: what an audit found; private.

    Attributes: see :class:`AuditSettings` and :class:`Verdict`.
        accountant: of the runs.
        warning: who may see it.
    """

    FILE: ClassVar[str] = "outcome.json"
    REMEDY: ClassVar[str] = "Restore it from a backup"

    kind: CanaryKind
    canaries: int
    significance: float
    runs: int
    accountant: AccountantName
    warning: str


class AuditDirectory(ResultDirectory):
    """The files of one audit, in ``root``."""

    @classmethod
    def of(cls, config: Config) -> AuditDirectory:
        """Where the audit of a configuration lives: its name below ``train.storage_path``.

        Raises:
            StorageError: that is a URI that cannot be opened.
        """
        return cls(open_folder(config.train.storage_path) / config.name)

    @property
    def runs(self) -> Folder:
        """The runs of this audit, by name."""
        return self.private / RUNS

    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.private.exists(AuditOutcome.FILE)

    def check_free(self) -> None:
        """Refuses a name that is taken.

        Raises:
            RunError: it is; the message says how to go on.
        """
        if not (self.root.exists("private") or self.root.exists(Ending.FILE)):
            return
        if not self.private.exists(AUDIT):
            problem = "something else than an audit: choose another --name, or remove the folder"
        elif self.finished():
            problem = (
                "a finished audit, which is kept as it is: choose another --name, or remove the "
                "folder"
            )
        else:
            problem = "an unfinished audit: continue it with --resume, or choose a --name"
        raise RunError(f"{self.root} holds {problem}")

    def create(
        self, config: Config, settings: AuditSettings, *, replay: RunKey | None = None
    ) -> None:
        """Lays out a new audit and draws its key.

        Args:
            config: what is audited.
            settings: how.
            replay: the key of another audit, to repeat it.

        Raises:
            RunError: it cannot be written, or others could read it.
        """
        self.lay_out()
        key = replay or RunKey.from_entropy()
        try:
            self.private.write(CONFIG, write_yaml(config.dump()).encode())
            write_key(self.private, key, replay=replay is not None)
            settings.write(self.private)
        except OSError as error:
            raise self.unwritable(error) from error

    def begun(self) -> tuple[Config, AuditSettings]:
        """The configuration and settings that the audit was started with.

        Raises:
            RunError: there is no audit to go on with.
        """
        if self.finished():
            self.check_free()  # says so
        if not self.private.exists(AUDIT):
            raise RunError(f"{self.root} holds no audit to resume: start it without --resume")
        settings = AuditSettings.read(self.private)
        try:
            return parse_config(read_yaml(self.private.read(CONFIG).decode())), settings
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise RunError(
                f"{self.root} holds no audit to resume ({error}): start it without --resume"
            ) from error

    def run_config(self, config: Config, number: int) -> Config:
        """What one of the runs is trained as: in a place of its own."""
        train = config.train.model_copy(update={"storage_path": self.runs.uri})
        return config.model_copy(update={"train": train, "name": f"{number:04d}"})

    def write_outcome(self, outcome: AuditOutcome) -> None:
        """Write outcome.json, whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        try:
            outcome.write(self.private)
        except OSError as error:
            raise self.unwritable(error) from error
