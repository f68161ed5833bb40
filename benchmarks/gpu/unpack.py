"""Unpacks CIFAR-10 as JPEG into a folder; ``done`` beside it says that it is whole."""

from __future__ import annotations

import argparse
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

FEW = 40
"""Images of each class and split, for the smoke run."""


def unpack(archive: Path, folder: Path, *, few: bool) -> None:
    """Writes the images below ``folder``, then the file ``folder.done``."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            place = str(PurePosixPath(member.name).parent)
            if not member.isfile() or (few and seen[place] >= FEW):
                continue
            seen[place] += 1
            tar.extract(member, folder, filter="data")
    folder.with_suffix(".done").touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    unpack(options.archive, options.folder, few=options.few)
