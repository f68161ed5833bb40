"""The configuration reference, made from the code: docs/configuration.md.

``python -m dp_ray.reporting.reference FILE`` writes it; with ``--check`` it writes nothing, and the
exit code is 1 if the file is not what the code says.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dp_ray.config.run import Config
from dp_ray.config.search import Domain, TuneConfig
from dp_ray.config.validation import section_of
from dp_ray.reporting.fields import as_yaml, described

HEAD = """\
# Configuration

Made from the code by `make docs`. `dp-ray config` prints the same in a terminal, and
`dp-ray config FILE` a file with its values. A run is a YAML file of these sections; a search has a
`tune` section besides. `--set section.field=value` overrides a field for one command: the value is
read as YAML, in which 1e-5 is a number, and `null` unsets. An unknown field, or a value of another
type or out of bounds, is refused before any data is read.

What may differ when a run is resumed is in [how_to/resume.md](how_to/resume.md); what ε and δ mean
is in [privacy.md](privacy.md).
"""

FOOT = """\
## One entry of `tune.space`

A dotted field and its values, of exactly one kind: `augment.views: {choice: [1, 2, 4]}`.
"""

_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "at least {}",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
}
_TYPES = {"string": "text", "boolean": "true or false", "integer": "whole number"}


def configuration_page() -> str:
    """The whole page: a table for each section, a line for each field."""
    parts = [HEAD, *_section("", Config), *_section("tune", TuneConfig), FOOT]
    return "\n".join([*parts, *_table("", Domain)])


def _section(path: str, section: type[BaseModel]) -> Iterator[str]:
    """Heading, sentence and table of a section, and of those within it."""
    fields = section.model_fields.items()
    inner = {name: found for name, field in fields if (found := section_of(field)) is not None}
    if path:
        yield f"## `{path}`\n\n{inspect.getdoc(section)}\n"
        yield from _table(path, section)
    for name, found in inner.items():
        yield from _section(f"{path}.{name}" if path else name, found)
    if not path:
        yield "## Beside the sections\n"
        yield from _table(path, section)


def _table(path: str, section: type[BaseModel]) -> Iterator[str]:
    """A line for each field; of those that are sections, only the ones that may be null."""
    properties = section.model_json_schema()["properties"]
    yield "| field | value | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in section.model_fields.items():
        if section_of(field) is field.annotation:
            continue
        default = field.get_default(call_default_factory=True)
        shown = "must be given" if default is PydanticUndefined else f"`{as_yaml(default)}`"
        full = f"{path}.{name}" if path else name
        cells = (f"`{full}`", _in_words(properties[name]), shown, described(full, field))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _in_words(schema: dict[str, Any]) -> str:
    """Type and bounds, from the JSON schema that pydantic makes of a field."""
    if "anyOf" in schema:
        return " or ".join(_in_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "a section"
    kind = schema.get("type", "anything")
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        number = f" of {most}" if most is not None and most == least else ""
        number = " of at least one" if least == 1 and most is None else number
        return f"list{number}: {_in_words(schema['items'])}"
    if kind == "object":
        inner = schema.get("additionalProperties", True)
        return "mapping" if inner is True else f"mapping to {_in_words(inner)}"
    word = _TYPES.get(kind, kind)
    bounds = [text.format(_number(schema[key])) for key, text in _BOUNDS.items() if key in schema]
    if "pattern" in schema:
        bounds.append(f"`{schema['pattern']}`")
    return f"{word} {' and '.join(bounds)}".strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def main(words: Sequence[str] | None = None) -> int:
    """See the module.

    Args:
        words: of the command; by default those that this program was called with.
    """
    parser = argparse.ArgumentParser(description="Write the configuration reference.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    arguments = parser.parse_args(words)
    page = configuration_page()
    if not arguments.check:
        arguments.file.write_text(page, encoding="utf-8")
        return 0
    if arguments.file.exists() and arguments.file.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"{arguments.file} is not what the code says: make docs writes it\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
