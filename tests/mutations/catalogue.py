"""The deliberate faults, and how one is put into the source.

They are listed in ``guarantees/``, one file for each guarantee. A fault names the piece of source
that it replaces. Pieces are compared token by token, so line breaks, indentation, comments and
trailing commas do not matter; anything else must be as it stands there, exactly once.
"""

from __future__ import annotations

import io
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parent.parent.parent
_FOLDER = Path(__file__).parent / "guarantees"
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class OutOfDateError(Exception):
    """The list does not fit the source any more."""


class Mutation(BaseModel):
    """One deliberate fault.

    Attributes:
        name: what is wrong, in words.
        file: of the source, from the root of the repository.
        piece: what is replaced: whole statements or expressions, all brackets closed.
        becomes: what takes its place.
        test: node id of the test that fails for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    file: str
    piece: str
    becomes: str
    test: str

    def applied_to(self, source: str) -> str:
        """The source with the fault in it.

        Raises:
            OutOfDateError: the piece is not there exactly once.
        """
        wanted, present = _tokens(self.piece), _tokens(source)
        texts, size = [t.text for t in wanted], len(wanted)
        found = [
            i
            for i in range(len(present) - size + 1)
            if [t.text for t in present[i : i + size]] == texts
        ]
        if len(found) != 1:
            raise OutOfDateError(
                f"{self.name}: its piece is {len(found)} times in {self.file}, and not once. The "
                "source has changed: bring tests/mutations/guarantees up to date"
            )
        start, end = present[found[0]].start, present[found[0] + size - 1].end
        line = source.rfind("\n", 0, start) + 1
        margin = source[line : len(source) - len(source[line:].lstrip())]
        becomes = textwrap.indent(self.becomes.strip(), margin).strip()
        return source[:start] + becomes + source[end:]


class Guarantee(BaseModel):
    """What must hold, and the faults that break it.

    Attributes:
        number: of the guarantee, from 1.
        title: in a few words.
        statement: what holds.
        mutations: the faults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    title: str
    statement: str
    mutations: list[Mutation]


def load_guarantees() -> list[Guarantee]:
    """All guarantees in their order.

    Raises:
        pydantic.ValidationError: a file is not as it should be.
    """
    files = sorted(_FOLDER.glob("*.yaml"))
    return [Guarantee(**yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]


class Exercised(BaseModel):
    """Something that a user supplies, and how a run tries it before its first charge.

    Attributes:
        supplied: what.
        exercised: how.
        where: by which part of the run.
        test: node id of a test in which a fault of it is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    supplied: str
    exercised: str
    where: str
    test: str


def load_exercised() -> list[Exercised]:
    """The table of what is exercised before the first charge.

    Raises:
        pydantic.ValidationError: the file is not as it should be.
    """
    text = (_FOLDER.parent / "exercised.yaml").read_text(encoding="utf-8")
    return [Exercised(**values) for values in yaml.safe_load(text)]


class _Token(NamedTuple):
    """A token and where it stands in the source."""

    text: str
    start: int
    end: int


def _tokens(source: str) -> list[_Token]:
    """All tokens that mean something."""
    lines = source.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    found = [
        _Token(t.string, offsets[t.start[0] - 1] + t.start[1], offsets[t.end[0] - 1] + t.end[1])
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type not in _LAYOUT
    ]
    following = [t.text for t in found[1:]] + [""]
    return [
        t
        for t, after in zip(found, following, strict=True)
        if not (t.text == "," and after in (")", "]", "}"))
    ]
