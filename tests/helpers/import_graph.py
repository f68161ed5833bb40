"""The import graph of dp_ray as a picture, and its size in numbers.

``python tests/helpers/import_graph.py --out docs/architecture.svg`` draws it; ``--source`` names
the ``dp_ray`` folder of another checkout.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import statistics
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

PACKAGE = Path(__file__).parents[2] / "dp_ray"

_ROW, _BOX, _TOP = 40, 150, 46
_STYLE = {"needed": "#334155", "implied": "#cbd5e1", "upward": "#dc2626"}

Edges = set[tuple[str, str]]
"""Who imports whom."""


def read_files(package: Path) -> dict[str, ast.Module]:
    """Return the files of a package, by their paths within it."""
    return {
        str(path.relative_to(package)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


def imports_of_files(files: dict[str, ast.Module]) -> Edges:
    """Return which file imports which, anywhere in it."""
    found = set()
    for file, tree in files.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dp_ray"):
                path = "/".join((node.module or "").split(".")[1:])
                names = [f"{path}/{alias.name}".lstrip("/") for alias in node.names]
                for candidate in (*(f"{name}.py" for name in names), f"{path}.py"):
                    if candidate in files and candidate != file:
                        found.add((file, candidate))
    return found


def folder_of(file: str) -> str:
    """Return the folder of a file; ``base`` for those that lie in none but the public surface."""
    folder, slash, _ = file.partition("/")
    if slash:
        return folder
    return "cli" if folder in ("__main__.py", "__init__.py", "cli.py") else "base"


def imports_of_folders(edges: Edges) -> Edges:
    """Return which folder imports which."""
    pairs = {(folder_of(one), folder_of(other)) for one, other in edges}
    return {(one, other) for one, other in pairs if one != other}


def best_order(edges: Edges) -> list[str]:
    """Return folders from the base upward, so that as few edges as possible run against it."""
    names = sorted({name for edge in edges for name in edge})

    @cache
    def best(placed: frozenset[str]) -> tuple[int, tuple[str, ...]]:
        if not placed:
            return 0, ()
        options = []
        for last in sorted(placed):  # imported by those below it: against the order
            below = placed - {last}
            against = sum((name, last) in edges for name in below)
            options.append((best(below)[0] + against, (*best(below)[1], last)))
        return min(options)

    return list(best(frozenset(names))[1])


def documented_order(page: Path) -> list[str] | None:
    """Return the folders of the table in docs/architecture.md; None if there is no such table."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    folders = re.findall(r"^\| `(\w+)/` \|", text.partition("## Subjects")[2], re.MULTILINE)
    return ["base", *folders] if folders else None


def implied(edges: Edges) -> Edges:
    """Return the edges that a path of others leads along."""
    reached = set(edges)
    names = {name for edge in edges for name in edge}
    for via, one, other in itertools.product(names, names, names):
        if (one, via) in reached and (via, other) in reached:
            reached.add((one, other))
    return {
        (one, other)
        for one, other in edges
        if any((one, via) in edges and (via, other) in reached for via in names - {one, other})
    }


def draw(edges: Edges, order: list[str]) -> str:
    """Return an SVG: folders from the base at the bottom, imports as arcs.

    Arcs on the right run downward. Those on the left run upward and are red.
    """
    row = {name: _TOP + _ROW * index for index, name in enumerate(reversed(order))}
    dim, upward = implied(edges), sum(row[one] > row[other] for one, other in edges)
    left = 20 + (22 * len(order) if upward else 0)
    width = max(left + _BOX + 22 * len(order), 580)
    height = _TOP + _ROW * len(order) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14">',
        "<title>Which folder of dp_ray imports which</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for one, other in sorted(edges, key=lambda edge: (edge not in dim, edge)):
        up = row[one] > row[other]
        kind = "upward" if up else "implied" if (one, other) in dim else "needed"
        # Leaves at the lower part of a box, arrives at the upper part of another.
        start, end = row[one] + (9 if up else 19), row[other] + (19 if up else 9)
        x, reach = (left, -1) if up else (left + _BOX, 1)
        bend = x + reach * (14 + 20 * abs(row[one] - row[other]) / _ROW)
        lines.append(
            f'<path d="M{x} {start} C{bend:.0f} {start} {bend:.0f} {end} {x} {end}" fill="none" '
            f'stroke="{_STYLE[kind]}" stroke-width="{1.2 if kind == "implied" else 1.8}">'
            f"<title>{escape(one)} imports {escape(other)}</title></path>"
        )
        tip = f"M{x} {end} l{7 * reach} -3.5 v7 z"
        lines.append(f'<path d="{tip}" fill="{_STYLE[kind]}"/>')
    for name, y in row.items():
        lines.append(
            f'<rect x="{left}" y="{y}" width="{_BOX}" height="28" rx="5" fill="#e0f2fe" '
            f'stroke="#0369a1"/><text x="{left + _BOX / 2:.0f}" y="{y + 19}" '
            f'text-anchor="middle">{escape(name)}</text>'
        )
    lines.append(
        f'<text x="20" y="26">Which folder imports which: {len(edges)} edges, {upward} upward'
        "</text>"
    )
    lines.append(
        f'<text x="20" y="{height - 14}" fill="#64748b" font-size="11">Light arcs are implied by '
        "dark ones. cli: with __init__ and __main__. base: files of no folder.</text>"
    )
    return "\n".join([*lines, "</svg>", ""])


def function_lines(tree: ast.Module) -> Iterable[tuple[int, str]]:
    """Yield length (without the docstring) and name of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) is not None
            less = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
            yield (node.end_lineno or 0) - node.lineno + 1 - less, node.name


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=PACKAGE, help="a dp_ray folder")
    parser.add_argument("--out", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    files = read_files(arguments.source)
    edges = imports_of_files(files)
    folders = imports_of_folders(edges)
    page = arguments.source.parent / "docs/architecture.md"
    order = documented_order(page) or best_order(folders)
    if arguments.out is not None:
        arguments.out.write_text(draw(folders, order), encoding="utf-8")
    against = sum(order.index(one) < order.index(other) for one, other in folders)
    lengths = {
        name: len((arguments.source / name).read_text(encoding="utf-8").splitlines())
        for name in files
        if Path(name).name != "__init__.py"
    }
    longest = max(lengths, key=lambda name: lengths[name])
    functions = [(n, f"{f} {name}") for f, t in files.items() for n, name in function_lines(t)]
    print(f"imports between files: {len(edges)}")
    print(f"imports between folders: {len(folders)}, of them upward: {against}")
    print(f"order, base first: {' '.join(order)}")
    print(f"files: {len(lengths)}, median {statistics.median(lengths.values()):.0f} lines")
    print(f"longest file: {longest}, {lengths[longest]} lines")
    print("longest function: {1}, {0} lines".format(*max(functions)))


if __name__ == "__main__":
    main()
