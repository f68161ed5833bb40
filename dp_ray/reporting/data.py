"""A data set in words: what was read, what was skipped and why.

All of it is private.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dp_ray.config.data import DataConfig
from dp_ray.data.source import Unread
from dp_ray.data.splits import Notes
from dp_ray.data.store import Dataset
from dp_ray.errors import printable
from dp_ray.reporting.contact_sheet import class_names
from dp_ray.reporting.words import count

_SHOWN_CLASSES = 30
_SHOWN_NAMES = 20

WARNING = "This is about private images: do not publish it."


def data_facts_of(dataset: Dataset, unread: Unread, config: DataConfig) -> dict[str, Any]:
    """What ``dp-ray data`` reports, as plain values.

    Args:
        dataset: as a run would open it.
        unread: what the source did not read.
        config: what was asked for.
    """
    facts = dataset.facts
    labels = [np.asarray(split.labels) for split in (dataset.train, dataset.test)]
    train, test = (np.bincount(found, minlength=facts.num_classes).tolist() for found in labels)
    return {
        "data": config.name,
        "shape": [facts.channels, facts.image_size, facts.image_size],
        "background": config.background,
        "train": {"examples": len(dataset.train), **_without_names(dataset.notes[0])},
        "test": {"examples": len(dataset.test), **_without_names(dataset.notes[1])},
        "classes": [
            {"label": label, "name": _as_text(name), "train": train[label], "test": test[label]}
            for label, name in enumerate(class_names(dataset))
        ],
        "skipped": [{"reason": reason, "path": _as_text(path)} for reason, path in unread.skipped],
    }


def describe_data(facts: dict[str, Any], *, whole: bool = False) -> str:
    """Lines for the terminal, or all of them for a file.

    Args:
        facts: see :func:`data_facts_of`.
        whole: leave out no class.
    """
    shape = " × ".join(str(side) for side in facts["shape"])
    return "\n".join(
        [
            f"private       {WARNING}",
            f"data          {facts['data']}: images of {shape} in {len(facts['classes'])} classes",
            *_split("train", facts["train"], facts["background"]),
            *_split("test", facts["test"], facts["background"]),
            "",
            *_classes(facts["classes"], whole=whole),
        ]
    )


def describe_unread(unread: Unread, *, whole: bool = False) -> str:
    """The entries that are no examples, by reason; empty if there are none.

    Args:
        unread: what the source does not read.
        whole: leave out no name.
    """
    paths: dict[str, list[str]] = {}
    for reason, path in unread.skipped:
        paths.setdefault(reason, []).append(str(Path(path).relative_to(unread.root)))
    lines = []
    for reason, names in paths.items():
        lines.append(f"skipped       {len(names):,} {reason}:")
        shown = names if whole else names[:_SHOWN_NAMES]
        lines += [f"              {printable(name)}" for name in shown]
        if len(shown) < len(names):
            lines.append(f"              and {len(names) - len(shown):,} more")
    if beside := unread.beside:
        others = ", ".join(map(printable, beside if whole else beside[:_SHOWN_NAMES]))
        lines.append(f"not read      {others}: only {unread.read} are")
    return "\n".join(lines)


def _as_text(name: str) -> str:
    """A file's name as text that can be encoded, whatever its bytes are."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _without_names(notes: Notes) -> dict[str, Any]:
    return {name: value for name, value in notes.dump().items() if name != "classes"}


def _split(name: str, facts: dict[str, Any], background: Any) -> list[str]:
    lines = [f"{name:13s} {count(facts['examples'], 'example')}"]
    if not facts["kinds"]:
        return lines
    kinds = sorted(facts["kinds"].items(), key=lambda kind: -kind[1])
    lines.append(" " * 14 + ", ".join(f"{number:,} {kind}" for kind, number in kinds))
    widths, heights = zip(facts["smallest"], facts["largest"], strict=True)
    lines.append(
        f"{'':13s} {_range(widths)} pixels wide and {_range(heights)} high before they are resized"
    )
    noticed = [
        f"{facts[field]:,} {text}"
        for field, text in (
            ("turned", "turned upright by EXIF"),
            ("transparent", f"with transparent parts, on {background}"),
            ("managed", "brought to sRGB by a colour profile"),
        )
        if facts[field]
    ]
    return [*lines, f"{'':13s} {'; '.join(noticed)}"] if noticed else lines


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def _classes(classes: list[dict[str, Any]], *, whole: bool) -> list[str]:
    shown = classes if whole else classes[:_SHOWN_CLASSES]
    names = [printable(entry["name"]) for entry in shown]
    width = max(map(len, [*names, "class"]))
    lines = [f"label  {'class':{width}s}  {'train':>9s}  {'test':>9s}"]
    lines += [
        f"{entry['label']:5d}  {name:{width}s}  {entry['train']:9,}  {entry['test']:9,}"
        for entry, name in zip(shown, names, strict=True)
    ]
    rest = len(classes) - len(shown)
    return [*lines, f"       and {rest:,} more"] if rest else lines
