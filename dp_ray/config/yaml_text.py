"""YAML in and out: plain values, as people expect them, and never more than a configuration has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

MOST_CHARACTERS = 2**18
"""Of a text, with its aliases written out; far more than any configuration has."""

_DEEPEST = 32

_IN_NO_PATH = re.compile(r"[\0\ud800-\udfff]")
"""NUL and lone surrogates: YAML's escapes can write them, and no file system takes them."""


def read_yaml(text: str) -> Any:
    """Plain values from YAML in which 1e-5 is a number, as people expect, and not a string.

    Raises:
        ValueError: it is no YAML, gives a field twice, or is larger than any configuration; said
            in one line.
    """
    try:
        if len(text) > MOST_CHARACTERS:
            raise _too_long()
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_in_one_line(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # 0x_, 2024-02-30, !!int x: PyYAML's constructors raise anything
        raise ValueError(f"it holds a value that is none of its kind: {error}") from error


def write_yaml(values: Any, *, one_line: bool = False) -> str:
    """The inverse of :func:`read_yaml`, fields in their order."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=2**16 if one_line else None,
    )
    return text


class _Loader(yaml.SafeLoader):
    """See :func:`read_yaml`."""

    def get_single_node(self) -> yaml.Node | None:
        """The document before values are made of it, checked."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check_document(node)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes strings that :class:`_Loader` would take for numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _check_document(document: yaml.Node) -> None:
    """Refuses what is no configuration: by aliases a short text can be a tree without end."""
    level, characters = [document], 0
    for _ in range(_DEEPEST):
        for node in level:
            characters += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if characters > MOST_CHARACTERS:
            raise _too_long()
        for node in level:
            _check_node(node)
        level = list(itertools.islice(_children(level), MOST_CHARACTERS))
        if not level:
            return
    raise yaml.YAMLError(f"it is nested more than {_DEEPEST} deep")


def _check_node(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and _IN_NO_PATH.search(node.value):
        raise yaml.MarkedYAMLError(
            problem="a character that no path and no name can have", problem_mark=node.start_mark
        )
    if isinstance(node, yaml.MappingNode):
        keys: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            first = keys.setdefault((key.tag, str(key.value)), key)
            if first is not key:  # YAML's loader would take the last, and say nothing
                raise yaml.MarkedYAMLError(
                    f"{key.value} is given", first.start_mark, "and again", key.start_mark
                )


def _children(nodes: Sequence[yaml.Node]) -> Iterator[yaml.Node]:
    for node in nodes:
        if isinstance(node, yaml.SequenceNode):
            yield from node.value
        elif isinstance(node, yaml.MappingNode):
            yield from itertools.chain.from_iterable(node.value)


def _too_long() -> yaml.YAMLError:
    return yaml.YAMLError(f"it has more than {MOST_CHARACTERS:,} characters, aliases written out")


def _in_one_line(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says of a text, without quoting it."""
    parts = []
    for words, mark in ((error.context, error.context_mark), (error.problem, error.problem_mark)):
        if words is not None:
            place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
            parts.append(f"{words}{place}")
    return ", ".join(parts)
