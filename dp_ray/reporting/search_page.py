"""A search as one HTML page with charts; it needs no network.

Charts: parallel coordinates, the metric against each field, K against the metric and its time,
and what each trial spent beside what the search spends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dp_ray.artifacts.statement import Statement
from dp_ray.reporting.charts import BLUE, MUTED, ORANGE, RED, Chart, draw
from dp_ray.reporting.page import cost_in_words, render, said_of
from dp_ray.reporting.statement import figures
from dp_ray.reporting.words import (
    describe_point,
    duration,
    table_fields,
    without_paths,
)
from dp_ray.search.result import SearchResult, TrialResult, Winner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 8
"""So many whole numbers get a tick each."""

_PRIVATE = (
    "Private: ε holds only while nothing on this page is published or acted upon, the number of "
    "trials included. The best trial alone is in release/."
)
PUBLIC = (
    "This page may be published: every trial was charged or is of public data, scores are of a "
    "public test split, and times are rounded."
)
"""On the page, and in docs/privacy.md."""


def may_be_published(privacy_mode: str) -> bool:
    """Whether the page of a search in that mode holds nothing private."""
    return privacy_mode != "private_selection"


def sweep_page(result: SearchResult, statement: Statement | None) -> str:
    """Return the page, from all that there is to say of a finished search.

    Args:
        result: of the search.
        statement: of the released model; None if none is.
    """
    best = result.best
    notices = [PUBLIC if may_be_published(result.privacy_mode) else _PRIVATE]
    if result.warning is not None:
        notices.append(result.warning)
    return render(
        "sweep.html",
        title=result.name,
        name=result.name,
        cost=_cost(result),
        how=f"Of the whole search, by {result.accountant}: {result.how}.",
        best=None if best is None else _best(best, result.metric),
        notices=notices,
        said=None if statement is None else said_of(statement),
        figures=[] if statement is None else figures(statement),
        charts=_charts(result),
        heads=_heads(result),
        rows=[_row(result, trial) for trial in result.trials],
        again="With the file that the search was started from; DATA is the images' folder, if they "
        "have one. Trials are drawn anew, and what they spend comes on top. best.yaml trains "
        "the best trial again.",
        command="dp-ray tune SEARCH.yaml --set data.root=DATA\n"
        "dp-ray train best.yaml --set data.root=DATA",
    )


def _best(best: Winner, metric: str) -> str:
    return (
        f"Best: {metric} {best.metrics[metric]:.4f} at {describe_point(best.parameters)}. Its own "
        f"ε is {_epsilon(best.epsilon_of_this_run_alone)}, which is not the cost."
    )


def _cost(result: SearchResult) -> str:
    if result.privacy_mode == "public":
        return "ε of the search = 0: the data is declared public"
    return cost_in_words(result.epsilon_of_search, result.delta)


def _charts(result: SearchResult) -> list[Chart]:
    metric = result.metric
    trials = [t for t in result.trials if t.metrics[metric] is not None]
    found = []
    if len(trials) > 1:
        found.append(
            draw(
                "All fields at once",
                f"A line is a trial; the better its {_in_words(metric)}, the stronger. The best is "
                "orange.",
                lambda axes: _parallel(axes, trials, result),
                height=3.4,
            )
        )
    if trials:
        found += [
            draw(
                _in_words(f"{metric} against {_short(field)}"),
                "A point is a trial; the best is orange.",
                _against(field, trials, result),
            )
            for field in _varied(trials)
        ]
        if len({trial.views for trial in trials}) > 1:
            found.append(
                draw(
                    "Time of a trial by its views (K)",
                    "K views cost K times the work. A point is a trial, a bar the mean.",
                    lambda axes: _times(axes, trials),
                )
            )
    if result.trials:
        found.append(
            draw(
                "Budget",
                "ε that each trial spent by its ledger, and what the whole search spends.",
                lambda axes: _budget(axes, result),
            )
        )
    return found


def _parallel(axes: Axes, trials: list[TrialResult], result: SearchResult) -> None:
    metric, fields = result.metric, _varied(trials)
    columns = [[_place(trial.parameters[f], f, trials) for trial in trials] for f in fields]
    values = [trial.metrics[metric] or 0.0 for trial in trials]
    columns.append([_between(value, values) for value in values])
    larger = result.mode == "max"
    for i, trial in enumerate(trials):
        best = trial.name == result.best_trial
        good = columns[-1][i] if larger else 1 - columns[-1][i]
        axes.plot(
            range(len(columns)),
            [column[i] for column in columns],
            color=ORANGE if best else BLUE,
            alpha=1.0 if best else 0.25 + 0.6 * good,
            linewidth=2.4 if best else 1.6,
            zorder=3 if best else 2,
        )
    for x, field in enumerate([*fields, None]):
        shown = values if field is None else [trial.parameters[field] for trial in trials]
        for height, text in _ends(shown):
            axes.annotate(
                text,
                (x, height),
                xytext=(0, 7 if height else -15),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=9,
            )
    names = [_in_words(name) for name in (*map(_short, fields), metric)]
    axes.set_xticks(range(len(columns)), names, rotation=20, ha="right")
    axes.tick_params(axis="x", pad=12)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.12)
    axes.margins(x=0.14)
    axes.grid(visible=True, axis="x")
    axes.spines[["left", "bottom"]].set_visible(False)


def _against(field: str, trials: list[TrialResult], result: SearchResult) -> Callable[[Axes], None]:
    metric = result.metric

    def paint(axes: Axes) -> None:
        values = [trial.parameters[field] for trial in trials]
        numeric = all(_is_number(value) for value in values)
        names = _order(values)
        places = [float(v) if numeric else float(names.index(str(v))) for v in values]
        colours = [ORANGE if t.name == result.best_trial else BLUE for t in trials]
        heights = [trial.metrics[metric] or 0.0 for trial in trials]
        axes.scatter(places, heights, c=colours, s=36, alpha=0.85)
        if not numeric:
            axes.set_xticks(range(len(names)), names)
        elif _are_few(values):
            axes.set_xticks(sorted(set(values)))
        axes.set(xlabel=_in_words(_short(field)), ylabel=_in_words(metric))

    return paint


def _times(axes: Axes, trials: list[TrialResult]) -> None:
    order = sorted({trial.views for trial in trials})
    by_views = [[t.seconds for t in trials if t.views == views] for views in order]
    means = [sum(seconds) / len(seconds) for seconds in by_views]
    axes.bar(range(len(order)), means, color=BLUE, alpha=0.3)
    for place, seconds in enumerate(by_views):
        axes.plot([place] * len(seconds), seconds, "o", color=BLUE)
    axes.set_xticks(range(len(order)), [str(views) for views in order])
    axes.set(xlabel="K", ylabel="seconds")
    axes.grid(visible=False, axis="x")


def _budget(axes: Axes, result: SearchResult) -> None:
    trials, total = result.trials, result.epsilon_of_search
    colours = [ORANGE if t.name == result.best_trial else BLUE for t in trials]
    spent = [trial.epsilon or 0.0 for trial in trials]
    axes.bar(range(len(trials)), spent, color=colours)
    axes.axhline(total, color=RED, linestyle="--", linewidth=1.5)
    axes.annotate(
        f"the search: {total:.3f}",
        (1, total),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=RED,
    )
    axes.set_ylim(top=1.15 * max([total, *spent]) or 1)
    axes.set_xticks([])
    axes.set(xlabel="trials, in the order of the table", ylabel="ε")
    axes.grid(visible=False, axis="x")


def _heads(result: SearchResult) -> list[str]:
    fields = [
        _short(field) for field in table_fields([trial.parameters for trial in result.trials])
    ]
    return ["trial", result.metric, *fields, "σ", "T", "ε", "time", "starts", "status"]


def _columns(result: SearchResult) -> list[str]:
    return table_fields([trial.parameters for trial in result.trials])


def _row(result: SearchResult, trial: TrialResult) -> dict[str, Any]:
    failed = ""
    if trial.error:  # which may name a file of the data
        public = may_be_published(result.privacy_mode)
        told = f": {without_paths(trial.error)}"
        failed = " (private/results.json says why)" if public else told
    return {
        "best": trial.name == result.best_trial,
        "cells": [
            trial.name,
            _number(trial.metrics[result.metric]),
            *(_number(trial.parameters[field]) for field in _columns(result)),
            _number(trial.noise_multiplier),
            trial.steps_planned,
            _epsilon(trial.epsilon),
            duration(trial.seconds),
            trial.attempts,
            trial.status + failed,
        ],
    }


def _varied(trials: list[TrialResult]) -> list[str]:
    """Fields that differ among trials; all of them if none does."""
    fields = list(trials[0].parameters)
    varied = [f for f in fields if len({str(t.parameters[f]) for t in trials}) > 1]
    return varied or fields


def _place(value: Any, field: str, trials: list[TrialResult]) -> float:
    """Where a value is between the least and the largest of its field; names go by the alphabet."""
    values = [trial.parameters[field] for trial in trials]
    if all(_is_number(v) for v in values):
        return _between(float(value), [float(v) for v in values])
    names = _order(values)
    return _between(names.index(str(value)), list(range(len(names))))


def _between(value: float, values: list[Any]) -> float:
    low, high = min(values), max(values)
    return 0.5 if low == high else (value - low) / (high - low)


def _ends(values: list[Any]) -> list[tuple[float, str]]:
    """What stands at the lower and the upper end of a field's axis."""
    order = sorted(values) if all(_is_number(v) for v in values) else _order(values)
    if order[0] == order[-1]:
        return [(0.5, _number(order[0]))]
    return [(0.0, _number(order[0])), (1.0, _number(order[-1]))]


def _order(values: list[Any]) -> list[str]:
    return sorted({str(value) for value in values})


def _in_words(name: str) -> str:
    """A field or metric as a label."""
    return name.replace("_", " ")


def _short(field: str) -> str:
    return field.rpartition(".")[2]


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _epsilon(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _are_few(values: list[Any]) -> bool:
    return all(isinstance(v, int) for v in values) and len(set(values)) <= _FEW


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
