"""Configuration files: sections from YAML, overrides, and errors that name the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dp_ray.config.builtin import find_config
from dp_ray.config.given import given_values
from dp_ray.config.run import Config
from dp_ray.config.validation import describe_fields as fields_of
from dp_ray.config.yaml_text import MOST_CHARACTERS, read_yaml
from dp_ray.errors import ConfigError, DpRayError, shown


def load_config(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """Read a configuration, apply ``a.b=value`` overrides, and validate it.

    Args:
        path: a YAML file, or the name of a built-in configuration, such as ``digits``; or the
            values themselves, as nested mappings or as YAML text (of several lines).
        overrides: strings ``dotted.field=value``; the value is read as YAML.
        name: the run's name; default the ``name`` among the values, else the file's own name, and
            ``run`` without a file.

    Returns:
        The configuration, with every field at its value or default.

    Raises:
        ConfigError: an unknown field (the nearest known one is named) or a bad value.
        DpRayError: the file cannot be read, or is no YAML mapping.
    """
    values = read_values(path, overrides, name)
    if "tune" in values:
        raise DpRayError(f"{path} has a tune section, which is a search: use dp-ray tune {path}")
    return parse_config(values)


def read_values(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), name: str | None = None
) -> dict[str, Any]:
    """A file's plain values with overrides applied and a name; see :func:`load_config`."""
    if (given := given_values(path)) is not None:
        return _complete(given, overrides, name, Config.model_fields["name"].default)
    assert isinstance(path, str | Path)
    file_path = find_config(path)
    try:
        with file_path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # no UTF-8, or no path
        reason = getattr(error, "strerror", None) or error
        raise DpRayError(
            f"cannot read the configuration {path}: {reason}. Give a YAML file, or a name that "
            "dp-ray config --list prints"
        ) from error
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise DpRayError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise DpRayError(f"{path} must hold sections (data:, privacy:, …), not {shown(values)}")
    return _complete(values, overrides, name, file_path.stem)


def _complete(
    values: dict[str, Any], overrides: Sequence[str], name: str | None, default_name: str
) -> dict[str, Any]:
    for override in overrides:
        apply_override(values, override)
    if name is not None:
        values["name"] = name
    values.setdefault("name", default_name)
    return values


def parse_config(values: dict[str, Any]) -> Config:
    """Validates plain values; see :func:`load_config` for the errors."""
    return Config.model_validate(values)


def describe_fields(
    section: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """See :func:`dp_ray.config.validation.describe_fields`; by default of a training run."""
    return fields_of(section, prefix)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets ``a.b=value`` in plain values; the value is read as YAML.

    Raises:
        ConfigError: it is not of that form.
    """
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            "--set",
            override,
            "not of the form section.field=value",
            "Write --set privacy.delta=1e-5",
        )
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ConfigError(path, text, f"not a YAML value: {error}", "Quote it") from error
    set_field(values, path.strip(), value)


def set_field(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted field in plain values; sections that are missing or null are made.

    Raises:
        ConfigError: a part of the path is no section.
    """
    keys = path.split(".")
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        inner = values[key]
        if not isinstance(inner, dict):
            raise ConfigError(path, value, f"{key} is no section", "See dp-ray config")
        values = inner
    values[keys[-1]] = value
