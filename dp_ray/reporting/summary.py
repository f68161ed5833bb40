"""How a run ended, in a few lines for the terminal."""

from __future__ import annotations

from dp_ray.artifacts.claim import REPLAYED
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import RunError
from dp_ray.reporting.words import about, count, describe_epsilon


def describe_result(result: Result) -> str:
    """Return what ``dp-ray train`` prints at the end."""
    metrics = result.metrics
    known = [name for name, value in metrics.items() if value is not None]
    # Of several, the primary one, and those that are no numbers.
    shown = {n: v for i, (n, v) in enumerate(metrics.items()) if i == 0 or (known and v is None)}
    steps, planned = result.steps, result.steps_planned
    if steps == 0:
        shown = {}  # nothing was evaluated
    taken = count(steps, "step") if steps == planned else f"{steps} of {count(planned, 'step')}"
    lines = [
        f"{result.status:13s} {taken} in {about(result.seconds)}, start-up not counted",
        f"privacy       {describe_epsilon(result.epsilon, result.delta)} "
        f"({count(result.charges, 'noised sum')})",
        *_with_search(result),
        *(_metric(name, value, tested=bool(known)) for name, value in shown.items()),
        *(f"warning       {text}" for text in result.warnings),
    ]
    if result.status == "finished" and steps < planned:
        lines.append(
            "budget        used up early: repeated steps were charged again (see dp-ray ledger)"
        )
    if result.replay:
        lines.append(f"warning       {REPLAYED}")
    if result.status == "finished":
        lines.append(f"publish       {result.path}/release")
        lines.append(f"keep secret   {result.path}/private")
    else:
        lines.append("go on         the same command with --resume")
    return "\n".join(lines)


def _metric(name: str, value: float | None, *, tested: bool) -> str:
    label = f"{name.replace('_', ' '):13s}"
    if value is not None:
        return f"{label} {value:.4f}"
    if not tested:
        return f"{label} no test examples"
    return f"{label} not finite: the network gives NaN or infinity for some test images"


def _with_search(result: Result) -> list[str]:
    if result.delta_with_search is None:
        return []
    total = describe_epsilon(result.epsilon_with_search, result.delta_with_search)
    return [f"with search   {total}: what the search for this configuration spent is added"]


def describe_interruption(config: Config) -> str:
    """Return what is there of a run that was stopped at once, and how to continue it."""
    run = RunDirectory.of(config)
    if not run.exists():
        return "stopped before the run began: nothing was written, and nothing was charged"
    try:
        spent = f"{count(run.read_ledger().charges, 'noised sum')} charged"
    except (OSError, RunError):  # its last record is being written
        spent = "what was charged is in its ledger"
    return (
        f"stopped at once, {spent}; the same command with --resume continues {run.root} from its "
        "last checkpoint"
    )
