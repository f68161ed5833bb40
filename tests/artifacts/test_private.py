"""A run's private part is its owner's alone, and no run is left where it would be lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from helpers.support import MakeConfig, folder, start

from dp_ray.errors import ConfigError, RunError
from dp_ray.on_ray.job import check_storage_path


def test_a_private_part_that_others_can_read_is_not_gone_on_with(make_config: MakeConfig) -> None:
    config = make_config()
    start(config)
    private = folder(config) / "private"
    private.chmod(0o750)
    with pytest.raises(RunError, match=f"mode 0750, so others can read it: chmod 700 {private}"):
        start(make_config(privacy={"steps": 6}), resume=True)
    private.chmod(0o700)
    assert start(make_config(privacy={"steps": 6}), resume=True)["status"] == "finished"


def test_a_file_system_without_modes_holds_no_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before the key is there; and the name stays free."""
    make = os.mkdir

    def without_modes(path: Any, _mode: int = 0o777, **keywords: Any) -> None:
        make(path, 0o777, **keywords)

    config = make_config()
    make(str(config.data.cache), 0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", without_modes)
        with pytest.raises(RunError, match=r"its file system keeps no modes.*train\.storage_path"):
            start(config)
    assert list(folder(config).iterdir()) == []
    assert start(config)["status"] == "finished"


def test_a_folder_that_everybody_may_rename_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(train={"storage_path": str(tmp_path / "shared/group/runs")})
    (tmp_path / "shared/group").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(RunError, match=rf"everybody may rename.*chmod \+t {tmp_path}/shared"):
        start(config)
    (tmp_path / "shared").chmod(0o777 | stat.S_ISVTX)  # as /tmp is
    assert start(config)["status"] == "finished"


@pytest.mark.parametrize("path", ["runs", "./runs", "../runs"])
def test_a_job_keeps_nothing_in_its_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    check_storage_path(path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {}}')
    for lasting in ("/shared/runs", "~/runs", "s3://bucket/runs", "file:///shared/runs"):
        check_storage_path(lasting)
    with pytest.raises(ConfigError, match=r"^train\.storage_path = .*absolute path"):
        check_storage_path(path)
