"""Where a file that somebody asked for goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dp_ray.artifacts.released_model import MODEL
from dp_ray.artifacts.statement import Statement
from dp_ray.errors import ConfigError, StorageError
from dp_ray.storage import Folder, LocalFolder, open_folder


@dataclass(frozen=True)
class OutputFile:
    """A file to be written.

    Attributes:
        folder: where it goes.
        name: what it is called there.
        option: by which another place can be given.
    """

    folder: Folder
    name: str
    option: str

    @classmethod
    def given(cls, location: str, option: str, endings: tuple[str, ...]) -> OutputFile:
        """The file at a path or URI.

        Args:
            location: what was given.
            option: by which it was.
            endings: that it may have.

        Raises:
            ConfigError: it has another.
            StorageError: its URI cannot be opened.
        """
        head, slash, name = location.rpartition("/")
        if Path(name).suffix not in endings:
            raise ConfigError(
                option, location, "no such file can be written", f"End it in {', '.join(endings)}"
            )
        return cls(open_folder(head + slash or "."), name, option)

    def check_unpublished(self) -> OutputFile:
        """Return the file; refuse one in a release folder, all of which is published.

        Raises:
            ConfigError: it lies there.
        """
        path = self.folder.path
        places = [self.folder]
        if path is not None:
            real = path.resolve()
            places = [LocalFolder(place) for place in (real, *real.parents)]
        if any(place.exists(MODEL) and place.exists(Statement.FILE) for place in places):
            raise ConfigError(
                self.option, str(self), "lies in a release, which is published", "Put it elsewhere"
            )
        return self

    def write(self, content: bytes) -> str:
        """Writes it, whole or not at all; returns where it is.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self.folder.write(self.name, content)
        except OSError as error:
            raise StorageError(
                f"{self} cannot be written: {error}. Give another place with {self.option} FILE"
            ) from error
        return str(self)

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"
