"""What a search leaves behind, and who may see it.

::

    runs/<name>/
      result.json            what came out, and what the whole search cost
      best.yaml              the best trial, as a configuration for dp-ray train
      release/               may be published: the best trial's model, configuration, statement
      report.html            pictures; in private/ where only the best trial may be seen
      private/               mode 0700: key, points, budgets, trials/ (each a run), Ray's notes
"""

from __future__ import annotations

from typing import Any

from dp_ray.artifacts.result import Ending
from dp_ray.artifacts.result_directory import IGNORE, ResultDirectory
from dp_ray.artifacts.run_key import RUN_KEY, write_key
from dp_ray.config.search import SweepConfig, parse_sweep
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.document import encode, read_file
from dp_ray.errors import RunError
from dp_ray.keys import RunKey
from dp_ray.ledger.lock import LOCK
from dp_ray.search.budget import Budgets
from dp_ray.search.space import Point
from dp_ray.storage import Folder, open_folder

SWEEP = "sweep.yaml"
SEARCH = "search.json"
SEARCH_FORMAT = 1
BEST = "best.yaml"
REPORT = "report.html"
RAY = "ray"


class SweepDirectory(ResultDirectory):
    """The files of one search, in ``root``."""

    @classmethod
    def of(cls, sweep: SweepConfig) -> SweepDirectory:
        """Where a search lives: its name below ``train.storage_path``.

        Raises:
            StorageError: that is a URI that cannot be opened.
        """
        return cls(open_folder(sweep.storage_path) / sweep.name)

    @property
    def trials(self) -> Folder:
        """Runs of this search, by name."""
        return self.private / "trials"

    def exists(self) -> bool:
        """Whether a search, or a run, of this name was started."""
        begun = set(self.private.names()) - {IGNORE, LOCK, SWEEP, RUN_KEY}  # these come first
        return bool(begun) or self.root.exists(Ending.FILE)

    def check_free(self) -> None:
        """Refuses a name that is taken.

        Raises:
            RunError: it is; the message says how to go on.
        """
        if self.exists():
            raise RunError(self.taken())

    def taken(self) -> str:
        """Why no new search can have this name, and how to go on."""
        if not self.private.exists(SEARCH):
            return (
                f"{self.root} holds something else than a search: choose another --name, or "
                "remove the folder"
            )
        if self.finished():
            return (
                f"{self.root} holds a finished search, which is kept as it is: choose another "
                "--name (both searches count), or remove the folder"
            )
        return (
            f"{self.root} holds an unfinished search: continue it with --resume, or choose a --name"
        )

    def create(
        self,
        sweep: SweepConfig,
        key: RunKey,
        points: list[Point] | None,
        budgets: Budgets,
        *,
        replay: bool = False,
    ) -> None:
        """Writes down what was drawn and solved, before the first trial.

        Args:
            sweep: the search.
            key: its secret, which draws the number of trials and their points.
            points: of all trials; None if a searcher proposes them as it goes.
            budgets: every budget that a trial may have.
            replay: whether the key was another search's.

        Raises:
            RunError: it cannot be written.
        """
        drawn = {"points": points, "budgets": budgets.dump()}
        try:
            self.private.write(SWEEP, write_yaml(sweep.dump()).encode())
            write_key(self.private, key, replay=replay)
            self.private.write(SEARCH, encode(drawn, SEARCH_FORMAT, indent=1))
        except OSError as error:
            raise self.unwritable(error) from error

    def sweep(self) -> SweepConfig:
        """What the search was started with.

        Raises:
            RunError: there is no search, or it is damaged.
        """
        try:
            return parse_sweep(read_yaml(self.private.read(SWEEP).decode()))
        except OSError as error:
            raise RunError(
                f"{self.root} holds no search to resume: start it without --resume"
            ) from error
        except ValueError as error:
            raise RunError(
                f"{self.private}/{SWEEP} cannot be read: {error}. Restore it from a backup"
            ) from error

    def read_search(self, sweep: SweepConfig) -> tuple[list[Point] | None, Budgets]:
        """The points and budgets that :meth:`create` wrote.

        Raises:
            RunError: it is missing or damaged.
        """

        def build(values: dict[str, Any], _number: int) -> tuple[list[Point] | None, Budgets]:
            return values["points"], Budgets.from_dump(sweep, values["budgets"])

        return read_file(
            self.private,
            SEARCH,
            SEARCH_FORMAT,
            build,
            "Restore it from a backup, or start a new search: what this one spent adds to it",
        )
