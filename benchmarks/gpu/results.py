"""Results of the GPU bundle: one JSON file and one part of a table for each stage, written at once.

A stage may be killed at any moment, so each result is on disk before the next is measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

TABLE = "report.md"
STAGES = ("machine", "correctness", "speed", "learning")
"""In the order of the table; each leaves <name>.json."""


def arguments(description: str) -> argparse.ArgumentParser:
    """What every stage takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything else")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes: whether it runs")
    parser.add_argument(
        "--until",
        type=float,
        default=time.monotonic() + 240,
        help="when to end, by time.monotonic(), which all processes of a machine share",
    )
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 as JPEG: train/, test/")
    return parser


class Results:
    """The rows of one stage, on disk after each :meth:`add`; call :meth:`write` if they change.

    Args:
        out: folder of results.
        stage: one of :data:`STAGES`.
    """

    def __init__(self, out: Path, stage: str) -> None:
        self._out, self._stage = out, stage
        self._started = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """Adds a row, writes all of them, and prints it."""
        self.rows.append({**row, "at_s": round(time.monotonic() - self._started, 1)})
        self.write()
        print(self._stage, json.dumps(self.rows[-1], default=str), flush=True)

    def write(self) -> None:
        """Writes all rows and the table."""
        write(self._out / f"{self._stage}.json", json.dumps(self.rows, indent=1, default=str))
        write_table(self._out)


def read(out: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage; none if it has not begun."""
    try:
        rows: list[dict[str, Any]] = json.loads((out / f"{stage}.json").read_text())
    except (OSError, ValueError):
        return []
    return rows


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def write_table(out: Path) -> None:
    """Writes the table of all stages that have results."""
    parts = [f"## {stage}\n\n{table(rows)}" for stage in STAGES if (rows := read(out, stage))]
    write(out / TABLE, "# dp-ray on a GPU\n\n" + "\n".join(parts))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a column for each key of the rows, in the order of their appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "detail"))
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "/").split())[:200]


def in_short(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
