"""The configurations that come with dp-ray, by name: ``digits``, ``sweeps/digits``."""

from __future__ import annotations

import difflib
from pathlib import Path

from dp_ray.errors import DpRayError

_FOLDER = Path(__file__).parents[1] / "configs"


def builtin_names() -> list[str]:
    """Return the names of all built-in configurations, sorted."""
    files = (path.relative_to(_FOLDER) for path in _FOLDER.glob("**/*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files)


def builtin_file(name: str) -> Path:
    """Return the file of a built-in configuration."""
    return _FOLDER / f"{name}.yaml"


def describe_builtins() -> dict[str, str]:
    """Return each built-in name with the first line of its file, a comment."""
    texts = {name: builtin_file(name).read_text(encoding="utf-8") for name in builtin_names()}
    return {name: text.partition("\n")[0].removeprefix("# ") for name, text in texts.items()}


def find_config(location: str | Path) -> Path:
    """Return the file of a configuration, given by its path or by a built-in name.

    A file of that path comes before a built-in configuration of that name.

    Args:
        location: a path, or a name such as ``digits``.

    Raises:
        DpRayError: there is neither such a file nor such a name; the nearest name is given.
    """
    path, names = Path(location), builtin_names()
    try:
        if path.as_posix() in names and not path.is_file():
            return builtin_file(path.as_posix())
        if path.exists():
            return path
    except (OSError, ValueError):
        return path  # opening it says what is wrong
    name = path.with_suffix("").as_posix().removeprefix("configs/")
    near = [known for known in names if known.rpartition("/")[2] == name.rpartition("/")[2]]
    near = near or difflib.get_close_matches(name, names, n=1)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    raise DpRayError(
        f"cannot read the configuration {location}: there is no such file, and no built-in "
        f"configuration of that name. {meant}Give a YAML file, or a name that "
        "dp-ray config --list prints"
    )
