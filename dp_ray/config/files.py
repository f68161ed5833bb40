"""Configuration files: sections from YAML, overrides, and errors that name the field."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dp_ray.config.builtin import find_config
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import MOST_CHARACTERS, read_yaml
from dp_ray.errors import ConfigError, DpRayError, shown


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """Reads a configuration, applies ``a.b=value`` overrides, validates.

    Args:
        path: a YAML file, or the name of a built-in configuration, such as ``digits``.
        overrides: strings ``dotted.field=value``; the value is read as YAML.
        name: the run's name; default the file's ``name``, else the file's own name.

    Raises:
        ConfigError: an unknown field (the nearest known one is named) or a bad value.
        DpRayError: the file cannot be read, or is no YAML mapping.
    """
    values = read_values(path, overrides, name)
    if "tune" in values:
        raise DpRayError(f"{path} has a tune section, which is a search: use dp-ray tune {path}")
    return parse_config(values)


def read_values(
    path: str | Path, overrides: Sequence[str] = (), name: str | None = None
) -> dict[str, Any]:
    """A file's plain values with overrides applied and a name; see :func:`load_config`."""
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
    for override in overrides:
        apply_override(values, override)
    if name is not None:
        values["name"] = name
    values.setdefault("name", file_path.stem)
    return values


def parse_config(values: dict[str, Any]) -> Config:
    """Validates plain values; see :func:`load_config` for the errors."""
    return validate(Config, values)


SectionType = TypeVar("SectionType", bound=BaseModel)


def validate(section: type[SectionType], values: Any, prefix: str = "") -> SectionType:
    """Plain values as a section.

    Args:
        section: its type.
        values: what was read.
        prefix: dotted path of the section, with a dot at its end, for messages.

    Raises:
        ConfigError: an unknown field (the nearest known one is named) or a bad value.
    """
    check_keys(section, values, prefix)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, section, prefix) from None


def check_keys(section: type[BaseModel], values: Any, prefix: str = "") -> None:
    """Refuses unknown fields and sections that are none; fields may be missing.

    Raises:
        ConfigError: see :func:`validate`.
    """
    if not isinstance(values, dict):
        raise _no_section(section, values, prefix)
    _refuse_unknown_keys(section, values, prefix, [p for p, _ in describe_fields(section, prefix)])


def describe_fields(
    section: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every field as (dotted path, description and default), sections in order.

    A section that may be null is a field, and its own fields follow.
    """
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is not field.annotation:
            yield prefix + name, field
        if inner is not None:
            yield from describe_fields(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field is, or is unless it is null."""
    union = isinstance(field.annotation, UnionType)
    for annotation in get_args(field.annotation) if union else (field.annotation,):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None


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


def _refuse_unknown_keys(
    section: type[BaseModel], values: dict[str, Any], prefix: str, fields: list[str]
) -> None:
    known = section.model_fields
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            hints = [path for path in fields if path.endswith(f".{key}")]
            hints += [prefix + name for name in near]
            raise ConfigError(
                f"{prefix}{key}",
                value,
                "no such field",
                f"Did you mean {hints[0]}? There are {', '.join(known)}; see dp-ray config",
            )
        inner = section_of(known[key])
        optional = inner is not known[key].annotation
        if inner is not None and not (optional and value is None):
            if not isinstance(value, dict):
                raise _no_section(inner, value, f"{prefix}{key}.")
            _refuse_unknown_keys(inner, value, f"{prefix}{key}.", fields)


def _no_section(section: type[BaseModel], value: Any, prefix: str) -> ConfigError:
    fields = ", ".join(section.model_fields)
    field = prefix.removesuffix(".") or "configuration"
    return ConfigError(field, value, "a section of fields is expected", f"Give {fields}")


def _first_problem(error: ValidationError, section: type[BaseModel], prefix: str) -> ConfigError:
    problem = error.errors(include_url=False)[0]
    location = [*prefix.split(".")[:-1], *(str(part) for part in problem["loc"])]
    # Branches of a union (int | None) add parts that are no field; keep what names a field.
    described = {path: field.description for path, field in describe_fields(section, prefix)}
    while len(location) > max(2, prefix.count(".")) and ".".join(location) not in described:
        location.pop()
    field = ".".join(location) or "configuration"
    remedy = described.get(field) or "See dp-ray config"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if problem["type"] == "string_pattern_mismatch":
        message = "it has a character that is not allowed there"
    if problem["type"] == "missing":
        return ConfigError(field, None, "must be given", remedy)
    value = problem.get("input")
    if isinstance(value, BaseModel) or (isinstance(value, dict) and len(location) == 1):
        value = {k: v for k, v in dict(value).items() if v is not None}
    return ConfigError(field, value, message, remedy)
