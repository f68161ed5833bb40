"""PNG and JPEG files without what decides no pixel.

Pillow refuses a picture for a damaged profile, comment or resolution; viewers show it.
"""

from __future__ import annotations

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}

_JPEG = b"\xff\xd8"
_SCAN = 0xDA
_APPLICATION = range(0xE0, 0xF0)
_EXIF, _ADOBE, _COMMENT = 0xE1, 0xEE, 0xFE


def without_metadata(data: bytes) -> bytes | None:
    """Copy a file without metadata; what turns the picture and tells its colours stays.

    Args:
        data: the whole file.

    Returns:
        The copy; None if there is nothing to leave out, or the file is of another format.
    """
    kept = b""
    if data.startswith(_PNG):
        kept = _PNG + b"".join(_png_chunks(data))
    elif data.startswith(_JPEG):
        kept = _JPEG + b"".join(_jpeg_segments(data))
    return kept if 0 < len(kept) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    start = len(_PNG)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in _PNG_KEPT:
            yield data[start:end]
        start = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    start = len(_JPEG)
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _SCAN:  # pixels follow
            break
        is_exif = marker == _EXIF and data[start + 4 : start + 8] == b"Exif"
        if is_exif or marker == _ADOBE or marker not in (*_APPLICATION, _COMMENT):
            yield data[start:end]
        start = end
    yield data[start:]
