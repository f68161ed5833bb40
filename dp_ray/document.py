"""JSON documents: one class writes and reads each of them, with a format number.

Files that were written before formats had numbers have none: they are format 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from dp_ray.errors import RunError
from dp_ray.json_text import write_json
from dp_ray.storage import Folder

T = TypeVar("T")

_KEY = "format"
"""Of the format number in a file."""


def encode(values: dict[str, Any], number: int, *, indent: int | None = 2) -> bytes:
    """Return values as the JSON text of a file.

    Args:
        values: plain values.
        number: the format that they are in.
        indent: of the text; None for one line.
    """
    return (write_json({_KEY: number, **values}, indent=indent) + "\n").encode()


def decode(text: bytes, place: str, newest: int) -> tuple[dict[str, Any], int]:
    """Return the values of a JSON file and the format that they are in.

    Args:
        text: the content of the file.
        place: names the file in messages.
        newest: the newest format that this version reads.

    Raises:
        ValueError: the text is not a JSON object.
        RunError: a newer version of dp-ray wrote it.
    """
    values = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(values, dict):
        raise ValueError("it does not hold a JSON object")
    number = take_format(values, place, newest)
    return values, number


def take_format(values: dict[str, Any], place: str, newest: int) -> int:
    """Remove the format number from values and return it; 0 if there is none.

    Args:
        values: what was read.
        place: names the file in messages.
        newest: the newest format that this version reads.

    Raises:
        ValueError: the number is not one.
        RunError: a newer version of dp-ray wrote the values.
    """
    number = values.pop(_KEY, 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"its format is {number!r}, not a number from 0")
    if number > newest:
        raise RunError(
            f"{place} was written by a newer dp-ray (format {number}; this version reads up to "
            f"{newest}): use that version"
        )
    return number


def read_file(
    folder: Folder,
    name: str,
    newest: int,
    build: Callable[[dict[str, Any], int], T],
    remedy: str,
) -> T:
    """Return what ``build`` makes of the values in a file.

    Args:
        folder: where the file is.
        name: of the file.
        newest: the newest format that this version reads.
        build: takes the values and their format.
        remedy: what the user can do if the file is lost or damaged; a sentence.

    Raises:
        RunError: the file is lost or damaged, or a newer version of dp-ray wrote it.
    """
    place = f"{folder}/{name}"
    try:
        text = folder.read(name)
    except OSError as error:
        raise RunError(f"{place} cannot be read: {error}. {remedy}") from error
    try:
        return build(*decode(text, place, newest))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{place} is damaged: {_in_one_line(error)}. {remedy}") from error


class Part(BaseModel):
    """A group of values in a document. Fields that are not known are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Scored(Part):
    """Values among which are metrics of the test split.

    In a file the metrics stand beside the other fields, by names that begin with ``test_``.

    Attributes:
        metrics: by name; None where there is no test split, or the metric is not finite.
    """

    metrics: dict[str, float | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_metrics(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "metrics" in values:
            return values
        named = {n for n in values if n.startswith("test_") and n not in cls.model_fields}
        others = {name: value for name, value in values.items() if name not in named}
        return {**others, "metrics": {name: values[name] for name in values if name in named}}

    @model_serializer(mode="wrap")
    def _spread_metrics(self, dump: Any) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {**values, **values.pop("metrics", {})}


class Document(Part):
    """A JSON file. A field that was not given is left out of it.

    Class attributes:
        FILE: its name.
        FORMAT: the format that this version writes, and the newest that it reads.
        REMEDY: what the user can do if the file is lost or damaged; a sentence.
    """

    FILE: ClassVar[str]
    FORMAT: ClassVar[int] = 1
    REMEDY: ClassVar[str] = "Restore it from a backup"

    @classmethod
    def upgrade(cls, values: dict[str, Any], number: int) -> dict[str, Any]:
        """Return the values of an earlier format as the present one has them.

        Args:
            values: what a file holds.
            number: its format, :attr:`FORMAT` at most.

        Raises:
            RunError: that format cannot be read any more.
        """
        del number
        return values

    def dump(self) -> dict[str, Any]:
        """Return plain values, with the format number."""
        return {_KEY: self.FORMAT, **self.model_dump(exclude_unset=True)}

    def encode(self) -> bytes:
        """Return the text of the file."""
        return encode(self.dump(), self.FORMAT)

    def write(self, folder: Folder) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        folder.write(self.FILE, self.encode())

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """Return the document in a folder.

        Raises:
            RunError: it is lost or damaged, or a newer version of dp-ray wrote it.
        """
        return read_file(
            folder,
            cls.FILE,
            cls.FORMAT,
            lambda values, number: cls.model_validate(cls.upgrade(values, number)),
            cls.REMEDY,
        )

    @classmethod
    def find(cls, folder: Folder) -> Self | None:
        """Return the document in a folder; None if there is none.

        Raises:
            RunError: it is damaged, or a newer version of dp-ray wrote it.
        """
        return cls.read(folder) if folder.exists(cls.FILE) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _in_one_line(error: Exception) -> str:
    """The first lines of a message: pydantic's have the field in the second."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:3])
    return text or type(error).__name__
