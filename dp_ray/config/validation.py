"""Plain values as sections of a configuration, and errors that name the field."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dp_ray.errors import ConfigError

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
        raise first_problem(error, section, prefix) from None


def check_keys(section: type[BaseModel], values: Any, prefix: str = "") -> None:
    """Refuses unknown fields and sections that are none; fields may be missing.

    Raises:
        ConfigError: see :func:`validate`.
    """
    if not isinstance(values, dict):
        raise _no_section(section, values, prefix)
    _refuse_unknown_keys(section, values, prefix, [p for p, _ in describe_fields(section, prefix)])


def describe_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
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
            if isinstance(value, inner):
                continue
            if not isinstance(value, dict):
                raise _no_section(inner, value, f"{prefix}{key}.")
            _refuse_unknown_keys(inner, value, f"{prefix}{key}.", fields)


def _no_section(section: type[BaseModel], value: Any, prefix: str) -> ConfigError:
    fields = ", ".join(section.model_fields)
    field = prefix.removesuffix(".") or "configuration"
    return ConfigError(field, value, "a section of fields is expected", f"Give {fields}")


def first_problem(
    error: ValidationError, section: type[BaseModel], prefix: str = ""
) -> ConfigError:
    """Return the first thing that pydantic found wrong, as an error that names the field."""
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
