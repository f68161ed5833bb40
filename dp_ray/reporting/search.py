"""A search in words: what ``dp-ray tune`` prints before and after."""

from __future__ import annotations

from typing import Any

from dp_ray.config.search import SweepConfig
from dp_ray.reporting.words import count, describe_epsilon, describe_point, duration, table_fields
from dp_ray.search.cost import SearchCost
from dp_ray.search.directory import SweepDirectory
from dp_ray.search.result import SearchSummary, TrialResult, Winner
from dp_ray.search.search import Search, trial_count


def describe_search(search: Search, cost: SearchCost) -> str:
    """What is about to be searched and what it will cost, before anything is spent."""
    tune = search.sweep.tune
    number = f"{search.most_trials}"
    if tune.only_best_may_be_seen:
        chosen = trial_count(tune)
        number = f"{tune.num_samples} on average ({chosen.distribution.replace('_', ' ')})"
    elif tune.privacy_mode == "compose" and tune.searcher == "random":
        number += " (ε is of this draw: another costs a little more or less; a seed fixes it)"
    plans = search.budgets.solved.values()
    sigmas, steps = [p.noise_multiplier for p in plans], [p.steps for p in plans]
    batches = sorted({plan.expected_batch_size for plan in plans})
    each = max(plan.epsilon for plan in plans)
    lines = [
        _heading(cost.epsilon, cost.delta, cost.accountant, cost.how),
        f"trials        {number}, by {tune.searcher}"
        + ("" if tune.scheduler == "none" else f" with {tune.scheduler}"),
        f"budgets       {count(len(plans), 'way')} to spend {describe_epsilon(each, cost.delta)}: "
        f"σ {_span(sigmas, '.4g')}, T {_span(steps, 'd')}, B̄ {_span(batches, 'd')}",
    ]
    lines.append(f"compared by   {search.metric} on the test split, which you declare public")
    if tune.search_batch_size is not None:
        lines.append(
            f"held          σ/B̄ and T, at B̄ = {tune.search_batch_size}: there a trial spends ε = "
            f"{_span(search.budgets.trial_epsilons, '.4g')}"
        )
    lines += [f"searched      {field}: {_domain(d)}" for field, d in _space(search).items()]
    return "\n".join(lines)


def search_facts(search: Search, cost: SearchCost) -> dict[str, Any]:
    """The same as plain values; for ``--dry-run --json``."""
    return {
        "epsilon_of_search": cost.epsilon,
        "delta": cost.delta,
        "accountant": cost.accountant,
        "how": cost.how,
        "privacy_mode": search.sweep.tune.privacy_mode,
        "num_samples": search.sweep.tune.num_samples,
        "budgets": list(search.budgets.dump().values()),
    }


def describe_sweep_result(result: SearchSummary) -> str:
    """Return what ``dp-ray tune`` prints at the end."""
    if result.status != "finished":
        return "\n".join(
            [
                f"ε of search   {describe_epsilon(result.epsilon_of_search, result.delta)}",
                f"stopped       nothing is published yet; private/ is in {result.path}",
                "go on         the same command with --resume",
            ]
        )
    lines = [
        _heading(result.epsilon_of_search, result.delta, result.accountant or "", result.how or "")
    ]
    if result.best is None:
        lines.append("best          none: the random number of trials was 0")
    else:
        lines += _describe_best(result, result.best)
    if result.trials is not None:
        lines += ["", *_table(result, result.trials), ""]
        lines.append(f"look          {result.path}/report.html")
    else:
        lines.append(f"keep secret   {result.path}/private, the other trials included")
    return "\n".join(lines)


def describe_search_interruption(sweep: SweepConfig) -> str:
    """Return what is there of a search that was stopped at once, and how to continue it."""
    directory = SweepDirectory.of(sweep)
    if not directory.exists():
        return "stopped before the search began: nothing was written, and nothing was charged"
    return (
        "stopped at once, what was charged is in the ledgers of its trials; the same command with "
        f"--resume continues {directory.root}"
    )


def _heading(epsilon: float, delta: float, accountant: str, how: str) -> str:
    if epsilon == 0:
        return f"ε of search   0: {how}"
    return f"ε of search   {describe_epsilon(epsilon, delta)}, by {accountant}: {how}"


def _describe_best(result: SearchSummary, best: Winner) -> list[str]:
    metric = str(result.metric)
    alone = "none" if (own := best.epsilon_of_this_run_alone) is None else f"{own:.4f}"
    again = f"ε = {result.epsilon_with_training:.4f}"
    again = (
        f"spends {again} of the data that it is trained on"
        if result.privacy_mode == "public"
        else f"{again} in all, if it is trained again on the same data"
    )
    return [
        f"best          {metric} {best.metrics[metric]:.4f} at {describe_point(best.parameters)}",
        f"its own ε     {alone}, which is not the cost",
        f"publish       {result.path}/release",
        f"train         dp-ray train {result.path}/best.yaml: {again}",
    ]


def _table(result: SearchSummary, trials: list[TrialResult]) -> list[str]:
    """The trials, the best first."""
    metric = str(result.metric)
    ascending = 1 if result.mode == "min" else -1
    trials = sorted(
        trials,
        key=lambda t: (
            t.status != "finished",
            t.metrics[metric] is None,
            ascending * (t.metrics[metric] or 0.0),
        ),
    )
    fields = table_fields([trial.parameters for trial in trials])
    heads = ["trial", metric, *(field.rpartition(".")[2] for field in fields)]
    heads += ["σ", "T", "ε", "time", "status"]
    rows = [heads]
    for trial in trials:
        value = trial.metrics[metric]
        rows.append(
            [
                trial.name,
                "–" if value is None else f"{value:.4f}",
                *(_short(trial.parameters[field]) for field in fields),
                f"{trial.noise_multiplier:.4g}",
                str(trial.steps_planned),
                "–" if trial.epsilon is None else f"{trial.epsilon:.4f}",
                duration(trial.seconds),
                trial.status + ("" if trial.attempts < 2 else f" ({trial.attempts} starts)"),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _space(search: Search) -> dict[str, dict[str, Any]]:
    return {f: d.model_dump(exclude_none=True) for f, d in search.sweep.tune.space.items()}


def _domain(values: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {value}" for kind, value in values.items())


def _span(values: list[Any], form: str) -> str:
    low, high = min(values), max(values)
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
