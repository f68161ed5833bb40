"""A run as an HTML page and as a model card: plain words first, figures after."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

from dp_ray.artifacts.course import Evaluated
from dp_ray.artifacts.statement import Statement
from dp_ray.ledger.execution import Execution
from dp_ray.objectives.useless import class_label
from dp_ray.reporting.charts import BLUE, MUTED, ORANGE, Chart, draw, line_chart
from dp_ray.reporting.page import cost_in_words, render, said_of
from dp_ray.reporting.run_facts import PrivateFacts, RunFacts
from dp_ray.reporting.statement import accuracy_in_words, figures, privacy_profile
from dp_ray.reporting.words import count, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_CLASSES = 100


def run_page(facts: RunFacts) -> str:
    """The page; without its private section if the facts have none."""
    profile = privacy_profile(facts.statement)
    private = None if facts.private is None else _private_part(facts, facts.private)
    charts = [*_course(facts.evaluations), *_delta_chart(facts.statement, profile)]
    return render(
        "run.html", **_common(facts, profile), title=facts.name, charts=charts, private=private
    )


def model_card(facts: RunFacts) -> str:
    """The same as Markdown, which never has anything private: a card goes with the model."""
    return render("card.md", **_common(facts, privacy_profile(facts.statement)))


def _common(facts: RunFacts, profile: list[tuple[float, float]]) -> dict[str, Any]:
    data = " --set data.root=DATA" if facts.needs_data else ""
    where = ", where DATA is the folder of the images" if facts.needs_data else ""
    return {
        "name": facts.name,
        "finished": facts.finished,
        "cost": cost_in_words(*facts.statement.cost),
        "accuracy": accuracy_in_words(facts.statement),
        "notices": facts.notices,
        "said": said_of(facts.statement, profile),
        "figures": [*figures(facts.statement), *_classes(facts)],
        "use": facts.use,
        "warnings": [f"{text[0].upper()}{text[1:]}." for text in facts.warnings],
        "faults": _faults(facts),
        "again": (
            "With config.yaml, which lies beside the released model, and the versions below"
            f"{where}. The noise is drawn anew, so the model comes out as good, not as the same. "
            "It spends its ε on top: who publishes both has spent both."
        ),
        "command": f"dp-ray train config.yaml{data}",
        "config": facts.config,
        "versions": list(facts.statement.versions.items()),
    }


def _classes(facts: RunFacts) -> list[tuple[str, str]]:
    names = [class_label(facts.class_names, label) for label in range(len(facts.class_names))]
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN_CLASSES])
    more = len(names) - _SHOWN_CLASSES
    return [("classes", f"{shown} and {more} more" if more > 0 else shown)]


def _faults(facts: RunFacts) -> str:
    statement = facts.statement
    again = statement.charges - statement.steps
    text = f"{count(statement.charges, 'noised sum')} paid for {count(statement.steps, 'step')}. "
    if again:
        text += (
            f"{count(again, 'charge')} more than steps: after a stop or crash these were drawn "
            "afresh, or may have been, and ε counts them."
        )
    else:
        text += "No step had to be paid for twice."
    private = facts.private
    if private is not None and private.ledger is not None:
        ledger = private.ledger
        text += (
            f" The ledger verifies: {count(ledger['sessions'], 'session')}, "
            f"{count(ledger['checkpoints'], 'checkpoint')}, "
            f"{count(ledger['repeated'], 'step')} repeated after a stop or crash, "
            f"{count(ledger['repairs'], 'repair')} of a damaged end."
        )
    elif facts.checked:
        text += " The ledger was read for this report, it verifies, and it says the same."
    else:
        text += " This report was made without the ledger, from what was published."
    return text


def _course(evaluations: list[Evaluated]) -> list[Chart]:
    """What may be seen of the course: from parameters that ε covers, and the test split."""
    if len(evaluations) < 2:
        return []
    steps = [float(e.step) for e in evaluations]
    metric = next(iter(evaluations[-1].metrics), "")
    values = [(float(e.step), e.metrics.get(metric)) for e in evaluations]
    scored = [(step, value) for step, value in values if value is not None]
    charts = []
    if scored:
        name = metric.removeprefix("test_").replace("_", " ")
        charts.append(
            line_chart(
                f"{name.capitalize()} over the steps",
                "On the test images, which ε does not cover.",
                [step for step, _ in scored],
                [value for _, value in scored],
                ylabel=name,
                marker="o",
            )
        )
    charts.append(
        line_chart(
            "ε over the steps",
            "What had been spent by then.",
            [0.0, *steps],
            [0.0, *(e.epsilon for e in evaluations)],
            ylabel="ε",
            marker="o",
        )
    )
    if len({e.max_grad_norm for e in evaluations}) > 1:
        charts.append(
            line_chart(
                "The bound C over the steps",
                "It follows the gradients’ norms through noised counts.",
                steps,
                [e.max_grad_norm for e in evaluations],
                ylabel="C",
                marker="o",
            )
        )
    return charts


def _delta_chart(statement: Statement, profile: list[tuple[float, float]]) -> list[Chart]:
    if not profile:
        return []
    deltas, epsilons = zip(*profile, strict=True)
    # Where a search is counted, the ε that is stated is not of training alone.
    stated = None if statement.counts_search else statement.epsilon
    stated = dict(profile).get(statement.delta, math.nan) if stated is None else stated

    def paint(axes: Axes) -> None:
        axes.plot(deltas, epsilons, color=BLUE)
        axes.plot([statement.delta], [stated], "o", color=ORANGE, markersize=8)
        limit = 1 / statement.num_examples
        axes.axvline(limit, color=MUTED, linestyle=":", linewidth=1.2)
        axes.annotate(" 1/N", (limit, 0.93), xycoords=("data", "axes fraction"), color=MUTED)
        axes.set(xscale="log", xlabel="δ", ylabel="ε")
        axes.xaxis.set_major_formatter(lambda delta, _place: f"1e{round(math.log10(delta))}")
        axes.set_ylim(bottom=0)

    told = (
        "The orange one is that of training alone: the search is not in it."
        if statement.counts_search
        else "The orange one is the one that is stated."
    )
    note = f"Every point is a promise that holds (by PLD of dp-accounting). {told}"
    return [draw("ε against δ", note, paint)]


def _private_part(facts: RunFacts, private: PrivateFacts) -> dict[str, Any]:
    return {
        "rows": _private_rows(facts.statement, private),
        "charts": _private_charts(facts, private),
        "examples": base64.b64encode(private.examples or b"").decode(),
        "heads": [
            "from step",
            "repeated",
            "workers",
            "threads",
            "engine",
            "microbatch",
            "on",
            "torch",
        ],
        "sessions": [
            {
                "best": False,
                "cells": [
                    session.first_step,
                    session.repeats,
                    *_cells(session.execution),
                ],
            }
            for session in private.sessions
        ],
    }


def _cells(execution: Execution) -> list[Any]:
    machine = execution.machine
    known = (execution.workers, execution.threads, execution.engine, execution.microbatch_size)
    return ["–" if v is None else v for v in (*known, machine.get("device"), machine.get("torch"))]


def _private_rows(statement: Statement, private: PrivateFacts) -> list[tuple[str, str]]:
    rows = []
    if private.seconds is not None:
        rows.append(("last session, wall-clock", duration(private.seconds)))
    seconds = private.seconds_per_step
    if seconds is not None:
        images = statement.expected_batch_size * statement.views
        taken = sum(step.seconds for step in private.steps)
        sizes = [step.examples for step in private.steps]
        rows += [
            ("all recorded steps", duration(taken)),
            ("a step, median", f"{seconds:.3g} s"),
            (
                f"throughput, B̄·K = {images:,} images a step",
                f"{images / seconds:,.0f} images a second" if seconds else "–",
            ),
            (
                "examples drawn in a step",
                f"{min(sizes):.0f} to {max(sizes):.0f}, {statement.expected_batch_size} expected",
            ),
        ]
    return rows


def _private_charts(facts: RunFacts, private: PrivateFacts) -> list[Chart]:
    steps = private.steps
    if len(steps) < 2:
        return []
    xs = [float(step.step) for step in steps]

    def share(axes: Axes) -> None:
        axes.set_ylim(-0.03, 1.03)

    def against_bound(axes: Axes) -> None:
        bounds = [(float(e.step), e.max_grad_norm) for e in facts.evaluations]
        first = (0.0, facts.statement.max_grad_norm)
        along, norms = zip(*dict([first, *bounds]).items(), strict=True)
        axes.step([*along, xs[-1]], [*norms, norms[-1]], where="post", color=ORANGE, label="C")
        axes.legend(loc="upper right")
        axes.set_ylim(bottom=0)

    def from_zero(axes: Axes) -> None:
        axes.set_ylim(bottom=0)

    def expected(axes: Axes) -> None:
        axes.axhline(facts.statement.expected_batch_size, color=ORANGE, label="B̄, expected")
        axes.legend(loc="upper right")
        axes.margins(y=0.3)

    def chart(title: str, note: str, name: str, ylabel: str, style: Any = from_zero) -> Chart:
        return line_chart(
            title, note, xs, [getattr(s, name) for s in steps], ylabel=ylabel, style=style
        )

    return [
        chart(
            "Clipped fraction",
            "Share of examples whose gradient was longer than C.",
            "clipped_fraction",
            "share",
            share,
        ),
        chart(
            "Gradient norms", "Mean over the examples drawn.", "mean_norm", "norm", against_bound
        ),
        chart("Training loss", "Mean over the examples drawn.", "loss", "loss"),
        chart("Examples drawn", "Each joins a step by chance.", "examples", "examples", expected),
        chart("Time of a step", "It shows how many examples were drawn.", "seconds", "seconds"),
    ]
