"""Charts as SVG to stand in a page: its fonts, its colours in light and dark, no scripts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from dp_ray.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    # name: (light, dark). Text has a contrast of 4.5 at least, lines and marks one of 3.
    "paper": ("#ffffff", "#15181d"),
    "panel": ("#f4f6f9", "#1e232a"),
    "ink": ("#1a202c", "#e7eaf0"),
    "muted": ("#4a5568", "#a9b3c2"),
    "rule": ("#d5dbe3", "#3b434e"),
    "blue": ("#2563a8", "#7db4f2"),
    "orange": ("#b4530a", "#f2a65a"),
    "red": ("#b3261e", "#f59a93"),
    "alarm": ("#fdf1f0", "#331d1d"),
}
"""Drawn with the light colours, each of which is replaced by the page's variable of that name."""

INK, MUTED, RULE = (PALETTE[name][0] for name in ("ink", "muted", "rule"))
BLUE, ORANGE, RED = (PALETTE[name][0] for name in ("blue", "orange", "red"))

_MOST_POINTS = 200
"""More become means of neighbours: a wider curve has no room for them."""

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two $ is a name
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Chart:
    """A picture with its words.

    Attributes:
        title: what it shows.
        note: how to read it.
        svg: an element to stand in a page.
    """

    title: str
    note: str
    svg: Markup


def draw(title: str, note: str, paint: Callable[[Axes], None], *, height: float = 2.9) -> Chart:
    """A chart that fills a phone's width, and half of a wide page.

    Args:
        title: what it shows, unlike any other on the page; also what a screen reader says.
        note: how to read it.
        paint: draws into the axes.
        height: in inches, of which the width has 5.
    """
    require("report", "drawing")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5, height), layout="constrained")
        paint(figure.add_subplot())
        return Chart(title, note, _inline(figure, f"{title}. {note}"))


def line_chart(
    title: str,
    note: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    ylabel: str,
    xlabel: str = "step",
    marker: str = "",
    style: Callable[[Axes], None] = lambda _axes: None,
) -> Chart:
    """One curve.

    Args:
        title: see :func:`draw`.
        note: see :func:`draw`.
        xs: where.
        ys: how much; what is not finite is left out.
        ylabel: what it is.
        xlabel: along what.
        marker: of each point, as matplotlib names it.
        style: what else there is in the axes.
    """

    def paint(axes: Axes) -> None:
        axes.plot(*thinned(xs, ys), color=BLUE, marker=marker)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        style(axes)

    return draw(title, note, paint)


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The finite points, and where there are many the means of neighbours."""
    points = np.array([(x, y) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)])
    if len(points) == 0:
        return [], []
    blocks = np.array_split(points, min(len(points), _MOST_POINTS))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0].tolist(), means[:, 1].tolist()


def palette_css() -> Markup:
    """The colours as variables, for light and for dark."""
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1)
    )
    return Markup(f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}")


def _inline(figure: Figure, label: str) -> Markup:
    file = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for size in ("width", "height"):
        del root.attrib[size]  # viewBox stays, and the page says how wide
    root.set("role", "img")
    root.set("aria-label", label)
    links = {element.get(_HREF, "")[1:] for element in root.iter()}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":  # would hold for the whole page
                parent.remove(child)
        name = parent.get("id")
        if name is not None and name not in links and not parent.tag.endswith("clipPath"):
            del parent.attrib["id"]  # every figure has an axes_1
        if _HREF in parent.attrib:
            parent.set("href", parent.attrib.pop(_HREF))
        if parent.tag == f"{{{_SVG}}}text":
            parent.set("style", _without_font(parent.get("style", "")))
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{name})")
    return Markup(text)


def _without_font(style: str) -> str:
    parts = [part.strip() for part in style.split(";")]
    return "; ".join(part for part in parts if not part.startswith("font-family"))
