"""One picture to pixels: upright, opaque, in 8 bits, as an image viewer shows it.

Damaged files are in ``test_hostile_images``.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from dp_ray.data.metadata import without_metadata
from dp_ray.data.pictures import FORMATS, Picture, read_picture

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=150)
SIDE = 16

# Bright on the left, and brightest at the top: shows how it is turned.
LEFT = np.full((SIDE, SIDE, 3), 20, dtype=np.uint8)
LEFT[:, :8], LEFT[:8, :8] = 150, 230
BRIGHT = Image.fromarray(LEFT)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, rows: bytes, *chunks: bytes, size: tuple[int, int]) -> bytes:
    """A PNG of any depth and type of colour, which Pillow cannot write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + end


def tiff(bits: int, photometric: int, data: bytes, size: tuple[int, int]) -> bytes:
    """A grey TIFF of one strip."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 277: 1, 278: size[1]}
    tags |= {273: 8 + 2 + 12 * 9 + 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def read(data: bytes, *, size: int = SIDE, channels: int = 3, **given: Any) -> Picture:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_picture(file.name, channels=channels, image_size=size, **given)


def problem(data: bytes) -> str:
    """Why a picture is not read; empty if it is."""
    try:
        read(data)
    except Exception as error:
        return repr(error)
    return ""


def pixels(data: bytes, **given: Any) -> NDArray[np.int64]:
    return read(data, **given).pixels.astype(np.int64)


def colour(data: bytes, **given: Any) -> list[int]:
    """Of a picture of one colour."""
    found = pixels(data, size=1, **given)
    return [int(value) for value in found[:, 0, 0]]


# EXIF


def directory(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """A TIFF header and one directory: (tag, type, count, four bytes)."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHI", *e[:3]) + e[3].ljust(4, b"\0") for e in entries)
    return head + struct.pack(f"{order}IH", 8, len(entries)) + body + bytes(4)


def in_jpeg(exif: bytes) -> bytes:
    data = saved(BRIGHT, "JPEG", quality=95)
    after = 4 + struct.unpack(">H", data[4:6])[0]
    body = b"Exif\0\0" + exif
    return data[:after] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[after:]


def in_png(exif: bytes) -> bytes:
    data = saved(BRIGHT, "PNG")
    return data[:33] + chunk(b"eXIf", exif) + data[33:]


def late_in_png(exif: bytes) -> bytes:
    data = saved(BRIGHT, "PNG")
    return data[:-12] + chunk(b"eXIf", exif) + data[-12:]


def in_webp(exif: bytes) -> bytes:
    return saved(BRIGHT, "WEBP", exif=exif, lossless=True)


CARRIERS = [in_jpeg, in_png, late_in_png, in_webp]
SOUND = directory((0x0112, 3, 1, struct.pack("<H", 3)))


def is_turned(data: bytes) -> bool:
    """By half a turn, against as it is stored; fails if it is neither."""
    found = pixels(data)
    stored = LEFT.transpose(2, 0, 1).astype(np.int64)
    as_stored, turned = (np.abs(found - p).max() for p in (stored, stored[:, ::-1, ::-1]))
    assert min(as_stored, turned) <= 12  # JPEG loses a little
    return bool(turned < as_stored)


ORIENTATIONS: dict[str, tuple[bytes, bool]] = {
    "sound": (SOUND, True),
    "big-endian": (directory((0x0112, 3, 1, struct.pack(">H", 3)), order=">"), True),
    "a long": (directory((0x0112, 4, 1, struct.pack("<I", 3))), True),
    "sound, GPS beyond the end": (
        directory((0x8825, 4, 1, struct.pack("<I", 9999)), (0x0112, 3, 1, b"\3")),
        True,
    ),
    "sound, resolution beyond the end": (
        directory((0x0112, 3, 1, b"\3"), (0x011A, 5, 1, struct.pack("<I", 9999))),
        True,
    ),
    "out of range": (directory((0x0112, 3, 1, struct.pack("<H", 9))), False),
    "zero": (directory((0x0112, 3, 1, b"")), False),
    "a text": (directory((0x0112, 2, 2, b"3\0")), False),
    "a byte": (directory((0x0112, 7, 1, b"\3")), False),
    "a real number": (directory((0x0112, 11, 1, struct.pack("<f", 3.0))), False),
    "an unknown type": (directory((0x0112, 99, 1, b"\3")), False),
    "beyond the end": (directory((0x0112, 5, 1, struct.pack("<I", 9999))), False),
    "cut off": (SOUND[:14], False),
    "a directory beyond the end": (b"II*\0\xff\xff\xff\x7f", False),
    "no TIFF": (b"this is no TIFF header", False),
    "empty": (b"", False),
}


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_sound_orientation_is_heeded_and_any_other_makes_no_picture_unreadable(
    name: str, carrier: Callable[[bytes], bytes]
) -> None:
    exif, turns = ORIENTATIONS[name]
    assert problem(carrier(exif)) == ""
    assert is_turned(carrier(exif)) is turns


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_in_all_formats(orientation: int) -> None:
    """Pillow's own way, where it works, is what viewers do."""
    exif = directory((0x0112, 3, 1, struct.pack("<H", orientation)))
    back = {
        1: lambda p: p,
        2: lambda p: p[:, :, ::-1],
        3: lambda p: p[:, ::-1, ::-1],
        4: lambda p: p[:, ::-1],
        5: lambda p: p.transpose(0, 2, 1),
        6: lambda p: np.rot90(p, -1, (1, 2)),
        7: lambda p: np.rot90(p, 2, (1, 2)).transpose(0, 2, 1),
        8: lambda p: np.rot90(p, 1, (1, 2)),
    }[orientation]
    expected = back(LEFT.transpose(2, 0, 1).astype(np.int64))
    files = [carrier(exif) for carrier in CARRIERS]
    files += [
        saved(BRIGHT, "TIFF", tiffinfo={0x0112: orientation}, compression=c)
        for c in (None, "tiff_lzw")
    ]
    for data in files:
        assert np.abs(pixels(data) - expected).max() <= 12
    assert read(files[0]).turned is (orientation != 1)


@FIXED
@given(
    changes=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(SOUND)),
    carrier=st.sampled_from(CARRIERS[:3]),
)
def test_no_exif_block_makes_a_picture_unreadable(
    changes: list[tuple[int, int]], length: int, carrier: Callable[[bytes], bytes]
) -> None:
    exif = bytearray(SOUND)
    for place, value in changes:
        exif[place] = value
    assert problem(carrier(bytes(exif[:length]))) == ""


BLOCKS: dict[str, bytes] = {
    "resolution": chunk(b"pHYs", b""),
    "primaries": chunk(b"cHRM", b"xx"),
    "gamma": chunk(b"gAMA", b""),
    "profile": chunk(b"iCCP", b""),
    "animation": chunk(b"acTL", b"") + chunk(b"fcTL", b"x"),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_damaged_metadata_of_a_png_is_left_out(name: str) -> None:
    data = in_png(SOUND)
    damaged = data[:33] + BLOCKS[name] + data[33:]
    assert problem(damaged) == ""
    assert is_turned(damaged)


@pytest.mark.parametrize(
    "segment",
    [b"\xed\0\x20Photoshop 3.0\0" + b"8BIM\x03\xed" + b"\xff" * 10, b"\xe2\0\x0eICC_PROFILE\0"],
    ids=["Photoshop", "profile"],
)
def test_damaged_metadata_of_a_jpeg_is_left_out(segment: bytes) -> None:
    data = in_jpeg(SOUND)
    assert is_turned(data[:2] + b"\xff" + segment + data[2:])


def test_only_metadata_is_left_out() -> None:
    for data in (in_png(SOUND), in_jpeg(SOUND)):
        rest = without_metadata(data + b"beyond", profile=False)
        assert rest is None or np.array_equal(pixels(rest), pixels(data))
    assert without_metadata(saved(BRIGHT, "BMP"), profile=False) is None
    assert without_metadata(b"", profile=False) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_comment_leaves_the_colours_as_they_are(kind: str) -> None:
    profile = profile_of_swapped_primaries()
    whole = saved(Image.new("RGB", (8, 8), RED), kind, icc_profile=profile)
    damage = chunk(b"pHYs", b"\1"), b"\xed\0\x20Photoshop 3.0\0" + b"8BIM\x03\xed" + b"\xff" * 10
    start = 33 if kind == "PNG" else 2
    inside = damage[0] if kind == "PNG" else b"\xff" + damage[1]
    found = read(whole[:start] + inside + whole[start:], size=1)
    assert found.managed
    assert np.array_equal(found.pixels, read(whole, size=1).pixels)


# Transparency

RED = (200, 0, 0)
HALF = Image.new("RGBA", (2, 2), (*RED, 128))
PALETTE = Image.new("P", (2, 2), 1)
PALETTE.putpalette([9, 9, 9, *RED])

GREY_KEY = chunk(b"tRNS", struct.pack(">H", 1))
TRANSPARENT: dict[str, bytes] = {
    "RGBA": saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG"),
    "LA": saved(Image.new("LA", (2, 2), (0, 0)), "PNG"),
    "palette, one colour": saved(PALETTE, "PNG", transparency=1),
    "palette, alpha": saved(PALETTE, "PNG", transparency=b"\xff\0"),
    "RGB with a transparent colour": saved(Image.new("RGB", (2, 2), RED), "PNG", transparency=RED),
    "L with a transparent grey": saved(Image.new("L", (2, 2), 7), "PNG", transparency=7),
    "1 bit": png(1, 0, b"\0\x80", GREY_KEY, size=(1, 1)),
    "2 bits": png(2, 0, b"\0\x40", GREY_KEY, size=(1, 1)),
    "4 bits": png(4, 0, b"\0\x10", GREY_KEY, size=(1, 1)),
    "16 bits": png(16, 0, b"\0\0\x01", GREY_KEY, size=(1, 1)),
    "16 bits, LA": png(16, 4, b"\0\x12\x34\0\0", size=(1, 1)),
    "16 bits, RGB": png(
        16, 2, b"\0\x01\0\x02\0\x03\0", chunk(b"tRNS", b"\x01\0\x02\0\x03\0"), size=(1, 1)
    ),
    "16 bits, RGBA": png(16, 6, b"\0" + bytes(8), size=(1, 1)),
    "WebP": saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "WEBP", lossless=True, exact=True),
    "GIF": saved(PALETTE, "GIF", transparency=1),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize(
    ("background", "seen", "grey"),
    [("white", [255, 255, 255], 255), ("black", [0, 0, 0], 0), ([10, 200, 90], [10, 200, 90], 131)],
    ids=["white", "black", "green"],
)
def test_the_background_shows_through(
    name: str, background: Any, seen: list[int], grey: int
) -> None:
    data = TRANSPARENT[name]
    assert read(data).transparent
    assert colour(data, background=background) == seen
    assert colour(data, background=background, channels=1) == [grey]
    if background == "white":
        assert colour(data) == seen  # by default


def test_what_is_half_transparent_is_mixed() -> None:
    assert np.abs(np.subtract(colour(saved(HALF, "PNG")), [227, 127, 127])).max() <= 1
    on_black = colour(saved(HALF, "WEBP", lossless=True), background="black")
    assert np.abs(np.subtract(on_black, [100, 0, 0])).max() <= 1


OPAQUE: dict[str, tuple[bytes, list[int]]] = {
    "RGBA": (saved(Image.new("RGBA", (2, 2), (1, 2, 3, 255)), "PNG"), [1, 2, 3]),
    "another colour is transparent": (
        saved(Image.new("RGB", (2, 2), RED), "PNG", transparency=(1, 2, 3)),
        [200, 0, 0],
    ),
    "another grey of 2 bits is": (png(2, 0, b"\0\x80", GREY_KEY, size=(1, 1)), [170] * 3),
    "another grey of 16 bits is": (png(16, 0, b"\0\x40\x01", GREY_KEY, size=(1, 1)), [64] * 3),
    "alpha of a TGA is unused": (saved(Image.new("RGBA", (2, 2), (1, 2, 3, 0)), "TGA"), [1, 2, 3]),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_opaque_stays_as_it_is(name: str) -> None:
    data, seen = OPAQUE[name]
    assert not read(data).transparent
    assert colour(data) == seen


# Depth and colour

WORD = struct.pack("<H", 51200)
DEEP: dict[str, tuple[bytes, int]] = {
    "TIFF of 16 bits": (tiff(16, 1, WORD, (1, 1)), 200),
    "TIFF of 16 bits, white is 0": (tiff(16, 0, WORD, (1, 1)), 55),
    "TIFF of 8 bits, white is 0": (tiff(8, 0, b"\xc8", (1, 1)), 55),
    "TIFF of 12 bits": (tiff(12, 1, b"\xc8\x00", (1, 1)), 200),
    "PGM of 16 bits": (b"P5 1 1 65535\n\xc8\0", 200),
    "PGM of 12 bits": (b"P5 1 1 4095\n\x08\0", 128),
    "PNG of 16 bits": (png(16, 0, b"\0\xc8\0", size=(1, 1)), 200),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_keeps_its_brightness(name: str) -> None:
    data, grey = DEEP[name]
    assert colour(data, channels=1) == [grey]
    assert colour(data) == [grey] * 3


def test_cmyk_of_a_jpeg_is_no_negative() -> None:
    image = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    assert np.abs(np.subtract(colour(saved(image, "JPEG", quality=95)), [250, 10, 10])).max() <= 6


def profile_of_swapped_primaries() -> bytes:
    """Make sRGB whose red is green; its table of 12-byte entries begins at byte 132."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    place = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = place[b"rXYZ"], place[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = (
        data[green + 4 : green + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data)


def test_a_colour_profile_is_heeded() -> None:
    profile = profile_of_swapped_primaries()
    picture = read(saved(Image.new("RGB", (4, 4), RED), "PNG", icc_profile=profile), size=1)
    assert picture.managed
    assert np.abs(picture.pixels[:, 0, 0].astype(int) - [0, 200, 0]).max() <= 3
    half = read(saved(HALF, "PNG", icc_profile=profile), size=1, background="black")
    assert np.abs(half.pixels[:, 0, 0].astype(int) - [0, 100, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["sRGB", "LAB", "XYZ", "damaged"])
def test_a_profile_that_says_nothing_of_a_picture_leaves_its_pixels(kind: str) -> None:
    """To the last bit: sRGB is what everything else is taken for."""
    profile = b"rubbish"
    if kind != "damaged":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()  # type: ignore[arg-type]
    levels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = read(saved(Image.fromarray(levels), "PNG", icc_profile=profile))
    assert not picture.managed
    assert np.array_equal(picture.pixels, levels.transpose(2, 0, 1))


# Kinds of files


def test_an_animation_is_its_first_picture() -> None:
    others = [Image.new("RGB", (SIDE, SIDE), (9, 9, 9))] * 2
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = saved(BRIGHT, kind, save_all=True, append_images=others, **options)
        assert np.abs(pixels(data) - LEFT.transpose(2, 0, 1)).max() <= 30, kind


def test_every_format_that_can_be_written_is_read(tmp_path: Path) -> None:
    """By its content: the suffix is any of those that count as images."""
    written = [f for f in FORMATS if f in Image.SAVE and f not in ("ICO", "MPO")]
    assert len(written) >= 12
    for name in written:
        for suffix in FORMATS[name]:
            path = tmp_path / f"x{suffix}"
            path.write_bytes(saved(BRIGHT, name))
            picture = read_picture(path, channels=3, image_size=SIDE)
            assert picture.kind.startswith(name if name != "DIB" else ("DIB", "BMP")), name
            assert np.abs(picture.pixels.astype(int) - LEFT.transpose(2, 0, 1)).max() <= 60, name


def test_no_program_is_run_for_a_picture() -> None:
    """PostScript is one, and Ghostscript would run it."""
    with pytest.raises(OSError, match="cannot identify"):
        read(saved(BRIGHT, "EPS"))


def test_what_was_noticed() -> None:
    wide = Image.new("RGB", (30, 20), RED)
    picture = read(saved(wide, "JPEG", exif=b"Exif\0\0" + directory((0x0112, 3, 1, b"\6"))), size=4)
    assert (picture.kind, picture.size, picture.turned) == ("JPEG RGB", (20, 30), True)
    assert not picture.transparent
    assert not picture.managed
