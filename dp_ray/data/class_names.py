"""Names of classes: those of a run, and which folders of train/ and test/ are the same class."""

from __future__ import annotations

import os
import unicodedata

from dp_ray.config.data import DataConfig
from dp_ray.errors import ConfigError, DataError

_SHOWN = 10


def names_of_classes(config: DataConfig, found: list[str], num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes by label, as they are published; empty if there are none.

    Args:
        config: its ``class_names`` count before those of the data.
        found: names that the data has, by label; empty if it has none.
        num_classes: of the data.

    Raises:
        ConfigError: the configuration gives the data's own names in another order, so that a
            prediction would have the name of another class.
        DataError: the data has another number of names than of classes.
    """
    theirs = [os.fsencode(name).decode(errors="backslashreplace") for name in found]
    if theirs and len(theirs) != num_classes:
        raise DataError(
            f"data.name = {config.name!r}: its notes have {len(theirs)} names of classes, and "
            f"data.num_classes is {num_classes}. Make them agree"
        )
    ours = config.class_names
    if ours is None:
        return tuple(theirs)
    labels = {unicodedata.normalize("NFC", name): label for label, name in enumerate(theirs)}
    for label, name in enumerate(ours):
        other = labels.get(unicodedata.normalize("NFC", name), label)
        if other != label:
            raise ConfigError(
                "data.class_names",
                ours,
                f"{shown_name(name)} stands at label {label}, and is label {other} of the data",
                "Give the names in the order of labels, or leave them out",
            )
    return tuple(ours)


def match_classes(where: str, train: list[str], test: list[str]) -> list[tuple[str, str]]:
    """Pair the folders of each class.

    Names that differ only in their Unicode form are one name: é is one character or, as some file
    systems keep it, an e and an accent.

    Args:
        where: how the message calls the place.
        train: names of the folders in train/, in the order of labels.
        test: names of those in test/, in any order.

    Returns:
        The names in train/ and in test/, in the order of labels.

    Raises:
        DataError: one has a class that the other lacks, or has one twice; the message shows how
            names that look alike differ.
    """
    ours, theirs = _composed(where, "train", train), _composed(where, "test", test)
    if ours.keys() == theirs.keys():
        return [(name, theirs[composed]) for composed, name in ours.items()]
    only_ours = [name for composed, name in ours.items() if composed not in theirs]
    only_theirs = [name for composed, name in theirs.items() if composed not in ours]
    twins = {_skeleton(name): name for name in only_theirs}
    pairs = {name: twins[s] for name in only_ours if (s := _skeleton(name)) in twins}
    told = [
        f"train/{a!a} and test/{b!a} differ in {_difference(a, b)}"
        for a, b in list(pairs.items())[:_SHOWN]
    ]
    told += _only_in("train", [name for name in only_ours if name not in pairs])
    told += _only_in("test", [name for name in only_theirs if name not in pairs.values()])
    problem = "train/ and test/ have different class folders"
    consequence = "so equal labels would mean different classes. Give them the same names"
    counts = f"{len(only_ours)} only in train/, {len(only_theirs)} only in test/"
    raise DataError(
        f"{where}: {problem} ({'; '.join(told)}), {consequence}",
        shared=f"data.root: {problem} ({counts}), {consequence}",
    )


def order_of(name: str) -> tuple[str, str]:
    """Sort key of a name, which its Unicode form does not change."""
    return unicodedata.normalize("NFC", name), name


def shown_name(name: str) -> str:
    """A name in quotes; with its code points too if it has others than ASCII."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"


def _composed(where: str, split: str, names: list[str]) -> dict[str, str]:
    """Names by their composed form (NFC)."""
    found = dict[str, str]()
    for name in names:
        first = found.setdefault(unicodedata.normalize("NFC", name), name)
        if first != name:
            problem = "differ only in their Unicode form. Merge them, or rename one"
            raise DataError(
                f"{where}: the class folders {split}/{first!a} and {split}/{name!a} {problem}",
                shared=f"data.root: two class folders of {split}/ {problem}",
            )
    return found


def _skeleton(name: str) -> str:
    """What a reader sees of a name: without case, blanks and invisible characters."""
    visible = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in visible if c.isprintable() and not c.isspace())


def _difference(one: str, other: str) -> str:
    """Of two names with the same skeleton."""
    if one.casefold() == other.casefold():
        return "case"
    if "".join(one.split()) == "".join(other.split()):
        return "blanks"
    return "characters that look alike"


def _only_in(split: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"only in {split}/: {', '.join(map(shown_name, names[:_SHOWN]))}{more}"]
