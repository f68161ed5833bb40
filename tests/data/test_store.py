"""Data sets: their public facts, the decoded copy that workers share, and clear refusals."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data import refusal
from numpy.lib.format import open_memmap
from PIL import Image

from dp_ray.config.data import DataConfig
from dp_ray.data.facts import data_facts
from dp_ray.data.source import Source
from dp_ray.data.sources.digits import Digits
from dp_ray.data.sources.image_folder import ImageFolder
from dp_ray.data.sources.registry import source_of
from dp_ray.data.splits import Splits
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import ConfigError, DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each time that a source is opened for decoding."""
    found: list[str] = []
    for kind in (Digits, ImageFolder):

        def counted(source: Source, original: Callable[[Any], Splits] = kind.splits) -> Splits:
            found.append(source.config.name)
            return original(source)

        monkeypatch.setattr(kind, "splits", counted)
    return found


@pytest.fixture
def digits(tmp_path: Path) -> DataConfig:
    return DataConfig(name="digits", expected_batch_size=64, cache=str(tmp_path / "cache"))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; the six training images are of six kinds, in the order of their names."""
    root = tmp_path / "images"
    stripes = Image.new("RGB", (24, 8), GREEN)  # wide: red, green, blue from left to right
    stripes.paste(RED, (0, 0, 8, 8))
    stripes.paste(BLUE, (16, 0, 24, 8))
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([*(0, 0, 0) * 3, *(10, 200, 90)])
    save(plain(RED), root / "train/cats/1_rgb.png")
    save(Image.new("L", (8, 8), 77), root / "train/cats/2_grey.png")
    save(palette, root / "train/cats/3_palette.png")
    save(stripes, root / "train/dogs/4_wide.png")
    save(stripes.transpose(Image.Transpose.TRANSPOSE), root / "train/dogs/5_high.png")
    save(plain((12, 34, 56), (80, 40)), root / "train/dogs/6_large.png")
    save(plain(BLUE), root / "test/cats/7.png")
    save(plain(GREEN), root / "test/dogs/8.png")
    return root


@pytest.fixture
def folder_config(folder: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    def make(**given: Any) -> DataConfig:
        values: dict[str, Any] = {
            "name": "image_folder",
            "root": str(folder),
            "expected_batch_size": 2,
            "num_examples": 6,
            "num_classes": 2,
            "image_size": 8,
            "channels": 3,
            "cache": str(tmp_path / "cache"),
        }
        return DataConfig(**{**values, **given})

    return make


def test_images_are_mapped_into_memory_and_shared(digits: DataConfig) -> None:
    """Two openings are one file: what is written to it shows in both, so no copy was made."""
    first, second = open_dataset(digits), open_dataset(digits)
    for data in (first, second):
        for array in (data.train.images, data.train.labels, data.test.images, data.test.labels):
            assert isinstance(array, np.memmap)
            assert array.mode == "r"
    images = first.train.images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0, 0] = 1
    assert images.filename is not None
    writable = open_memmap(images.filename, mode="r+")
    before = int(writable[5, 0, 3, 3])
    writable[5, 0, 3, 3] = 255 - before
    writable.flush()
    assert int(first.train.images[5, 0, 3, 3]) == 255 - before
    assert int(second.train.images[5, 0, 3, 3]) == 255 - before


def test_second_opening_does_not_decode(digits: DataConfig, decodings: list[str]) -> None:
    first = open_dataset(digits)
    assert decodings == ["digits"]
    second = open_dataset(digits)
    assert decodings == ["digits"]
    assert first.digest == second.digest
    assert np.array_equal(first.train.images, second.train.images)


def test_workers_that_open_together_decode_once(
    folder_config: Callable[..., DataConfig], decodings: list[str]
) -> None:
    opened: list[Dataset] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        opened.append(open_dataset(folder_config()))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(opened) == 4
    assert decodings == ["image_folder"]
    assert len({data.digest for data in opened}) == 1


def test_decoded_copy_is_as_private_as_the_data(digits: DataConfig) -> None:
    """Nobody else may enter the folders, nor read the key of their names."""
    assert digits.cache is not None
    cache = Path(digits.cache)
    open_dataset(digits)
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert len(folders) == 1  # and nothing half-written beside it
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    for file in cache.iterdir():
        assert file.is_dir() or stat.S_IMODE(file.stat().st_mode) == 0o600


def test_image_folder_decodes_every_kind(folder_config: Callable[..., DataConfig]) -> None:
    """RGB, grey and palette alike; shorter side to image_size, then the centre."""
    data = open_dataset(folder_config())
    assert data.train.images.shape == (6, 3, 8, 8)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    colours = [RED, (77, 77, 77), (10, 200, 90), GREEN, GREEN, (12, 34, 56)]
    for image, colour in zip(data.train.images, colours, strict=True):
        assert np.array_equal(image, np.broadcast_to(np.reshape(colour, (3, 1, 1)), (3, 8, 8)))
    assert data.test.images[:, :, 4, 4].tolist() == [list(BLUE), list(GREEN)]


def test_image_folder_as_grey(folder_config: Callable[..., DataConfig]) -> None:
    """ITU-R 601 luma, as Pillow has it."""
    data = open_dataset(folder_config(channels=1))
    assert data.train.images.shape == (6, 1, 8, 8)
    colours = [RED, (77, 77, 77), (10, 200, 90), GREEN, GREEN, (12, 34, 56)]
    for image, (red, green, blue) in zip(data.train.images, colours, strict=True):
        luma = (299 * red + 587 * green + 114 * blue) / 1000
        assert np.abs(image.astype(float) - luma).max() <= 1


def test_image_folder_keeps_rows_and_columns(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    save(Image.fromarray(pixels), folder / "train/cats/1_rgb.png")
    data = open_dataset(folder_config())
    assert np.array_equal(data.train.images[0], pixels.transpose(2, 0, 1))


def test_sixteen_bit_images_are_not_cut_off(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    """They keep their shades (the top 8 bits), or are refused; they do not turn white."""
    deep = np.repeat(np.arange(8, dtype=np.uint16) * 8192 + 4096, 8).reshape(8, 8)
    save(Image.fromarray(deep), folder / "train/cats/1_rgb.png")
    config = folder_config(channels=1)
    try:
        found = open_dataset(config).train.images[0, 0].astype(int)
    except DataError as error:
        assert "1_rgb.png" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert np.abs(found - deep.astype(int) / 257).max() <= 1


def test_a_broken_image_is_named_and_leaves_nothing_behind(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    broken = folder / "train/dogs/4_wide.png"
    whole = broken.read_bytes()
    config = folder_config()
    for content in (b"no image", whole[: len(whole) // 2], b""):
        broken.write_bytes(content)
        message = refusal(DataError, config)
        assert str(broken) in message
        assert "no readable image" in message
        assert config.cache is not None
        assert not [path for path in Path(config.cache).iterdir() if path.is_dir()]
    broken.write_bytes(whole)
    assert len(open_dataset(config).train) == 6


def test_a_changed_source_is_decoded_anew(
    folder: Path, folder_config: Callable[..., DataConfig], decodings: list[str]
) -> None:
    first = open_dataset(folder_config())
    save(plain((1, 2, 3)), folder / "train/dogs/9_new.png")
    second = open_dataset(folder_config(num_examples=7))
    assert len(decodings) == 2
    assert second.train.images[6, :, 0, 0].tolist() == [1, 2, 3]
    assert first.digest != second.digest
    # One replaced, the number kept:
    save(plain((9, 9, 9), (9, 9)), folder / "train/dogs/9_new.png")
    third = open_dataset(folder_config(num_examples=7))
    assert len(decodings) == 3
    assert third.train.images[6, :, 0, 0].tolist() == [9, 9, 9]
    # Another size of the same images is another decoded copy:
    assert open_dataset(folder_config(num_examples=7, image_size=4)).facts.image_size == 4
    assert len(decodings) == 4
    assert len(first.train) == 6  # and the old mapping still stands


def test_wrong_num_examples_is_refused(folder_config: Callable[..., DataConfig]) -> None:
    for number in (5, 7):
        message = refusal(ConfigError, folder_config(num_examples=number))
        assert message.startswith(f"data.num_examples = {number}: ")
        assert "the data has 6 training examples" in message


def test_wrong_num_classes_is_refused(folder_config: Callable[..., DataConfig]) -> None:
    message = refusal(ConfigError, folder_config(num_classes=3))
    assert message.startswith("data.num_classes = 3: ")
    assert "2 class folders" in message


def test_wrong_num_classes_is_refused_from_the_decoded_copy_too(
    folder_config: Callable[..., DataConfig],
) -> None:
    open_dataset(folder_config())
    assert refusal(ConfigError, folder_config(num_classes=3)).startswith("data.num_classes = 3: ")


def test_classes_of_both_splits_must_be_the_same(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    """cats, dogs and dogs, foxes are two classes each, but dogs would be 1 here and 0 there."""
    (folder / "test/cats").rename(folder / "test/foxes")
    with pytest.raises((ConfigError, DataError), match="foxes"):
        open_dataset(folder_config())


def test_a_missing_split_is_refused(folder: Path, folder_config: Callable[..., DataConfig]) -> None:
    (folder / "test").rename(folder / "validation")
    message = refusal(DataError, folder_config())
    assert "expected test/<class>/<image>" in message
    assert str(folder) in message


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    config = DataConfig(name="digitz", expected_batch_size=2, cache=str(tmp_path))
    message = refusal(ConfigError, config)
    assert message.startswith("data.name = 'digitz': no such data set")
    for name in ("digits", "mnist", "cifar10", "image_folder", "fake", "my_module:load"):
        assert name in message
    assert not list(tmp_path.iterdir())


def test_an_image_folder_that_is_missing_is_refused(
    tmp_path: Path, folder_config: Callable[..., DataConfig]
) -> None:
    assert refusal(ConfigError, folder_config(root=None)).startswith("data.root = None: ")
    message = refusal(ConfigError, folder_config(root=str(tmp_path / "nowhere")))
    assert "nowhere" in message
    assert "no such folder" in message
    assert "download" not in message  # which would not help


@pytest.mark.parametrize("field", ["num_examples", "num_classes", "image_size", "channels"])
def test_facts_that_nobody_knows_must_be_given(
    folder_config: Callable[..., DataConfig], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        data_facts(folder_config(**{field: None}))
    assert str(caught.value).startswith(f"data.{field} = None: must be given")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_examples", 1797), ("num_classes", 9), ("image_size", 28), ("channels", 3)],
)
def test_facts_that_contradict_what_is_known_are_refused(field: str, value: int) -> None:
    given: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError) as caught:
        data_facts(DataConfig(name="digits", expected_batch_size=2, **given))
    assert str(caught.value).startswith(f"data.{field} = {value}: digits has ")


@pytest.mark.parametrize("field", ["mean", "std"])
def test_normalisation_of_another_number_of_channels_is_refused(field: str) -> None:
    given: dict[str, Any] = {field: [0.5, 0.5, 0.5]}
    with pytest.raises(ConfigError) as caught:
        data_facts(DataConfig(name="digits", expected_batch_size=2, **given))
    assert str(caught.value).startswith(f"data.{field} = [0.5, 0.5, 0.5]: 1 values are needed")


def test_facts_and_splits_of_a_folder_read_no_image(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    """Data larger than memory: images are decoded piece by piece, when walked through."""
    for path in folder.rglob("*.png"):
        path.write_bytes(b"never opened")
    config = folder_config()
    assert data_facts(config).num_examples == 6
    train, test = source_of(config).splits()
    assert (len(train), len(test)) == (6, 2)
    with pytest.raises(DataError, match="no readable image"):
        next(train.pieces())


def test_a_cache_that_cannot_be_written_is_refused(digits: DataConfig, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file, no folder", encoding="utf-8")
    config = digits.model_copy(update={"cache": str(blocker / "cache")})
    message = refusal(DataError, config)
    assert str(blocker) in message
    assert "set data.cache" in message


def test_nothing_but_the_cache_is_written(
    folder: Path, folder_config: Callable[..., DataConfig]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config = folder_config()
    open_dataset(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert config.cache is not None
    (meta,) = Path(config.cache).rglob("meta.json")
    text = meta.read_text(encoding="utf-8")
    assert set(json.loads(text)) == {
        f"{s}_{n}" for s in ("train", "test") for n in ("digest", "notes")
    }
    assert str(folder) not in text
