"""The documentation as tests read it: blocks, commands, inline code, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

PROGRAMS = re.compile(
    r"(dp-ray|python|pip|make|git|ray|kubectl|docker|sbatch|sed|export|\.|\(umask|[A-Z_]+=\S+)( |$)"
)
"""How a line of an indented block begins if it is a command; such blocks also hold pictures."""

INFOS = ("bash", "yaml", "python", "text", "")
"""What fenced blocks may be: commands, files and snippets, code, output, pictures."""


@dataclass(frozen=True)
class Block:
    """A fenced or indented block: its kind (``bash``, …; empty if indented or none) and content."""

    info: str
    content: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is, as its first line says: ``# name.yaml``."""
        found = re.match(r"# ([\w.]+\.(?:py|yaml))\n", self.content)
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """Its commands, each on one line, with their comments."""
        if self.info not in ("bash", ""):
            return []
        lines = re.sub(r"\\\n\s*", "", self.content).splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return [line for line in found if self.info == "bash" or PROGRAMS.match(line)]


@dataclass(frozen=True)
class Page:
    """A page of the documentation."""

    path: Path

    @property
    def name(self) -> str:
        """Its path from the repository's root."""
        return str(self.path.relative_to(ROOT))

    def tokens(self) -> list[Token]:
        """What the page consists of."""
        parser = MarkdownIt("commonmark").enable("table")
        return parser.parse(self.path.read_text(encoding="utf-8"))

    def inline(self) -> Iterator[Token]:
        """Everything within paragraphs, headings, lists and tables."""
        for token in self.tokens():
            yield from token.children or ()

    def blocks(self) -> list[Block]:
        """Fenced and indented blocks, in order."""
        return [
            Block(token.info.strip(), token.content)
            for token in self.tokens()
            if token.type in ("fence", "code_block")
        ]

    def codes(self) -> list[str]:
        """Inline code, on one line each."""
        return [" ".join(t.content.split()) for t in self.inline() if t.type == "code_inline"]

    def links(self) -> list[str]:
        """Targets of links and pictures."""
        found = []
        for token in self.inline():
            target = token.attrGet("href" if token.type == "link_open" else "src")
            if token.type in ("link_open", "image") and target is not None:
                found.append(str(target))
        return found

    def anchors(self) -> set[str]:
        """What links within the page may point to: its headings, as GitHub names them."""
        tokens = self.tokens()
        heads = [
            "".join(child.content for child in tokens[i + 1].children or ())
            for i, token in enumerate(tokens)
            if token.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def pages() -> list[Page]:
    """All pages."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md"]
    return [Page(path) for path in [*found, *sorted((ROOT / "docs").rglob("*.md"))]]


def example(file: str) -> str:
    """Return the content of an example of docs/extending.md.

    Args:
        file: the name in its first line.
    """
    [found] = [b.content for b in Page(ROOT / "docs/extending.md").blocks() if b.file == file]
    return found
