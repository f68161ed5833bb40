"""Configurations that are given as Python values or as text, and not as a file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from dp_ray.config.yaml_text import read_yaml
from dp_ray.errors import ConfigError, shown

_PLAIN = (type(None), bool, int, float, str)


def given_values(source: object) -> dict[str, Any] | None:
    """Return the plain values that a mapping or a YAML text holds; None of a path.

    Args:
        source: a mapping, a text of several lines, or the path of a file.

    Raises:
        ConfigError: it is none of these, it is no YAML mapping, or it holds an object.
    """
    if isinstance(source, Mapping):
        values: dict[str, Any] = _plain(source, "")
        return values
    if isinstance(source, PathLike):
        return None
    if not isinstance(source, str):
        raise ConfigError(
            "configuration",
            source,
            f"a path, a mapping or YAML text is expected, not {type(source).__name__}",
            _REMEDY,
        )
    if "\n" not in source:
        return None
    try:
        read = read_yaml(source)
    except ValueError as error:
        raise ConfigError(
            "configuration", shown(source), f"not YAML: {error}", "Correct it"
        ) from error
    if not isinstance(read, dict):
        raise ConfigError(
            "configuration", read, "sections are expected (data:, privacy:, …)", "See dp-ray config"
        )
    return read


_REMEDY = (
    "Give plain values, and pass networks, data and objectives to the function that uses them: "
    "dp_ray.train(config, model=…, data=…, objective=…)"
)


def _plain(value: Any, place: str) -> Any:
    """A value as YAML has it: mappings as dict, tuples as lists, paths as text."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(v, f"{place}.{key}".lstrip(".")) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, place) for v in value]
    if isinstance(value, PathLike):
        return str(value)
    raise ConfigError(
        place, value, f"an object of type {type(value).__name__} is no value of a file", _REMEDY
    )
