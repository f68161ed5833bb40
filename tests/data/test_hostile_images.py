"""Hostile files of images: read as a viewer shows them, or named with the way out; no waiting.

What a data set should look like is tested in ``test_data``.
"""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dp_ray.config.data import DataConfig
from dp_ray.data.sources.image_folder import FolderSplit
from dp_ray.data.store import Dataset, open_dataset
from dp_ray.errors import DataError, DpRayError

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=60)
SIDE = 8

# Four quarters of one colour each: survives JPEG, and shows how it is turned.
QUARTERS = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
QUARTERS[:4, :4], QUARTERS[:4, 4:] = (250, 0, 0), (0, 250, 0)
QUARTERS[4:, :4], QUARTERS[4:, 4:] = (0, 0, 250), (250, 250, 250)
PLAIN = Image.fromarray(QUARTERS)
GREY = np.asarray(PLAIN.convert("L"))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG of RGB pixels that claims a size; ``rows`` are what is compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def turned() -> bytes:
    """Stored on its side, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = PLAIN.transpose(Image.Transpose.ROTATE_90)
    return saved(image, "JPEG", exif=exif, quality=95, subsampling=0)


def animated(kind: str) -> bytes:
    others = [Image.new("RGB", PLAIN.size, (9, 9, 9))]
    return saved(PLAIN, kind, save_all=True, append_images=others, lossless=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with a picture each, in both splits."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            PLAIN.save(root / split / name / "0.png")
    return root


def opened(folder: Path, count: int = 3, **given: Any) -> Dataset:
    values: dict[str, Any] = {
        "name": "image_folder",
        "root": str(folder),
        "expected_batch_size": 1,
        "num_examples": count,
        "num_classes": 2,
        "image_size": SIDE,
        "channels": 3,
        "cache": str(folder.parent / "cache"),
    }
    return open_dataset(DataConfig(**{**values, **given}))


def refused(folder: Path, **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, **given)
    assert not [path for path in (folder.parent / "cache").glob("*") if path.is_dir()]
    return str(caught.value)


PALETTE = PLAIN.quantize(8)
READABLE: dict[str, tuple[str, bytes]] = {
    "PNG": ("x.png", saved(PLAIN, "PNG")),
    "PNG without its end": ("x.png", saved(PLAIN, "PNG")[:-12]),
    "JPEG": ("x.jpg", saved(PLAIN, "JPEG", quality=95, subsampling=0)),
    "another suffix": ("x.jpg", saved(PLAIN, "PNG")),
    "palette": ("x.png", saved(PALETTE, "PNG")),
    "palette with a transparent colour": ("x.png", saved(PALETTE, "PNG", transparency=0)),
    "alpha": ("x.png", saved(PLAIN.convert("RGBA"), "PNG")),
    "CMYK": ("x.tif", saved(PLAIN.convert("CMYK"), "TIFF")),
    "YCbCr": ("x.jpg", saved(PLAIN.convert("YCbCr"), "JPEG", quality=95, subsampling=0)),
    "animated": ("x.webp", animated("WEBP")),
    "several pages": ("x.tif", saved(PLAIN, "TIFF", save_all=True, append_images=[PLAIN])),
    "on its side": ("x.jpg", turned()),
    "a name with a line break": ("a\nb\x1b[2J.png", saved(PLAIN, "PNG")),
    "a name that is no UTF-8": ("a\udcff.png", saved(PLAIN, "PNG")),
    "a long name": ("x" * 250 + ".png", saved(PLAIN, "PNG")),
    "nested": ("deep/in/x.png", saved(PLAIN, "PNG")),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_image_is_read_as_a_viewer_shows_it(name: str, folder: Path) -> None:
    file, data = READABLE[name]
    path = folder / "train/b" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    found = opened(folder).train.images[2].astype(int)
    assert np.abs(found - QUARTERS.transpose(2, 0, 1)).max() <= 12  # JPEG loses a little


def test_greys_of_all_depths_are_the_same_grey(folder: Path) -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    for image, file in ((PLAIN.convert("L"), "1.png"), (deep, "2.png"), (deep, "3.tif")):
        image.save(folder / "train/b" / file)
    for grey in opened(folder, 5, channels=1).train.images:
        assert np.abs(grey[0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_the_smallest_sides_are_read(size: tuple[int, int], folder: Path) -> None:
    Image.new("RGB", size, (7, 8, 9)).save(folder / "train/b/x.png")
    assert opened(folder).train.images[2][:, 3, 3].tolist() == [7, 8, 9]


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "a vector graphic": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "half a PNG": saved(PLAIN, "PNG")[:60],
    "half a JPEG": saved(PLAIN.resize((400, 400)), "JPEG")[:3000],
    "real numbers": saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    "20000 × 20000, and all there": png(20_000, 20_000, b"\0" * 9),
    "2³¹ × 2³¹": png(2**31 - 1, 2**31 - 1, b""),
    "large, and nothing there": png(9_000, 9_000, b""),
    "a size and no pixels": b"P6 99999 99999 255\n",
    "a text that unfolds": saved(PLAIN, "PNG")[:33] + b"\0\0\0\0" + saved(PLAIN, "PNG")[33:],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_image_that_cannot_be_read_is_named_with_the_way_out(name: str, folder: Path) -> None:
    path = folder / "train/b/x.png"
    path.write_bytes(UNREADABLE[name])
    message = refused(folder)
    assert message.startswith(f"{path} is no readable image: ")
    assert "remove it" in message


def test_a_bomb_is_refused_by_its_head(folder: Path) -> None:
    """1.2 GB of pixels in a megabyte: refused before any of them is unpacked."""
    packer, rows = zlib.compressobj(9), b"\0" * (3 * 20_000 + 1)
    packed = b"".join(packer.compress(rows) for _ in range(200)) + packer.flush()
    path = folder / "train/b/x.png"
    path.write_bytes(png(20_000, 20_000, zlib.decompress(packed)))
    tracemalloc.start()
    try:
        message = refused(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "400000000 pixels" in message
    assert peak < 50e6


@FIXED
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"]),
    start=st.integers(0, 400),
    length=st.integers(0, 60),
    inserted=st.binary(max_size=40),
)
def test_a_damaged_image_is_an_image_or_an_error(
    kind: str, start: int, length: int, inserted: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only Pillow sees the bytes: what it raises must be told, and name the file."""
    data = saved(PLAIN, kind)
    start %= len(data)
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(data[:start] + inserted + data[start + length :])
    try:
        [(images, labels)] = FolderSplit("train", [(str(path), 1)], 3, SIDE).pieces()
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert images.shape == (1, 3, SIDE, SIDE)
        assert labels.tolist() == [1]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


NO_FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a pipe": ("train/b/x.png", pipe, "no file but a pipe"),
    "a pipe without a suffix": ("train/b/x", pipe, "no file but a pipe"),
    "a device": ("train/b/x.png", link_to("/dev/zero"), "no file but a pipe or a device"),
    "a link to itself": ("train/b/x.png", link_to("x.png"), "symbolic links"),
    "a link to nothing": ("train/b/x.png", link_to("nowhere"), "No such file"),
    "a link to the folder above": ("train/b/x", link_to(".."), "count twice"),
    "a link to the folder itself": ("train/b/x", link_to("."), "count twice"),
    "a class once more": ("train/c", link_to("b"), "count twice"),
    "a class without pictures": ("train/c", Path.mkdir, "train/c holds no image that is read"),
    "a class that is a link to itself": ("train/c", link_to("c"), "symbolic links"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_refused_without_waiting(name: str, folder: Path) -> None:
    place, make, words = NO_FILES[name]
    make(folder / place)
    message = refused(folder)
    assert words in message
    assert str(folder) in message


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("what", ["file", "empty", "link"])
def test_a_split_that_is_none_is_refused(split: str, what: str, folder: Path) -> None:
    (folder / split).rename(folder / "away")
    if what == "file":
        (folder / split).write_bytes(b"")
    elif what == "empty":
        (folder / split).mkdir()
    else:
        (folder / split).symlink_to(split)
    assert str(folder) in refused(folder)


def test_links_that_lead_elsewhere_are_followed(folder: Path) -> None:
    away = folder.parent / "away"
    (folder / "train/b").rename(away)
    (folder / "train/b").symlink_to(away)
    (away / "1.png").symlink_to("0.png")
    assert len(opened(folder).train) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("place", ["train/b/0.png", "train/b", "test"])
def test_what_may_not_be_read_is_named(place: str, folder: Path) -> None:
    (folder / place).chmod(0)
    try:
        assert str(folder) in refused(folder)
    finally:
        (folder / place).chmod(0o700)


# MNIST's files


def idx(magic: int, *lengths: int, data: bytes = b"") -> bytes:
    return struct.pack(f">{1 + len(lengths)}I", magic, *lengths) + data


IMAGES, LABELS = 0x803, 0x801
WRONG_IDX = {
    "empty": ("images", b""),
    "a text": ("images", b"this is no idx file"),
    "a wrong magic": ("images", idx(0xFFFFFFFF, 2, 28, 28, data=bytes(2 * 784))),
    "another type": ("images", idx(0xD03, 2, 28, 28, data=bytes(4 * 2 * 784))),
    "no type": ("images", idx(0x003, 2, 28, 28, data=bytes(2 * 784))),
    "too few dimensions": ("images", idx(LABELS, 2 * 784, data=bytes(2 * 784))),
    "lengths without end": ("images", idx(IMAGES, 2**32 - 1, 2**32 - 1, 2**32 - 1, data=b"x")),
    "lengths of nothing": ("images", idx(IMAGES, 0, 28, 28)),
    "cut": ("images", idx(IMAGES, 2, 28, 28, data=bytes(784))),
    "labels cut": ("labels", idx(LABELS, 2, data=b"\1")),
    "labels that are images": ("labels", idx(IMAGES, 2, 1, 1, data=b"\1\2")),
    "more labels than images": ("labels", idx(LABELS, 3, data=b"\1\2\3")),
    "labels above all classes": ("labels", idx(LABELS, 2, data=b"\1\xff")),
}


@pytest.mark.parametrize("name", WRONG_IDX)
def test_idx_files_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = idx(IMAGES, 2, 28, 28, data=bytes(2 * 784))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS, 2, data=b"\1\2"))
    kind, data = WRONG_IDX[name]
    file = {"images": "train-images-idx3-ubyte", "labels": "train-labels-idx1-ubyte"}[kind]
    (raw / file).write_bytes(data)
    config = DataConfig(
        name="mnist", root=str(tmp_path), expected_batch_size=1, cache=str(tmp_path / "cache")
    )
    with pytest.raises(DpRayError, match=r"data\.(root|num_classes|num_examples|channels)"):
        open_dataset(config)
    # And a pipe in its place is not waited for.
    (raw / file).unlink()
    os.mkfifo(raw / file)
    with pytest.raises(DataError, match="no file but a pipe"):
        open_dataset(config)


# The decoded copy


@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "lost", "text", "pickle", "folder"])
def test_a_damaged_decoded_copy_is_named_with_the_way_out(
    file: str, damage: str, folder: Path
) -> None:
    opened(folder, 2)
    [copy] = [path for path in (folder.parent / "cache").iterdir() if path.is_dir()]
    path = copy / file
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pickle":
        with path.open("wb") as copied:
            np.save(copied, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage != "lost":
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no"}[damage])
    with pytest.raises(DataError, match=r"is damaged: .*Remove the folder") as refused:
        opened(folder, 2)
    assert str(copy) in str(refused.value)


def test_a_copy_that_finds_no_room_is_refused_before_it_is_written(tmp_path: Path) -> None:
    """Written through a map, it would end in a bus error. 4.9 PB are on no disk."""
    config = DataConfig(
        name="fake",
        num_examples=10**11,
        image_size=128,
        expected_batch_size=1,
        cache=str(tmp_path / "cache"),
    )
    with pytest.raises(DataError, match=r"cannot be written.*data\.cache"):
        open_dataset(config)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("cache", ["/dev/null/cache", "x" * 300, "~nobody-has-this-name/cache"])
def test_a_cache_in_no_place_is_refused(
    cache: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    if cache.startswith("~"):
        Path("~nobody-has-this-name").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.cache"):
        opened(folder, 2, cache=cache)
