"""The configuration reference, made from the code: what ``dp-ray config`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dp_ray.config.files import describe_fields
from dp_ray.config.run import Config
from dp_ray.config.search import TuneConfig
from dp_ray.config.yaml_text import write_yaml
from dp_ray.data.sources.registry import SOURCES
from dp_ray.gradients.engines.registry import ENGINES

_NAMES: dict[str, Iterable[str]] = {"data.name": SOURCES, "train.engine": ("auto", *ENGINES)}
"""Fields whose values are the names of a registry."""


def describe_config(config: Config | None) -> str:
    """YAML with each field's sentence as a comment; it can be used as a configuration file.

    Args:
        config: whose values to show; None shows defaults, which fields must be given, and the
            section that searches have.
    """
    values = {} if config is None else config.dump()
    lines: list[str] = []
    section = ""
    for path, field in describe_fields():
        parent, _, name = path.rpartition(".")
        if "." in parent:  # of a section that may be null
            lines += [f"  {line}" for line in _as_comments(name, field)]
            continue
        if parent and parent != section:
            lines += ["", f"{parent}:"]
        section = parent
        indent = "  " if parent else ""
        if not parent and lines:
            lines.append("")
        comment = textwrap.wrap(described(path, field), 96 - len(indent))
        lines += [f"{indent}# {line}" for line in comment]
        if config is None:
            value = field.get_default(call_default_factory=True)
            required = value is PydanticUndefined
            lines.append(f"{indent}{name}: {'# must be given' if required else as_yaml(value)}")
        else:
            inner = values[parent] if parent else values
            lines.append(f"{indent}{name}: {as_yaml(inner[name])}")
    return "\n".join(lines if config is not None else [*lines, *_search_fields()]).strip()


def described(path: str, field: FieldInfo) -> str:
    """Return a field's sentence, followed by the names that its registry has."""
    sentence = field.description or ""
    names = _NAMES.get(path)
    return f"{sentence} Names: {', '.join(names)}." if names else sentence


def _search_fields() -> list[str]:
    """The section that searches have, as comments: a run has none."""
    lines = ["", "# Of searches only (dp-ray tune):", "# tune:"]
    for path, field in describe_fields(TuneConfig, "tune."):
        lines += _as_comments(path.removeprefix("tune."), field)
    return lines


def _as_comments(name: str, field: FieldInfo) -> list[str]:
    lines = [f"#   # {line}" for line in textwrap.wrap(field.description or "", 90)]
    default = field.get_default(call_default_factory=True)
    value = "(must be given)" if default is PydanticUndefined else as_yaml(default)
    return [*lines, f"#   {name}: {value}"]


def field_reference() -> dict[str, Any]:
    """Dotted path → default (null also where a value must be given) and description."""
    reference = {}
    for path, field in (*describe_fields(), *describe_fields(TuneConfig, "tune.")):
        default = field.get_default(call_default_factory=True)
        required = default is PydanticUndefined
        reference[path] = {
            "default": None if required else default,
            "required": required,
            "description": described(path, field),
        }
    return reference


def as_yaml(value: Any) -> str:
    """A value as it stands behind a field's name, on one line."""
    return write_yaml(value, one_line=True).replace("\n...", "").strip()
