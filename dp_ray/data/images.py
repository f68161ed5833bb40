"""Images that a model is asked about: files that are named, and those in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dp_ray.data.files import walk
from dp_ray.data.pictures import SUFFIXES
from dp_ray.errors import DataError
from dp_ray.storage import user_path


@dataclass(frozen=True)
class ImageFiles:
    """Files to be read.

    Attributes:
        files: in the order in which they were named; those of a folder by name.
        skipped: entries of folders that are no images: hidden, or of another suffix.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def find_images(places: Iterable[str | os.PathLike[str]]) -> ImageFiles:
    """List image files; opens none.

    Args:
        places: files, whatever their suffix, and folders, which are searched with all below them.

    Raises:
        DataError: one is not there, or a folder holds no image.
    """
    found = ImageFiles()
    for place in places:
        path = user_path(os.fspath(place))
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: there is no such file or folder")
            found.files.append(path)
            continue
        before = len(found.files)
        for entry in walk(path):
            taken = entry.status is not None and entry.path.suffix.lower() in SUFFIXES
            (found.files if taken else found.skipped).append(entry.path)
        if len(found.files) == before:
            raise DataError(
                f"{path} holds no image: they have one of the suffixes "
                f"{', '.join(sorted(SUFFIXES))}"
            )
    return found
