"""Unpacks CIFAR-10 as JPEG and decodes it, beside the first stages; ``cifar10.done`` says so."""

from __future__ import annotations

import argparse
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

from learning import RECIPE, cache, cifar10

from dp_ray.config.files import load_config
from dp_ray.data.store import open_dataset

FEW = 40
"""Images of each class and split, for the smoke run."""


def unpack(archive: Path, folder: Path, *, few: bool) -> None:
    """Writes the images below ``folder``."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            place = str(PurePosixPath(member.name).parent)
            if not member.isfile() or (few and seen[place] >= FEW):
                continue
            seen[place] += 1
            tar.extract(member, folder, filter="data")


def decode(folder: Path) -> None:
    """Makes the decoded copy that runs map into memory."""
    values = cifar10(folder) | {"data.cache": cache(folder.parent)}
    config = load_config(RECIPE, [f"{name}={value}" for name, value in values.items()])
    open_dataset(config.data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    unpack(options.archive, options.folder, few=options.few)
    decode(options.folder)
    options.folder.with_suffix(".done").touch()
