"""data.cache: names that say nothing, for its owner alone, copies of what is there now."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import MakeConfig, folder, start
from PIL import Image

from dp_ray import cli
from dp_ray.api.train import run_training
from dp_ray.config.data import DataConfig
from dp_ray.data import stamp as stamp_module
from dp_ray.data import store
from dp_ray.data.cache import KEY, Cache
from dp_ray.data.facts import data_facts
from dp_ray.data.sources.image_folder import ImageFolder
from dp_ray.data.sources.registry import source_of
from dp_ray.data.splits import Splits
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError, DpRayError, RunError
from dp_ray.on_ray import job
from dp_ray.on_ray.session import training_environment
from dp_ray.storage import LocalFolder
from dp_ray.training.agreement import open_same_dataset
from dp_ray.training.collective import Alone

OLD = 315532800  # 1 January 1980, as archives made for repetition have it


def draw(path: Path, shade: int) -> None:
    """A grey picture; all of them are of one size and one time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path, format="PPM")
    os.utime(path, (OLD, OLD))


def fill(root: Path, shade: int) -> Path:
    for split in ("train", "test"):
        for label in ("a", "b"):
            draw(root / split / label / "0.ppm", shade)
    return root


def shade_of(config: DataConfig) -> int:
    return int(open_dataset(config).train.read(np.arange(1))[0].mean())


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., DataConfig]:
    """A configuration of two training and two test pictures, below ``images``."""
    fill(tmp_path / "images", 10)

    def make(**given: Any) -> DataConfig:
        values: dict[str, Any] = {
            "name": "image_folder",
            "root": str(tmp_path / "images"),
            "expected_batch_size": 1,
            "num_examples": 2,
            "num_classes": 2,
            "image_size": 4,
            "channels": 1,
            "cache": str(tmp_path / "cache"),
        }
        return DataConfig(**{**values, **given})

    return make


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_the_name_of_a_copy_is_no_test_of_a_guess(
    pictures: Callable[..., DataConfig], tmp_path: Path
) -> None:
    """Two folders hold the same pictures under names of their own, which no plain hash gives."""
    caches = [tmp_path / "one", tmp_path / "two"]
    for cache in caches:
        open_dataset(pictures(cache=str(cache)))
    assert not names(caches[0]) & names(caches[1])
    config = pictures()
    guesses = [source_of(config).stamp(), store._content_digest(source_of(config).splits())]
    for guess in guesses:
        identity = json.dumps([config.name, asdict(data_facts(config)), guess]).encode()
        for cache in caches:
            assert not any(sha256(identity).hexdigest().startswith(n[:8]) for n in names(cache))


def test_runs_share_the_key_and_the_copy(pictures: Callable[..., DataConfig]) -> None:
    config = pictures()
    open_dataset(config)
    cache = Cache.open(config)
    key = cache.path / KEY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(cache.key) == 32
    assert Cache.open(config).key == cache.key
    before = names(cache.path)
    open_dataset(config)
    assert names(cache.path) == before
    assert len(before) == 1


def _open_together(config: DataConfig, gate: Any, keys: Any) -> None:
    gate.wait()
    keys.put(Cache.open(config).key)


def test_processes_that_find_no_key_draw_one(pictures: Callable[..., DataConfig]) -> None:
    context = multiprocessing.get_context("fork")
    gate, keys = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_open_together, args=(pictures(), gate, keys)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = {keys.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1


def test_a_key_appears_whole_or_not_at_all(
    pictures: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers wait for no lock: what they find must be the key that stays."""
    config, seen = pictures(), []
    write = LocalFolder.write

    def watched(self: LocalFolder, name: str, data: bytes) -> None:
        seen.append(sorted(p.name for p in self.path.iterdir()))
        write(self, name, data)

    monkeypatch.setattr(LocalFolder, "write", watched)
    key = Cache.open(config).key
    assert seen == [[f"{KEY}.lock"]]
    monkeypatch.undo()
    (Path(config.cache or "") / KEY).write_bytes(key.hex().encode()[:10])
    with pytest.raises(DataError, match=r"key is damaged: remove it"):
        Cache.open(config)


@pytest.mark.parametrize("mode", [0o750, 0o711, 0o701, 0o755])
def test_a_cache_that_others_may_enter_is_refused(
    pictures: Callable[..., DataConfig], mode: int
) -> None:
    config = pictures()
    cache = Path(config.cache or "")
    open_dataset(config)
    cache.chmod(mode)
    with pytest.raises(DataError, match=rf"mode 0{mode:o}.*chmod 700 {cache}.*set data\.cache"):
        open_dataset(config)
    cache.chmod(0o700)
    open_dataset(config)


def test_a_cache_in_a_folder_that_everybody_may_rename_is_refused(
    pictures: Callable[..., DataConfig], tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    config = pictures(cache=str(tmp_path / "shared/cache"))
    with pytest.raises(DataError, match=r"everybody may rename.*chmod \+t"):
        open_dataset(config)
    assert not names(tmp_path / "shared/cache")


def test_a_run_whose_cache_is_open_to_others_is_not_started(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    config = make_config(data={"cache": str(tmp_path / "open")})
    with pytest.raises(DataError, match="chmod 700"):
        start(config)
    assert not folder(config).exists()
    assert list((tmp_path / "open").iterdir()) == []


def replace_in_place(file: Path) -> None:
    draw(file, 99)


def replace_by_rename(file: Path) -> None:
    draw(file.with_name("new"), 99)
    file.with_name("new").replace(file)


def map_and_write(file: Path) -> None:
    """Without a change of size, and with the old time put back."""
    with file.open("r+b") as opened:
        opened.seek(-16, os.SEEK_END)
        opened.write(bytes([99] * 16))
    os.utime(file, (OLD, OLD))


@pytest.mark.parametrize("change", [replace_in_place, replace_by_rename, map_and_write])
def test_a_file_that_was_replaced_with_its_time_and_size_kept_is_read_again(
    pictures: Callable[..., DataConfig], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    config = pictures()
    assert shade_of(config) == 10
    file = tmp_path / "images/train/a/0.ppm"
    before = file.stat()
    change(file)
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert shade_of(config) == 99


@pytest.mark.parametrize("level", ["", "train", "train/a", "train/a/0.ppm"])
def test_a_link_that_points_elsewhere_is_followed_again(
    pictures: Callable[..., DataConfig], tmp_path: Path, level: str
) -> None:
    """Both targets have files of equal names, sizes and times."""
    place = tmp_path / "images" / level
    targets = [fill(tmp_path / name, shade) / level for name, shade in (("x", 30), ("y", 60))]
    place.rename(tmp_path / "aside")
    for target, shade in zip(targets, (30, 60), strict=True):
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        assert shade_of(pictures()) == shade


def test_the_same_relative_root_in_another_folder_is_other_data(
    pictures: Callable[..., DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shade in (("A", 40), ("B", 80)):
        fill(tmp_path / name / "images", shade)
    for name, shade in (("A", 40), ("B", 80), ("A", 40)):
        monkeypatch.chdir(tmp_path / name)
        assert shade_of(pictures(root="images")) == shade


def test_files_that_swapped_their_names_are_read_again(
    pictures: Callable[..., DataConfig], tmp_path: Path
) -> None:
    one, other = (tmp_path / f"images/train/{name}/0.ppm" for name in "ab")
    draw(other, 200)
    assert shade_of(pictures()) == 10
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    assert shade_of(pictures()) == 200


def test_files_that_change_while_they_are_read_leave_no_copy(
    pictures: Callable[..., DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be found again under the old files' name."""
    load = ImageFolder.splits

    def raced(source: ImageFolder) -> Splits:
        draw(tmp_path / "images/train/a/0.ppm", 77)
        return load(source)

    config = pictures()
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "splits", raced)
        with pytest.raises(DataError, match="changed while they were read"):
            open_dataset(config)
    assert not names(Path(config.cache or ""))
    assert shade_of(config) == 77


def test_a_change_within_one_tick_of_the_clock_is_waited_for(
    pictures: Callable[..., DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is changed right after it was looked at gets another time of change."""
    config, waited = pictures(), list[float]()
    newest = max(file.stat().st_ctime_ns for file in (tmp_path / "images").rglob("*.ppm"))
    monkeypatch.setattr(stamp_module.time, "time_ns", lambda: newest + 1_000_000)
    monkeypatch.setattr(stamp_module.time, "sleep", waited.append)
    source_of(config).stamp()
    assert waited == [pytest.approx(0.019, abs=0.001)]


SECRETS = ("doe", "Jane")


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def broken_run(make_config: MakeConfig, tmp_path: Path) -> Any:
    """A run on pictures of which one is none; its name says whose it is."""
    root = fill(tmp_path / "images", 10)
    (root / "train/b/Jane doe.png").write_bytes(b"nothing")
    return make_config(
        data={
            "name": "image_folder",
            "root": str(root),
            "num_examples": 3,
            "num_classes": 2,
            "image_size": 8,
            "channels": 1,
            "expected_batch_size": 1,
        },
        privacy={"delta": 1e-2, "accountant": "rdp"},
        augment={"views": 1},
    )


def test_a_terminal_gets_the_name_of_a_broken_file(make_config: MakeConfig, tmp_path: Path) -> None:
    """Also where the output is piped: a pipe is no sign that others read it."""
    with pytest.raises(DataError, match=r"images/train/b/Jane doe\.png is no readable image"):
        start(broken_run(make_config, tmp_path))
    assert not job.in_job()


@pytest.mark.usefixtures("in_job")
def test_a_job_gets_an_index_and_the_private_part_the_name(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = broken_run(make_config, tmp_path)
    with pytest.raises(RunError, match=r"image 2 of train/") as found:
        run_training(config)
    chain: list[BaseException | None] = [found.value]
    while chain[-1] is not None and not chain[-1].__suppress_context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    for error in chain:
        assert not any(secret in str(error) for secret in SECRETS)
    cache = Path(config.data.cache)
    assert "Jane doe.png" in (cache / job.ERROR).read_text()  # no run was laid out yet
    assert stat.S_IMODE((cache / job.ERROR).stat().st_mode) == 0o600
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "run_key").touch()
    told = job.for_log(DataError("Jane", shared="image 2"), LocalFolder(private))
    assert str(told) == f"image 2. {job.ERROR} in {private} says which"
    assert (private / job.ERROR).read_text() == "Jane\n"


def test_the_command_names_no_file_in_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: Any) -> None:
        raise DataError("/data/Jane doe.png is broken", shared="image 2 is broken")

    monkeypatch.setattr(cli, "app", fails)
    for variable, expected in ((None, "Jane"), (job.IN_JOB, "image 2")):
        if variable is not None:
            monkeypatch.setenv(variable, "1")
        with pytest.raises(SystemExit):
            cli.main()
        assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("in_job")
def test_a_jobs_workers_know_that_they_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_environment()[job.IN_JOB] == "1"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert job.IN_JOB not in training_environment()


def test_what_workers_find_wrong_is_shared_without_names(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = broken_run(make_config, tmp_path)
    with pytest.raises(DataError) as found:
        open_same_dataset(config.data, Alone("node 10.0.0.7"))
    assert "Jane doe.png" in str(found.value)
    assert found.value.shared.startswith("On node 10.0.0.7: data.root: image 2 of train/")
    assert not any(secret in found.value.shared for secret in SECRETS)


def test_no_error_of_the_data_shares_a_place(
    pictures: Callable[..., DataConfig], tmp_path: Path
) -> None:
    """Whatever is wrong with the files, the shared message has no part of their paths."""
    train = tmp_path / "images/train"

    def refuse(config: DataConfig) -> None:
        with pytest.raises(DpRayError) as found:
            open_dataset(config)
        shared = found.value.shared
        assert str(tmp_path) not in shared
        assert not any(secret in shared for secret in SECRETS)
        assert str(found.value) != shared

    (train / "b/Jane").symlink_to(train / "a")  # reached twice
    refuse(pictures())
    (train / "b/Jane").unlink()
    os.mkfifo(train / "b/Jane")
    refuse(pictures())
    (train / "b/Jane").unlink()
    (train / "b/Jane").symlink_to(tmp_path / "nowhere")
    refuse(pictures())
    (train / "b/Jane").unlink()
    (train / "Jane").mkdir()  # a class without an example
    refuse(pictures())
    (train / "Jane").rmdir()
    refuse(
        pictures(
            name="cifar10", num_examples=None, num_classes=None, image_size=None, channels=None
        )
    )
    refuse(pictures(root=str(tmp_path / "Jane")))
    refuse(pictures(cache=str(train / "a/0.ppm/Jane")))
    (tmp_path / "Jane").mkdir(mode=0o755)
    refuse(pictures(cache=str(tmp_path / "Jane")))
    config = pictures()
    open_dataset(config)
    [meta] = Path(config.cache or "").rglob("meta.json")
    meta.write_text("Jane")
    refuse(config)


def test_threads_of_one_process_decode_once(pictures: Callable[..., DataConfig]) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_dataset(pictures()).digest))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(names(Path(pictures().cache or ""))) == 1


def test_a_place_of_the_data_is_not_shared() -> None:
    error = ConfigError("data.root", "/data/Jane", "no such folder as /data/Jane", "Give another")
    assert "Jane" in str(error)
    assert "Jane" not in error.shared
    other = ConfigError("privacy.delta", 0.9, "too large", "Lower it")
    assert other.shared == str(other)
