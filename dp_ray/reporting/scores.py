"""Scores of single test examples as a table in a file: exact, and private as they are."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.errors import ConfigError
from dp_ray.reporting.output import OutputFile
from dp_ray.storage import open_folder

_OPTION = "--scores"


def scores_file(run: str, given: str) -> OutputFile:
    """Return where scores go: a name by itself is a file in the run's private part.

    Args:
        run: path or URI of a run or of a release folder.
        given: a name, a path or a URI.

    Raises:
        ConfigError: it is no .csv, it lies in a release, or the run has no private part.
    """
    file = OutputFile.given(given, _OPTION, (".csv",))
    if "/" not in given:
        directory = RunDirectory(open_folder(run))
        if not directory.exists():
            raise ConfigError(
                _OPTION, given, f"{run} has no private part for it", f"Give a path, ./{given}"
            )
        directory.check_private()
        file = OutputFile(directory.private, given, _OPTION)
    return file.check_unpublished()


def scores_table(examples: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> bytes:
    """Return CSV with a row for each test example, in the order of the source.

    Args:
        examples: columns [N] or [N, …] by name; see
            :class:`~dp_ray.training.evaluate_run.ScoredRun`.
        class_names: by label; columns of labels have names where there are some.
    """
    columns: dict[str, Sequence[Any]] = {}
    for name, values in examples.items():
        rows = values.reshape(len(values), -1).T.tolist()
        shown = {"labels": "label"}.get(name, name)
        if len(rows) == 1:
            columns[shown] = rows[0]
            if name in ("labels", "predicted") and class_names:
                columns[f"{shown}_name"] = [class_names[label] for label in rows[0]]
        else:
            columns |= {f"{shown}_{i}": row for i, row in enumerate(rows)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["example", *columns])
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow([number, *row])
    return text.getvalue().encode()
