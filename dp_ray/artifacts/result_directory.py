"""A folder with a result, and a private part."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_ray.artifacts.result import is_finished
from dp_ray.artifacts.run_key import read_key
from dp_ray.errors import ConfigError, RunError
from dp_ray.keys import RunKey
from dp_ray.storage import Folder

IGNORE = ".gitignore"


@dataclass(frozen=True)
class ResultDirectory:
    """A folder with a result, and a part that only its owner may see."""

    root: Folder

    @property
    def private(self) -> Folder:
        """What must not be published."""
        return self.root / "private"

    def finished(self) -> bool:
        """Whether it came to its end.

        Raises:
            RunError: its result is damaged.
        """
        return is_finished(self.root)

    def lay_out(self) -> None:
        """Make the folders of something new.

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
        """Refuse a private part that is not.

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
        """Return the error to raise for a folder that cannot be written."""
        return RunError(
            f"{self.root} cannot be written: {error}; set train.storage_path to another folder"
        )

    def key(self) -> RunKey:
        """Its secret, from which all others are derived.

        Raises:
            RunError: it is missing or damaged.
        """
        return read_key(self.private)[0]

    def is_replay(self) -> bool:
        """Whether its key is that of another run, whose draw and noise it repeats.

        Raises:
            RunError: the key is missing or damaged.
        """
        return read_key(self.private)[1]

    def replay_of(self, part: str) -> RunKey | None:
        """The key for a part of a replay; None if this is none: the part draws a key by itself.

        Raises:
            RunError: the key is missing or damaged.
        """
        key, replay = read_key(self.private)
        return RunKey(key.derive(part)) if replay else None


def refuse_changes(started: Mapping[str, Any], now: Mapping[str, Any], kind: str) -> None:
    """Refuse to resume as something else.

    Args:
        started: field → value that decides the result, as it was started. A field that is missing
            has its default.
        now: the same, as it is to be resumed.
        kind: what is resumed: run, search or audit.

    Raises:
        ConfigError: a field differs, or stands in one of the two alone.
    """
    for field in sorted(started.keys() | now.keys()):
        old, new = started.get(field), now.get(field)
        if old != new:
            raise ConfigError(
                field,
                new,
                f"the {kind} was started with {old!r}",
                f"Resume it as it was, or start a new {kind} with another --name; its privacy cost "
                "adds to this one's",
            )
