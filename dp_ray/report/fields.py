"""The configuration reference, made from the code: what ``dp-ray config`` prints."""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic_core import PydanticUndefined

from dp_ray.config import Config
from dp_ray.config_file import describe_fields, write_yaml


def describe_config(config: Config | None) -> str:
    """YAML with each field's sentence as a comment; it can be used as a configuration file.

    Args:
        config: whose values to show; None shows defaults, and which fields must be given.
    """
    values = {} if config is None else config.dump()
    lines: list[str] = []
    section = ""
    for path, field in describe_fields():
        parent, _, name = path.rpartition(".")
        if parent and parent != section:
            lines += ["", f"{parent}:"]
        section = parent
        indent = "  " if parent else ""
        if not parent and lines:
            lines.append("")
        comment = textwrap.wrap(field.description or "", 96 - len(indent))
        lines += [f"{indent}# {line}" for line in comment]
        if config is None:
            value = field.get_default(call_default_factory=True)
            required = value is PydanticUndefined
            lines.append(f"{indent}{name}: {'# must be given' if required else _yaml(value)}")
        else:
            inner = values[parent] if parent else values
            lines.append(f"{indent}{name}: {_yaml(inner[name])}")
    return "\n".join(lines).strip()


def field_reference() -> dict[str, Any]:
    """Dotted path → default (null also where a value must be given) and description."""
    reference = {}
    for path, field in describe_fields():
        default = field.get_default(call_default_factory=True)
        required = default is PydanticUndefined
        reference[path] = {
            "default": None if required else default,
            "required": required,
            "description": field.description,
        }
    return reference


def _yaml(value: Any) -> str:
    return write_yaml(value, one_line=True).replace("\n...", "").strip()
