"""``dp-ray clean``: what it lists, what it keeps, and that it asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.interrupted import start_and_stop
from helpers.support import MakeConfig, folder, start
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.api.clean import find_leftovers
from dp_ray.config.run import Config
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import RunError
from dp_ray.ledger.lock import WriterLock
from dp_ray.storage import LocalFolder

FAKE = {"name": "fake", "num_examples": 50, "num_classes": 10, "image_size": 8, "channels": 1}
FAKE["expected_batch_size"] = 20


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session and no graph but those of the test."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "graphs"))


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Of data that is decoded in no time."""
    return make_config(data=FAKE)


@pytest.fixture
def cache(config: Config) -> Path:
    """A folder with a decoded copy that nobody uses."""
    assert config.data.cache is not None
    open_dataset(config.data)
    return Path(config.data.cache)


def kinds(cache: Path, *runs: Path) -> list[str]:
    return [left.kind for left in find_leftovers(cache, map(str, runs))]


def test_a_copy_is_removed_and_made_again(config: Config, cache: Path) -> None:
    (cache / "notes.txt").write_text("the user's")
    (copy,) = find_leftovers(cache)
    assert copy.kind == "decoded copy"
    assert copy.size == sum(file.stat().st_size for file in copy.path.iterdir())
    assert copy.remove()
    assert {path.name for path in cache.iterdir()} == {"key", "key.lock", "notes.txt"}
    assert len(open_dataset(config.data).train) == 50


def test_a_copy_that_is_mapped_stays(config: Config, cache: Path) -> None:
    (copy,) = find_leftovers(cache)
    dataset: Dataset | None = open_dataset(config.data)
    assert kinds(cache) == []
    assert not copy.remove()
    assert dataset is not None
    assert len(dataset.train) == 50
    del dataset
    assert kinds(cache) == ["decoded copy"]


def test_a_copy_that_is_being_made_stays(cache: Path) -> None:
    (copy,) = find_leftovers(cache)
    half = copy.path.with_name(f"{copy.path.name}.abcd")
    copy.path.rename(half)
    with FileLock(copy.path.with_name(f"{copy.path.name}.lock")):
        assert [left.remove() for left in find_leftovers(cache)] == [False, False]
        assert half.is_dir()
    assert kinds(cache) == ["half of a copy", "lock"]
    assert all(left.remove() for left in find_leftovers(cache) if left.kind != "lock")
    assert kinds(cache) == []


def session(root: Path, name: str, *, age_s: float) -> Path:
    """The folder of a Ray that wrote its last line so long ago."""
    place = root / "ray" / name
    (place / "logs").mkdir(parents=True)
    log = place / "logs" / "raylet.out"
    log.write_text("x" * 1000)
    then = time.time() - age_s
    for path in (log, place / "logs", place):
        os.utime(path, (then, then))
    return place


def test_sessions_of_rays_that_live_stay(tmp_path: Path) -> None:
    ended = session(tmp_path, "session_2026-01-01_00-00-00_000001_1", age_s=1000)
    alive = session(tmp_path, "session_2026-01-01_00-00-00_000002_2", age_s=1000)
    session(tmp_path, "session_2026-01-01_00-00-00_000003_3", age_s=10)
    (tmp_path / "ray/session_latest").symlink_to(ended)
    waits = "print(flush=True); input()"
    command = [sys.executable, "-c", waits, f"--session-name={alive.name}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its command line can be read from here on
        found = find_leftovers(tmp_path / "none")
        assert [(left.kind, left.path, left.size) for left in found] == [
            ("Ray session", ended, 1000)
        ]
        assert process.stdin is not None
        process.stdin.close()
    assert [left.path for left in find_leftovers(tmp_path / "none")] == [ended, alive]
    assert found[0].remove()
    assert not ended.exists()


def test_checkpoints_are_removed_of_finished_runs_alone(
    make_config: MakeConfig, cache: Path
) -> None:
    stopped, finished = (make_config(data=FAKE, name=name) for name in ("stopped", "finished"))
    start_and_stop(stopped, 2)
    start(finished)
    for place in (folder(stopped), cache, cache / "nowhere"):
        with pytest.raises(RunError, match="is no finished run"):
            find_leftovers(cache, [str(place)])
    checkpoints = find_leftovers(cache, [str(folder(finished))])[0]
    assert checkpoints.kind == "checkpoints"
    before = {path for path in folder(finished).rglob("*") if "checkpoint" not in str(path)}
    lock = WriterLock(LocalFolder(folder(finished) / "private/ledger"), "a test")
    assert not checkpoints.remove()
    lock.release()
    assert checkpoints.remove()
    assert before <= set(folder(finished).rglob("*"))
    assert "checkpoints" not in kinds(cache, folder(finished))
    more = make_config(data=FAKE, name="finished", privacy={"steps": 5})
    with pytest.raises(RunError, match="no readable checkpoint"):
        start(more, resume=True)


def run(*arguments: str | Path, answer: str | None = None) -> str:
    words = ["clean", *map(str, arguments)]
    result = CliRunner().invoke(cli.app, words, input=answer, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_nothing_is_removed_without_an_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = run("--cache", cache)
    assert "decoded again when needed" in listed
    assert "nothing; --yes removes" in listed
    monkeypatch.setattr("dp_ray.cli.leftovers.can_answer", lambda: True)
    assert "nothing" in run("--cache", cache, answer="n\n")
    assert kinds(cache) == ["decoded copy"]
    run("--cache", cache, answer="y\n")
    assert kinds(cache) == []
    assert "nothing is left" in run("--cache", cache)


def test_yes_removes_and_json_lists(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs/kernel.py").write_text("x" * 10**4)
    found = json.loads(run("--cache", cache, "--yes", "--json").splitlines()[-1])["leftovers"]
    assert [(left["kind"], left["removed"]) for left in found] == [
        ("decoded copy", True),
        ("compiled graphs", True),
    ]
    assert found[1]["bytes"] == 10**4
    assert not (tmp_path / "graphs").exists()
