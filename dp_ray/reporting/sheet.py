"""A sheet of images with texts beside them, drawn as a PNG."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dp_ray.extras import require

_TILE = 80
"""Side of a tile in pixels, about: small images are enlarged a whole number of times."""

INK, MUTED, ALARM = "#1a202c", "#4a5568", "#b3261e"
_FRAME = (37, 99, 168)

PRIVATE = "Private: it shows the images. Do not publish this sheet."


@dataclass
class Sheet:
    """Pixels and texts that are collected before they are drawn."""

    tiles: list[tuple[int, int, NDArray[np.uint8], bool]] = field(default_factory=list)
    texts: list[tuple[int, int, str, float, str]] = field(default_factory=list)

    def add_tile(self, x: int, y: int, tile: NDArray[np.uint8], *, framed: bool = False) -> None:
        """Put an image [side, side, 3] where its left upper corner is to be, in pixels."""
        self.tiles.append((x, y, tile, framed))

    def add_text(self, x: int, y: int, text: str, size: float, colour: str) -> None:
        """Put a text where its baseline begins, in pixels."""
        self.texts.append((x, y, text, size, colour))


def shortened(text: str, most: int) -> str:
    """Return a text with at most so many characters, the last an ellipsis if it was cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def tile_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [C, S, S] as [side, side, 3], with about 80 pixels a side."""
    from PIL import Image

    rgb = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    factor = round(_TILE / len(rgb))
    if factor >= 1:
        return rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    small = Image.fromarray(np.ascontiguousarray(rgb)).resize((_TILE, _TILE), Image.Resampling.BOX)
    return np.asarray(small)


def png_of(sheet: Sheet, width: int, height: int) -> bytes:
    """Draw a sheet and return it as a PNG.

    Args:
        sheet: its tiles and texts.
        width: of the picture in pixels; at least 640 are used.
        height: likewise.
    """
    require("report", "drawing")
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: no screen, no state

    width = max(width, 640)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for x, y, tile, framed in sheet.tiles:
        side = len(tile)
        if framed:
            canvas[y - 2 : y + side + 2, x - 2 : x + side + 2] = _FRAME
        canvas[y : y + side, x : x + side] = tile
    file = io.BytesIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks becomes a box
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        figure.figimage(canvas, origin="upper")
        for x, y, text, size, colour in sheet.texts:
            shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
            figure.text(x / width, 1 - y / height, shown, fontsize=size * 0.8, color=colour)
        figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
