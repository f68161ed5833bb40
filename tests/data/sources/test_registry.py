"""Sources by name: what identifies their decoded copies, and what they heed of a configuration."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT

from dp_ray.artifacts.run_directory import deciding_fields
from dp_ray.config.data import DataConfig
from dp_ray.config.files import parse_config
from dp_ray.data.cache import Cache
from dp_ray.data.facts import data_facts
from dp_ray.data.sources.registry import SOURCES, is_self_contained, source_of
from dp_ray.data.store import open_dataset

FAKE = {"name": "fake", "num_examples": 20, "image_size": 4}
GREY = {**FAKE, "num_classes": 3, "channels": 1}

RECORDED = [
    # data section, stamp, name of the copy under a key of zeros, digest of the training split
    (
        {"name": "digits"},
        "scikit-learn 1.9.1",
        "d62017825d9d230b952fd386c64c2d5f",
        "cf523fcf146ab6c4a2fc65ac83b5a8f7bbca3d816b439954e27c285d3462cf27",
    ),
    (
        GREY,
        "fake 2",
        "f84d15bd6e12c29a5bbf42b46554a379",
        "a5233f54f836fcea5cb769a0d3fd3aabd72a3bfb764256cd5bb1c71324b0acd4",
    ),
    (
        FAKE,
        "fake 2",
        "44bc4e711a7be839eff360df7925dec7",
        "1a756fdc53edae49eecd22f1e7c804b41522c660daea96022333abbed2af16a7",
    ),
]
"""Of the last commit before sources were classes: runs are bound to these digests."""


@pytest.mark.parametrize(("given", "stamp", "name", "digest"), RECORDED)
def test_names_and_digests_of_copies_are_those_of_earlier_versions(
    given: dict[str, Any], stamp: str, name: str, digest: str, tmp_path: Path
) -> None:
    config = DataConfig(expected_batch_size=2, cache=str(tmp_path), **given)
    found = source_of(config).stamp()
    assert found is not None
    if "scikit-learn" in stamp:  # its version may be another
        assert found.rpartition(" ")[0] == "scikit-learn"
    else:
        assert found == stamp
    cache = Cache(tmp_path, bytes(32))
    assert cache.name_of([config.name, asdict(data_facts(config)), stamp]) == name
    assert open_dataset(config).digest == digest


def test_the_stamp_of_files_is_that_of_earlier_versions(tmp_path: Path) -> None:
    image = tmp_path / "train/a/0.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"unread")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/.hidden").touch()
    facts = {"num_examples": 1, "num_classes": 2, "image_size": 4, "channels": 1}
    config = DataConfig(name="image_folder", root=str(tmp_path), expected_batch_size=1, **facts)
    status = image.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    real = tmp_path.resolve()
    assert source_of(config).stamp() == (
        "decoding 3\nbackground white\n"
        f"train/a/0.png {real}/train/a {status.st_ino} {status.st_size} {times}\n"
        f"test/.hidden {real}/test left out"
    )


def test_the_background_decides_a_run_on_an_image_folder_alone() -> None:
    for name in (*SOURCES, "my_pkg:load"):
        config = parse_config(
            {
                "data": {"name": name, "expected_batch_size": 2},
                "privacy": {"epsilon": 3.0, "delta": 1e-5, "steps": 10},
                "optimizer": {"lr": 1.0},
            }
        )
        assert ("data.background" in deciding_fields(config)) == (name == "image_folder")


def test_which_sources_need_no_files_of_the_user() -> None:
    names = [*SOURCES, "my_pkg:load", "of a later version"]
    assert {name for name in names if is_self_contained(name)} == {"digits", "fake"}


def test_each_source_is_on_a_page_and_has_its_tests() -> None:
    page = (ROOT / "docs/how_to/own_data.md").read_text(encoding="utf-8")
    for name, kind in SOURCES.items():
        assert f"`{name}`" in page, name
        file = Path(inspect.getfile(kind))
        assert (ROOT / "tests/data/sources" / f"test_{file.name}").is_file(), file
