"""One picture file to pixels, as an image viewer shows it.

Upright by EXIF, transparent parts on a background, embedded colour profiles as sRGB, 12 and 16 bits
of grey brought to 8. Of animations and of files with several pages the first picture is taken.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dp_ray.data.metadata import without_metadata

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsTransform

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "TGA": (".tga",),
}
"""Pillow's formats that are read, and their suffixes. Others hold no picture of a fixed brightness,
or are programs (PostScript). The same on every machine, whatever Pillow was built with there."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

Background = str | list[int]
"""``data.background``: ``white``, ``black`` or [red, green, blue]."""

_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
_ALPHA_MAY_BE_PADDING = ("BMP", "DIB", "TGA", "TIFF")
_SAME_COLOUR = 3


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: [C, S, S] uint8.
        size: width and height, upright, before resizing.
        kind: format and mode of the file, such as ``JPEG RGB``.
        turned: whether EXIF turned or mirrored it.
        transparent: whether the background shows through.
        managed: whether a colour profile changed it.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    kind: str
    turned: bool
    transparent: bool
    managed: bool


def read_picture(
    path: str | Path, *, channels: int, image_size: int, background: Background = "white"
) -> Picture:
    """Decode a file; the shorter side becomes ``image_size``, then the centre is cut out.

    Args:
        path: the file; its content decides the format, not its suffix.
        channels: 1 (grey) or 3 (RGB).
        image_size: S.
        background: what shows through transparent parts.

    Raises:
        Exception: Pillow raises a dozen kinds for files that are no whole picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, which decide nothing here
        try:
            return _decode(path, channels, image_size, background)
        except Exception:
            data = Path(path).read_bytes()
            for profile in (True, False):  # which tells colours, unless it is what is damaged
                rest = without_metadata(data, profile=profile)
                if rest is not None:
                    with suppress(Exception):
                        return _decode(io.BytesIO(rest), channels, image_size, background)
            raise  # the first error says more


def pixels_of(image: Image, *, channels: int, image_size: int) -> NDArray[np.uint8]:
    """Return the pixels [C, S, S] of an open picture of 8 bits a colour.

    The shorter side becomes ``image_size``, then the centre is cut out.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    image = image.convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(image, (image_size, image_size), Resampling.BILINEAR)
    pixels = np.asarray(square, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def on_background(image: Image, background: Background) -> Image:
    """Return a picture whose transparent parts show the background."""
    from PIL import Image as Images

    ground = Images.new("RGBA", image.size, (*_colour(background), 255))
    return Images.alpha_composite(ground, image.convert("RGBA"))


def _decode(
    source: str | Path | io.BytesIO, channels: int, image_size: int, background: Background
) -> Picture:
    from PIL import Image

    with Image.open(source, formats=_formats()) as file:
        return picture_of(file, channels=channels, image_size=image_size, background=background)


def picture_of(
    file: Image, *, channels: int, image_size: int, background: Background = "white"
) -> Picture:
    """Bring an image of Pillow's to the form of :func:`read_picture`.

    Args:
        file: as ``Image.open`` gives it, or what was made of that; pixels are loaded where they
            are not yet.
        channels, image_size, background: see :func:`read_picture`.

    Raises:
        Exception: Pillow raises a dozen kinds for files that are no whole picture.
    """
    from PIL import Image

    rawmode = _rawmode(file)
    file.load()  # turns a TIFF; the others are turned below
    orientation = _orientation(file)
    colours, alpha = _eight_bit(file, rawmode)
    kind = f"{file.format} {file.mode}"
    srgb = _in_srgb(colours, file.info.get("icc_profile"))
    image = colours if srgb is None else srgb
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None
    if alpha is not None:
        ground = Image.new("RGB", image.size, _colour(background))
        image = Image.composite(image.convert("RGB"), ground, alpha)
    if orientation is not None:
        image = image.transpose(orientation)
    return Picture(
        pixels=pixels_of(image, channels=channels, image_size=image_size),
        size=image.size,
        kind=kind,
        turned=orientation is not None,
        transparent=alpha is not None,
        managed=srgb is not None,
    )


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow knows, in the order in which a file is tried."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _rawmode(image: Image) -> str:
    """How the file stores its pixels, such as ``RGB;16B``; Pillow forgets it when it loads them."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image) -> Any:
    """The way to turn a picture upright; None if it is, or if its EXIF cannot be read.

    ``ImageOps.exif_transpose`` also writes the EXIF block anew, which fails for many that can be
    read.
    """
    from PIL.Image import Transpose

    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # whatever is wrong with it, viewers show the picture as it is stored
        return None
    if not isinstance(value, int):
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(value)


def _eight_bit(image: Image, rawmode: str) -> tuple[Image, Image | None]:
    """The colours of a loaded picture with 8 bits each, and its opacity (mode L) if it has one."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _of_deep_grey(image, 12 if rawmode == "I;12" else 16, key)
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} has no fixed range of brightness")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("L", "RGB") and key is not None:
        return image, _opacity(image, _key_in_eight_bit(key, rawmode))
    if not image.has_transparency_data:
        return (image.convert("RGB") if image.mode == "P" else image), None
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
    layers = straight if straight.mode in ("LA", "RGBA") else straight.convert("RGBA")
    alpha = layers.getchannel("A")
    padding = alpha.getextrema()[1] == 0 and image.format in _ALPHA_MAY_BE_PADDING
    return layers.convert(layers.mode[:-1]), None if padding else alpha


def _of_deep_grey(image: Image, bits: int, key: Any) -> tuple[Image, Image | None]:
    """The upper 8 bits: Pillow's convert() would cut them off at 255."""
    from PIL import Image as Images

    values = np.asarray(image)
    alpha = None
    if isinstance(key, int):
        alpha = Images.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    tags: Any = getattr(image, "tag_v2", {})
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # the brightest is stored as 0; Pillow heeds it up to 8 bits
        grey = 255 - grey
    return Images.fromarray(grey), alpha


def _key_in_eight_bit(key: Any, rawmode: str) -> NDArray[np.int64]:
    """A transparent grey or colour, which a PNG has in its own depth, as Pillow's pixels have it.

    Of 16 bits a channel Pillow keeps 8, so colours that share them become transparent too.
    """
    values = np.atleast_1d(np.asarray(key, dtype=np.int64))
    if rawmode in ("L;2", "L;4"):
        return values * {"L;2": 85, "L;4": 17}[rawmode]
    return values >> 8 if ";16" in rawmode else values


def _opacity(image: Image, key: NDArray[np.int64]) -> Image:
    from PIL import Image as Images

    pixels = np.asarray(image)
    same = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=2)
    return Images.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _colour(background: Background) -> tuple[int, ...]:
    if isinstance(background, str):
        return {"white": (255,) * 3, "black": (0,) * 3}[background]
    return tuple(background)


def _in_srgb(image: Image, profile: bytes | None) -> Image | None:
    """The colours that an embedded profile means; None if it changes nothing or cannot be used."""
    if not profile:
        return None
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    transform = _transform(profile, image.mode)
    return None if transform is None else transform.apply(image)


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """From a profile to sRGB; None if it is sRGB but for rounding, or none for this mode."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.getDefaultIntent(source)
        target = ImageCms.createProfile("sRGB")
        found = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent(intent))
        sample = _sample(mode)
        pair = (sample.convert("RGB"), found.apply(sample))
        before, after = (np.asarray(image, dtype=np.int64) for image in pair)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # damaged, or of another kind of picture: as viewers do, take none
    return None if np.abs(before - after).max() <= _SAME_COLOUR else found


def _sample(mode: str) -> Image:
    """16 levels of each channel with each of the others."""
    from PIL import Image as Images

    bands = len(Images.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[levels] * bands), axis=-1)
    return Images.frombytes(mode, (16**bands, 1), colours.tobytes())
