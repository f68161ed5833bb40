"""One-line messages for failures that Ray reports in a thousand characters, twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dp_ray.errors import DpRayError, RunError
from dp_ray.imports import cause_of

if TYPE_CHECKING:
    from ray.train import TrainingFailedError

_LONGEST = 200


def explained(error: TrainingFailedError) -> DpRayError:
    """The user's mistake inside Ray's report of it, or a short account of the failure."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, DpRayError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return RunError(
        f"{_account(failures[0] if failures else error)}. "
        "What was charged is in the ledger; --resume goes on from the last checkpoint"
    )


def _account(failure: BaseException) -> str:
    """Which worker died and where its log is; else what was raised."""
    text = str(failure)
    if "died" not in text:
        return f"training failed on a worker: {cause_of(getattr(failure, '_base_exc', failure))}"
    found = {
        name: match[1]
        for name in ("pid", "node_ip", "world_rank", "world_size", "log_file_path")
        if (match := re.search(rf"\b{name}='?([^',)\s]+)", text))
    }
    account = "a worker died: it was killed, had no memory left, or crashed"
    if {"pid", "node_ip", "world_rank", "world_size"} <= found.keys():
        account = account.replace(
            "a worker died",
            f"worker {found['world_rank']} of {found['world_size']} (counted from 0) died, "
            f"process {found['pid']} on {found['node_ip']}",
        )
    return f"{account}. Its log: {found['log_file_path']}" if "log_file_path" in found else account


@contextmanager
def first_sentences() -> Iterator[None]:
    """Print only the first sentence of each report of Ray's processes, while connected.

    Ray 2.60 prints such reports itself, and has no setting for it.
    """
    from ray._private import worker

    tell = getattr(worker, "print_to_stdstream", None)
    if tell is None:  # another version of Ray
        yield
        return

    def tell_briefly(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            data = {**data, "lines": [_first_sentence(line) for line in data["lines"]]}
        tell(data, *arguments, **options)

    worker.print_to_stdstream = tell_briefly
    try:
        yield
    finally:
        worker.print_to_stdstream = tell


def _first_sentence(text: str) -> str:
    first = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return f"{first[:_LONGEST]}."
