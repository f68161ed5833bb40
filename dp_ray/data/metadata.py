"""PNG and JPEG files without what decides no pixel.

Pillow refuses a picture for a damaged profile, comment or resolution; viewers show it.
"""

from __future__ import annotations

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_PNG_PROFILE = {b"iCCP", b"sRGB", b"gAMA", b"cHRM"}

_JPEG = b"\xff\xd8"
_SCAN = 0xDA
_APPLICATION = range(0xE0, 0xF0)
_EXIF, _PROFILE, _ADOBE, _COMMENT = 0xE1, 0xE2, 0xEE, 0xFE


def without_metadata(data: bytes, *, profile: bool) -> bytes | None:
    """Copy a file without metadata; what turns the picture stays, and what its pixels are made of.

    Args:
        data: the whole file.
        profile: whether its colour profile stays, too.

    Returns:
        The copy; None if there is nothing to leave out, or the file is of another format.
    """
    kept = b""
    if data.startswith(_PNG):
        kept = _PNG + b"".join(_png_chunks(data, profile))
    elif data.startswith(_JPEG):
        kept = _JPEG + b"".join(_jpeg_segments(data, profile))
    return kept if 0 < len(kept) < len(data) else None


def _png_chunks(data: bytes, profile: bool) -> Iterator[bytes]:
    start, kept = len(_PNG), _PNG_KEPT | (_PNG_PROFILE if profile else set())
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in kept:
            yield data[start:end]
        start = end


def _jpeg_segments(data: bytes, profile: bool) -> Iterator[bytes]:
    start = len(_JPEG)
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _SCAN:  # pixels follow
            break
        is_exif = marker == _EXIF and data[start + 4 : start + 8] == b"Exif"
        is_profile = profile and data[start + 4 : start + 15] == b"ICC_PROFILE"
        is_kept = is_exif or marker == _ADOBE or (marker == _PROFILE and is_profile)
        if is_kept or marker not in (*_APPLICATION, _COMMENT):
            yield data[start:end]
        start = end
    yield data[start:]
