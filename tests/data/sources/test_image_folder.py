"""An image folder: what is an example, what is skipped and named, which folders are a class."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from helpers.support import MakeConfig
from PIL import Image
from rich.console import Console

from dp_ray.api.dispatch import RunWatch
from dp_ray.api.train import run_training
from dp_ray.artifacts.run_directory import RunDirectory, deciding_fields
from dp_ray.config.data import DataConfig
from dp_ray.config.files import parse_config
from dp_ray.data.class_names import match_classes
from dp_ray.data.files import skipped_line
from dp_ray.data.pictures import SUFFIXES
from dp_ray.data.sources.image_folder import HIDDEN, OUTSIDE, SUFFIX, ImageFolder, scan, scan_splits
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import ConfigError, DataError
from dp_ray.reporting.run_progress import TerminalProgress
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.local import NullObserver, train_in_process
from dp_ray.training.preparation import make_plan
from dp_ray.training.task import Task

SHADES = {"a": 10, "b": 200}
NFC, NFD = (unicodedata.normalize(form, "thé") for form in ("NFC", "NFD"))


def draw(path: Path, shade: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path, "PNG")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two shades, two pictures each in train/, one in test/."""
    for name, shade in SHADES.items():
        for file in ("train/{}/0.png", "train/{}/1.png", "test/{}/0.png"):
            draw(tmp_path / "images" / file.format(name), shade)
    return tmp_path / "images"


Configure = Callable[..., DataConfig]


@pytest.fixture
def configure(root: Path) -> Configure:
    def make(**given: Any) -> DataConfig:
        values: dict[str, Any] = {
            "name": "image_folder",
            "root": str(root),
            "expected_batch_size": 1,
            "num_examples": 4,
            "num_classes": 2,
            "image_size": 4,
            "channels": 1,
            "cache": str(root.parent / "cache"),
        }
        return DataConfig(**{**values, **given})

    return make


def shades(dataset: Dataset) -> list[tuple[int, int]]:
    """(label, shade) of the training examples, then of the test examples."""
    splits = (dataset.train, dataset.test)
    return [
        (int(label), int(image.mean()))
        for images, labels in (split.read(np.arange(len(split))) for split in splits)
        for image, label in zip(images, labels, strict=True)
    ]


PLAIN = [(0, 10), (0, 10), (1, 200), (1, 200), (0, 10), (1, 200)]

# What is an example


def test_the_order_of_plain_folders_is_that_of_torchvision(root: Path) -> None:
    """It decides who is drawn: examples have ids in this order."""
    names = ["B/z.png", "B/A.png", "a b/10.png", "a b/9.png", "a b/sub/0.png", "a b/sub-2/0.png"]
    names += ["10/x.png", "9/x.png", "é/x.png", "z/deep/er/x.JPG", "z/deep/x.webp", "z/deep0/x.bmp"]
    for name in names:
        draw(root / "train" / name)
    theirs = torchvision.datasets.ImageFolder(str(root / "train"))
    ours = scan(root / "train").classes
    assert list(ours) == theirs.classes
    assert [path for paths in ours.values() for path in paths] == [
        path for path, _ in theirs.samples
    ]


def test_the_order_does_not_depend_on_the_unicode_form(root: Path) -> None:
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("thé", "thz", "the"):
            draw(root / split / unicodedata.normalize(form, name) / "0.png")
    train, test = (list(scan(root / split).classes) for split in ("train", "test"))
    assert train == ["a", "b", "the", "thz", "thé"]
    assert [unicodedata.normalize("NFC", name) for name in test] == train


def test_every_suffix_is_read_whatever_its_case(root: Path, configure: Configure) -> None:
    picture = (root / "train/b/0.png").read_bytes()
    for suffix in (*SUFFIXES, ".JPG", ".Jfif"):
        (root / f"train/b/x{suffix}").write_bytes(picture)
    dataset = open_dataset(configure(num_examples=6 + len(SUFFIXES)))
    assert dataset.skipped == {}
    assert {".jfif", ".jpe", ".gif", ".avif"} <= SUFFIXES


LEFT_BEHIND = [
    ".ipynb_checkpoints/0-checkpoint.png",
    ".DS_Store",
    "._0.png",
    ".hidden.png",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
    "Icon\r",
    "$RECYCLE.BIN/0.png",
    "lost+found/0.png",
]


@pytest.mark.parametrize("place", ["train", "train/a", "train/a/deep", "test"])
@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_a_system_leaves_is_no_class_and_no_example(
    name: str, place: str, root: Path, configure: Configure
) -> None:
    draw(root / place / name, 77)
    found = scan(root / place.partition("/")[0])
    assert list(found.classes) == ["a", "b"]
    assert [reason for reason, _ in found.skipped] == [HIDDEN]
    dataset = open_dataset(configure())
    assert shades(dataset) == PLAIN
    assert dataset.skipped == {HIDDEN: 1}
    assert dataset.notes[0].classes == ["a", "b"]


def test_each_entry_that_is_no_example_is_counted_and_named(
    root: Path, configure: Configure
) -> None:
    draw(root / "train/labels.png")
    draw(root / "train/a/.checkpoints/x.png")
    for name in ("train/a/0.heic", "train/b/notes.txt", "test/b/without_suffix", "train/a/0.svg"):
        draw(root / name)
    (root / "train/a/0.PNG.part").touch()
    config = configure()
    dataset = open_dataset(config)
    assert shades(dataset) == PLAIN
    assert dataset.skipped == {HIDDEN: 1, SUFFIX: 5, OUTSIDE: 1}
    assert dataset.notes[1].skipped == {SUFFIX: 1}
    again = open_dataset(config)  # from the decoded copy
    assert again.skipped == dataset.skipped
    found = [entry for split in scan_splits(config) for entry in split.skipped]
    assert {(reason, str(Path(path).relative_to(root))) for reason, path in found} == {
        (OUTSIDE, "train/labels.png"),
        (HIDDEN, "train/a/.checkpoints"),
        (SUFFIX, "train/a/0.heic"),
        (SUFFIX, "train/a/0.svg"),
        (SUFFIX, "train/a/0.PNG.part"),
        (SUFFIX, "train/b/notes.txt"),
        (SUFFIX, "test/b/without_suffix"),
    }


def test_what_a_system_changes_leaves_the_decoded_copy_as_it_is(
    root: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finder writes .DS_Store whenever it shows a folder; an editor's lock is a link to nowhere."""
    (root / "train/a/.DS_Store").write_bytes(b"1")
    open_dataset(configure())
    monkeypatch.setattr(ImageFolder, "splits", lambda _: pytest.fail("decoded again"))
    (root / "train/a/.DS_Store").write_bytes(b"other")
    assert open_dataset(configure()).skipped == {HIDDEN: 1}
    monkeypatch.undo()
    (root / "train/a/.#0.png").symlink_to("me@host.1")
    os.mkfifo(root / "test/.pipe")
    (root / "train/.again").symlink_to(root / "train/a")
    assert open_dataset(configure()).skipped == {HIDDEN: 4}


def test_a_wrong_number_names_what_was_skipped(root: Path, configure: Configure) -> None:
    draw(root / "train/a/0.heic")
    with pytest.raises(ConfigError, match=r"4 training examples; skipped in train/: 1 \(see"):
        open_dataset(configure(num_examples=5))
    draw(root / "train/.net/0.png")
    draw(root / "test/.net/0.png")
    with pytest.raises(ConfigError, match=r"2 class folders; skipped beside them: 1 \(see"):
        open_dataset(configure(num_classes=3))


def test_a_class_without_images_is_named(root: Path, configure: Configure) -> None:
    (root / "test/a/0.png").rename(root / "test/a/0.heic")
    with pytest.raises(DataError, match=r"test/a holds no image.*\(other entries: 1\).*\.jpeg"):
        open_dataset(configure())


def test_splits_of_other_names_are_shown(root: Path, configure: Configure) -> None:
    (root / "test").rename(root / "Test")
    with pytest.raises(DataError, match=r"expected test/<class>/<image>.*'Test', 'train'") as found:
        open_dataset(configure())
    assert "Test" not in found.value.shared


# Transparency in a run


def test_another_background_is_another_copy(root: Path, configure: Configure) -> None:
    clear = Image.new("LA", (4, 4), (0, 0))
    clear.save(root / "train/a/0.png")
    found = [
        int(open_dataset(configure(background=ground)).train.images[0].mean())
        for ground in ("white", "black", [30, 30, 30], "white")
    ]
    assert found == [255, 0, 30, 255]
    assert open_dataset(configure()).notes[0].transparent == 1


def test_the_background_decides_a_run(make_config: MakeConfig) -> None:
    """So keys depend on it, and a run is not resumed with another one."""
    facts = {"num_examples": 4, "num_classes": 2, "image_size": 8, "channels": 3}
    folder = {"name": "image_folder", "root": "images", "expected_batch_size": 2, **facts}
    assert deciding_fields(make_config(data=folder))["data.background"] == "white"
    black = deciding_fields(make_config(data={**folder, "background": "black"}))
    assert black["data.background"] == "black"
    assert "data.background" not in deciding_fields(make_config())  # digits have none


@pytest.mark.parametrize("value", ["grey", [1, 2], [1, 2, 256], [0.5, 0, 0], 255, None])
def test_a_background_that_is_no_colour_is_refused(value: Any, make_config: MakeConfig) -> None:
    values = make_config().dump()
    values["data"]["background"] = value
    with pytest.raises(ConfigError, match=r"^data\.background"):
        parse_config(values)


# Names of classes


def test_classes_in_two_unicode_forms_are_the_same(root: Path, configure: Configure) -> None:
    """thz lies between the forms of thé, so numbers by plain order would differ."""
    for name, shade in ((NFC, 50), ("thz", 90)):
        draw(root / "train" / name / "0.png", shade)
    for name, shade in ((NFD, 50), ("thz", 90)):
        draw(root / "test" / name / "0.png", shade)
    found = shades(open_dataset(configure(num_classes=4, num_examples=6)))
    assert dict(found) == {0: 10, 1: 200, 2: 90, 3: 50}
    assert len(set(found)) == 4


MISMATCHES: dict[str, tuple[list[str], list[str], str]] = {
    "case": (["Cats"], ["cats"], r"train/'Cats' and test/'cats' differ in case"),
    "blanks": (["cats "], ["cats"], r"train/'cats ' and test/'cats' differ in blanks"),
    "inner blanks": (["c  ats"], ["c ats"], r"differ in blanks"),
    "no-break space": (["c\xa0a"], ["c a"], r"'c\\xa0a' and test/'c a' differ in blanks"),
    "invisible": (["cat\u200bs"], ["cats"], r"'cat\\u200bs'.*characters that look alike"),
    "full width": (["ｃats"], ["cats"], r"'\\uff43ats'.*characters that look alike"),
    "Cyrillic": (["c\u0430ts"], ["cats"], r"'c\\u0430ts'\).*only in test/: 'cats'"),
    "forms and case": ([NFC], [NFD.upper()], r"'th\\xe9' and test/'THE\\u0301'"),
    "other": (["cats", "dogs"], ["cats", "birds"], r"only in train/: 'dogs'; .*test/: 'birds'"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_the_difference_of_names_is_visible(name: str) -> None:
    train, test, message = MISMATCHES[name]
    with pytest.raises(DataError, match=message) as found:
        match_classes("here", train, test)
    for folder in {*train, *test} - {"cats"}:
        assert folder.strip() not in found.value.shared


def test_names_in_both_forms_in_one_split_are_refused() -> None:
    with pytest.raises(DataError, match=r"train/'the\\u0301' and train/'th\\xe9' differ only in"):
        match_classes("here", [NFD, NFC], [NFC])


def test_many_names_are_cut_short() -> None:
    with pytest.raises(DataError) as found:
        match_classes("here", [f"a{i}" for i in range(500)], [f"b{i}" for i in range(500)])
    assert "and 490 more" in str(found.value)
    assert len(str(found.value)) < 600


def test_cases_of_one_letter_are_two_classes() -> None:
    assert match_classes("here", ["A", "a"], ["a", "A"]) == [("A", "A"), ("a", "a")]


# What is said


@pytest.fixture
def folder_run(root: Path, make_config: MakeConfig) -> Callable[..., Any]:
    def make(**sections: Any) -> Any:
        data = {"name": "image_folder", "root": str(root), "num_examples": 4, "num_classes": 2}
        data |= {"image_size": 4, "channels": 1, "expected_batch_size": 2}
        return make_config(
            data=data,
            privacy={"delta": 1e-2, "accountant": "rdp", "steps": 2},
            model={"name": "gn_cnn"},
            augment={"views": 1},
            **sections,
        )

    return make


LINE = (
    "data.root: 2 entries skipped: 1 hidden or left by a system, 1 with a suffix that is not read"
)


def test_train_and_evaluate_say_what_was_skipped(
    root: Path, folder_run: Callable[..., Any]
) -> None:
    draw(root / "train/a/.DS_Store")
    draw(root / "test/a/Jane Doe.heic")
    config, text = folder_run(), io.StringIO()
    result = run_training(
        config, callbacks=[TerminalProgress(Console(file=text, width=500))]
    ).dump()
    lines = [line for line in text.getvalue().splitlines() if "skipped" in line]
    assert lines == [f"{LINE}; dp-ray data names them"]
    assert evaluate_run(result["path"], []).figures["skipped"] == {SUFFIX: 1}


def test_nothing_is_said_where_nothing_was_skipped(folder_run: Callable[..., Any]) -> None:
    text = io.StringIO()
    run_training(
        folder_run(), resume=False, callbacks=[TerminalProgress(Console(file=text, width=500))]
    )
    assert "skipped" not in text.getvalue()
    assert skipped_line({}) is None


def test_a_driver_without_the_data_says_what_its_workers_skipped(
    root: Path, folder_run: Callable[..., Any]
) -> None:
    draw(root / "train/a/.DS_Store")
    draw(root / "test/a/Jane Doe.heic")
    config = folder_run()
    plan, run = make_plan(config), RunDirectory.of(config)
    run.create(config, plan)
    watch = RunWatch(run, plan, config)
    assert not list(watch.news(at_once=True))
    cluster = config.cluster.model_copy(update={"address": "head:6379"})
    elsewhere = config.model_copy(update={"cluster": cluster})
    train_in_process(Task(elsewhere, plan, run, "attempt"), NullObserver())
    events = [event for _ in range(3) for event in watch.news(at_once=True)]
    lines = [arguments[0] for method, arguments, _ in events if method == "on_message"]
    assert [line for line in lines if "skipped" in line] == [f"{LINE}; dp-ray data names them"]
