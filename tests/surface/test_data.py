"""``dp-ray data``: what it reports and draws, where that lies, and what a log gets of it."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.support import MakeConfig
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.api.data import REPORT, SHEET, look_at_data
from dp_ray.config.data import AugmentConfig
from dp_ray.data.facts import DataFacts
from dp_ray.data.splits import Notes
from dp_ray.data.store import Dataset, StoredSplit
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError, DataError, DpRayError, StorageError
from dp_ray.reporting.contact_sheet import draw_contact_sheet

RED, GREEN, BLUE = (200, 30, 30), (30, 180, 30), (30, 30, 220)


def save(colour: tuple[int, ...], path: Path, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def look(make_config: MakeConfig, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Looks at an image folder of two classes; returns the report and the lines."""
    root = tmp_path / "images"
    for number in range(3):
        save(RED, root / f"train/Jane Doe/{number}.jpg", (10 + number, 30))
    save(GREEN, root / "train/$x_1$/0.png")
    save(RED, root / "test/Jane Doe/0.png")
    save(BLUE, root / "test/$x_1$/0.png")
    (root / "train/Jane Doe/.DS_Store").touch()
    (root / "train/Jane Doe/list\x1b[2J.csv").touch()
    (root / "val").mkdir()

    def run(out: str | None = None, **data: Any) -> tuple[dict[str, Any], str]:
        facts = {"num_examples": 4, "num_classes": 2, "image_size": 8, "channels": 3}
        config = make_config(
            data={"name": "image_folder", "root": str(root), "expected_batch_size": 2, **facts}
            | data,
            augment={"views": 4, "shift": 1},
        )
        lines: list[str] = []
        found = look_at_data(config, out, lines.append)
        return found, "\n".join(lines)

    return run


def sheet_of(found: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(found["contact_sheet"]).convert("RGB"))


def pixels_of(sheet: NDArray[np.uint8], colour: tuple[int, ...]) -> int:
    return int((np.abs(sheet.astype(int) - colour).max(axis=2) <= 4).sum())


def test_it_reports_what_a_run_would_read(look: Callable[..., tuple[dict[str, Any], str]]) -> None:
    found, text = look()
    assert found["train"]["examples"] == 4
    assert found["train"]["kinds"] == {"JPEG RGB": 3, "PNG RGB": 1}
    assert (found["train"]["smallest"], found["train"]["largest"]) == ([10, 10], [20, 30])
    assert found["classes"] == [
        {"label": 0, "name": "$x_1$", "train": 1, "test": 1},
        {"label": 1, "name": "Jane Doe", "train": 3, "test": 1},
    ]
    assert [Path(entry["path"]).name for entry in found["skipped"]] == [
        ".DS_Store",
        "list\x1b[2J.csv",
    ]
    for words in (
        "do not publish",
        "image_folder: images of 3 × 8 × 8 in 2 classes",
        "train         4 examples",
        "10 to 20 pixels wide and 10 to 30 high",
        "3 JPEG RGB, 1 PNG RGB",
        "1 hidden or left by a system:\n              train/Jane Doe/.DS_Store",
        "train/Jane Doe/list\\x1b[2J.csv",
        "not read      val/: only train/ and test/ are",
        "    1  Jane Doe          3          1",
        "keep secret",
    ):
        assert words in text
    assert "\x1b" not in text


def test_its_files_are_the_owners_alone(
    look: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    found, _ = look()
    folder = Path(found["contact_sheet"]).parent
    assert folder == tmp_path / "runs/run-data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {SHEET, REPORT, ".gitignore"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert (folder / ".gitignore").read_text() == "*\n"
    assert "train/Jane Doe/.DS_Store" in Path(found["report"]).read_text()
    assert look()[0] == found  # again, in the same place


def test_a_folder_of_the_data_or_of_the_user_is_refused(
    look: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    """Its files would be examples of the next run, or hidden from git by a .gitignore of ours."""
    inside = tmp_path / "images/train/Jane Doe"
    inside.chmod(0o700)
    before = sorted(inside.iterdir())
    with pytest.raises(ConfigError, match=r"--out.*lies in data.root.*outside of it"):
        look(str(inside))
    assert sorted(inside.iterdir()) == before
    project = tmp_path / "project"
    project.mkdir(mode=0o700)
    (project / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"--out.*holds other files \(notes.txt\)"):
        look(str(project))
    assert [path.name for path in project.iterdir()] == ["notes.txt"]


def test_a_folder_that_others_can_read_is_refused(
    look: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(StorageError, match=r"mode 0755.*another --out"):
        look(str(tmp_path / "open"))
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written.*another --out"):
        look(str(tmp_path / "file/deep"))
    found, _ = look(str(tmp_path / "deep/own"))
    assert stat.S_IMODE((tmp_path / "deep/own").stat().st_mode) == 0o700
    assert Path(found["contact_sheet"]).parent == tmp_path / "deep/own"


def test_what_a_run_refuses_is_refused_after_what_was_skipped(
    look: Callable[..., tuple[dict[str, Any], str]], make_config: MakeConfig, tmp_path: Path
) -> None:
    for field, value in (("num_examples", 5), ("num_classes", 3)):
        with pytest.raises(ConfigError, match=rf"^data\.{field} = {value}"):
            look(**{field: value})
    lines: list[str] = []
    config = make_config(
        data={
            "name": "image_folder",
            "root": str(tmp_path / "images"),
            "num_examples": 5,
            "num_classes": 2,
            "image_size": 8,
            "channels": 3,
            "expected_batch_size": 2,
        }
    )
    with pytest.raises(ConfigError):
        look_at_data(config, None, lines.append)
    assert ".DS_Store" in lines[0]


def test_a_log_gets_counts_of_skipped_entries_and_no_more(
    look: Callable[..., tuple[dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    found, text = look()
    assert set(found) == {"report", "contact_sheet"}
    assert text.splitlines()[0].startswith("data.root: 2 entries skipped: 1 hidden")
    for private in ("Jane", "$x_1$", "DS_Store", "JPEG", "4 examples", "val"):
        assert private not in text
    assert "Jane Doe" in Path(found["report"]).read_text()
    with pytest.raises(ConfigError, match=r"^--out = 'here'.*absolute path"):
        look("here")
    (tmp_path / "images/train/Jane Doe/broken.png").touch()
    with pytest.raises(DpRayError) as caught:
        look(num_examples=5)
    assert "Jane" not in str(caught.value)
    assert "Jane Doe/broken.png" in (tmp_path / "runs/run-data/error.txt").read_text()


@pytest.mark.parametrize("name", ["digits", "fake", "own"])
def test_it_works_for_every_source(
    name: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: dict[str, Any] = {"name": name}
    if name == "fake":
        data |= {"num_examples": 30, "num_classes": 3, "image_size": 4, "channels": 3}
    if name == "own":
        (tmp_path / "own_to_look_at.py").write_text(
            "import numpy as np\n\n\ndef load(config):\n"
            "    train = np.zeros((4, 1, 4, 4), np.uint8), np.array([0, 0, 2, 2])\n"
            "    return train, (np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, int))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        data |= {"name": "own_to_look_at:load", "num_examples": 4, "num_classes": 3}
        data |= {"image_size": 4, "channels": 1, "expected_batch_size": 2}
    config = make_config(data=data, privacy={"delta": 1e-3})
    lines: list[str] = []
    found = look_at_data(config, str(tmp_path / "out"), lines.append)
    assert sum(entry["train"] for entry in found["classes"]) == found["train"]["examples"]
    assert found["skipped"] == []
    assert found["classes"][2]["name"] == "2"
    assert sheet_of(found).shape[1] >= 640


def test_names_that_are_no_text_are_shown_all_the_same(
    look: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    """Neither UTF-8 nor a terminal takes them as they are."""
    for split in ("train", "test"):
        (tmp_path / "images" / split / "$x_1$").rename(tmp_path / "images" / split / "\udcff")
        (tmp_path / "images" / split / "\udcff" / "\udcfe.txt").touch()
    found, text = look()
    json.dumps(found, ensure_ascii=False).encode()
    assert "train/\\udcff/\\udcfe.txt" in text
    assert found["classes"][1]["name"] == "\\xff"


def test_a_loader_that_fails_is_refused_as_in_a_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels_to_look_at.py").write_text(
        "import numpy as np\n\n\ndef load(config):\n"
        "    images = np.zeros((4, 1, 4, 4), np.uint8)\n"
        "    return (images, np.array([0, 1, 2, 9])), (images, np.zeros(4, int))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = {"name": "labels_to_look_at:load", "num_examples": 4, "num_classes": 3}
    data |= {"image_size": 4, "channels": 1, "expected_batch_size": 2}
    config = make_config(data=data, privacy={"delta": 1e-2})
    with pytest.raises(ConfigError, match=r"^data\.num_classes = 3: labels reach from 0 to 9"):
        look_at_data(config, None, lambda _: None)
    bigger = config.data.model_copy(update={"image_size": 5})
    config = config.model_copy(update={"data": bigger})
    with pytest.raises(DataError, match=r"data\.channels and data\.image_size say"):
        look_at_data(config, None, lambda _: None)


def test_the_command(make_config: MakeConfig, tmp_path: Path) -> None:
    values: dict[str, Any] = make_config().dump()
    del values["name"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    command = ["data", str(tmp_path / "small.yaml"), "--set", "augment.views=2", "--json"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["train"]["examples"] == 1437
    assert Path(found["contact_sheet"]) == tmp_path / "runs/small-data" / SHEET
    assert not (tmp_path / "runs/small").exists()  # nothing was started


# The sheet


def dataset(num_classes: int, side: int, channels: int = 3, each: int = 5) -> Dataset:
    """Grey images, each of one shade, of ``each`` examples a class."""
    labels = np.arange(num_classes * each, dtype=np.int64) % num_classes
    images = np.full((len(labels), channels, side, side), 90, dtype=np.uint8)
    facts = DataFacts(
        len(labels), num_classes, side, channels, (0.5,) * channels, (0.2,) * channels
    )
    split = StoredSplit(images, labels)
    return Dataset(split, split, facts, "", "", (Notes(), Notes()))


def drawn(data: Dataset, **augment: Any) -> NDArray[np.uint8]:
    sheet = draw_contact_sheet(data, AugmentConfig(**augment))
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))


def test_the_sheet_shows_each_class_of_both_splits(
    look: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    sheet = sheet_of(look()[0])
    red, green, blue = (pixels_of(sheet, colour) for colour in (RED, GREEN, BLUE))
    tile = 80 * 80
    assert green >= tile  # as decoded; a shift may bring in black
    assert 5 * tile > blue >= tile * 0.99  # in test/, without views
    assert red > green + blue


@pytest.mark.parametrize(
    ("num_classes", "side", "views"),
    [(2, 8, 1), (10, 28, 4), (200, 32, 8), (3, 224, 40), (2, 1, 16)],
)
def test_the_sheet_has_a_size_that_can_be_looked_at(
    num_classes: int, side: int, views: int
) -> None:
    data = dataset(num_classes, side)
    assert all(200 <= length <= 2600 for length in drawn(data, views=views).shape[:2])


def test_views_are_drawn_as_they_are_trained_on() -> None:
    """Without transforms they are the images; with some they differ."""
    data = dataset(2, 8)
    tile = 80 * 80
    tiles = pixels_of(drawn(data, views=4), (90, 90, 90)) / tile
    moved = pixels_of(drawn(data, views=4, brightness=1.0), (90, 90, 90)) / tile
    assert round(tiles) == 2 * 5 * (1 + 4) + 2 * 5  # with those of the test split
    assert 20 <= moved <= 25


def test_denormalize_is_the_inverse_of_normalize() -> None:
    facts = DataFacts(1, 2, 16, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    import torch

    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    maker = ViewMaker(AugmentConfig(), facts, torch.device("cpu"))
    assert torch.equal(maker.denormalize(maker.normalize(images)), images)
    assert maker.denormalize(torch.full((1, 3, 2, 2), 99.0)).unique().tolist() == [255]


def test_names_that_the_font_lacks_are_no_error() -> None:
    data = dataset(3, 8)
    data.notes[0].classes.extend(["日本", "a\x1b[2J", "$\\frac{$"])
    assert drawn(data).size
