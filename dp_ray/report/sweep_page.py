"""A search as one HTML page with pictures; it needs no network.

Pictures: parallel coordinates, the metric against each field, K against the metric and its time,
and what each trial spent beside what the search spends.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from dp_ray.report.words import describe_point, duration, table_fields

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CONFIG = {"responsive": True, "displayModeBar": False}
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
_FEW = 8
"""So many whole numbers get a tick each."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem;
  color: #1a202c; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.cost { font-size: 2.2rem; font-weight: 600; margin: .5rem 0 0; }
.note { color: #4a5568; } .private { background: #fff5f5; border-left: 4px solid #c53030;
  padding: .5rem 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e2e8f0; }
th:first-child, td:first-child { text-align: left; } tr.best { font-weight: 600; }
"""


def sweep_page(result: dict[str, Any]) -> str:
    """The page, from all that there is to say of a finished search.

    Args:
        result: the contents of private/results.json.
    """
    trials = [t for t in result["trials"] if t[result["metric"]] is not None]
    figures = _figures(result, trials)
    first = True
    parts = []
    for title, note, figure in figures:
        drawn = figure.to_html(full_html=False, include_plotlyjs=first, config=_CONFIG)
        parts.append(f"<h2>{title}</h2><p class=note>{note}</p>{drawn}")
        first = False
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(result['name'])}</title><style>{_STYLE}</style></head><body>"
        + _head(result)
        + "".join(parts)
        + "<h2>Trials</h2>"
        + _table(result)
        + "</body></html>"
    )


def _head(result: dict[str, Any]) -> str:
    best = result["best"]
    parts = [
        f"<h1>Search {html.escape(result['name'])}</h1>",
        f"<p class=cost>ε of the search = {result['epsilon_of_search']:.4f}</p>",
        f"<p class=note>at δ = {result['delta']:g}, by {result['accountant']}: "
        f"{html.escape(result['how'])}</p>",
    ]
    if best is not None:
        parts.append(
            f"<p>Best: {result['metric']} <b>{best[result['metric']]:.4f}</b> at "
            f"{html.escape(describe_point(best['parameters']))}. Its own ε is "
            f"{best['epsilon_of_this_run_alone']:.4f}, which is not the cost.</p>"
        )
    if result["privacy_mode"] == "private_selection":
        parts.append(
            "<p class=private>Private: ε holds only while nothing on this page is published or "
            "acted upon, the number of trials included. The best trial alone is in release/.</p>"
        )
    return "".join(parts)


def _figures(result: dict[str, Any], trials: list[dict[str, Any]]) -> list[tuple[str, str, Figure]]:
    metric = result["metric"]
    found = []
    if len(trials) > 1:
        found.append(
            (
                "Parallel coordinates",
                "A line is a trial, coloured by the metric; drag along an axis to filter.",
                _parallel(trials, metric),
            )
        )
    if trials:
        found.append(
            ("Against each field", f"{metric} of each trial.", _against_fields(trials, metric))
        )
        if len({trial["views"] for trial in trials}) > 1:
            found.append(
                (
                    "Views (K)",
                    f"{metric}, and the time that a trial took: K views cost K times the work.",
                    _views(trials, metric),
                )
            )
    if result["trials"]:
        found.append(
            (
                "Budget",
                "ε that each trial spent by its ledger, and what the whole search spends.",
                _budget(result),
            )
        )
    return found


def _parallel(trials: list[dict[str, Any]], metric: str) -> Figure:
    import plotly.graph_objects as go

    dimensions = [
        _axis(field, [t["parameters"][field] for t in trials]) for field in _varied(trials)
    ]
    values = [trial[metric] for trial in trials]
    figure = go.Figure(
        go.Parcoords(
            line={"color": values, "colorscale": "Plasma", "showscale": True},
            dimensions=[*dimensions, {"label": metric, "values": values}],
        )
    )
    return _laid_out(figure, height=380, margin={"l": 70, "r": 40, "t": 60, "b": 30})


def _axis(field: str, values: list[Any]) -> dict[str, Any]:
    """Numbers as they are, few of them with their own ticks; anything else by name."""
    label = field.rpartition(".")[2]
    if all(_is_number(value) for value in values):
        distinct = sorted(set(values))
        axis = {"label": label, "values": values}
        return {**axis, "tickvals": distinct} if _are_few(values) else axis
    names = [str(value) for value in values]
    order = sorted(set(names))
    ticks = list(range(len(order)))
    places = [order.index(name) for name in names]
    return {"label": label, "values": places, "tickvals": ticks, "ticktext": order}


def _against_fields(trials: list[dict[str, Any]], metric: str) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fields = _varied(trials)
    columns = min(len(fields), 3) or 1
    rows = -(-max(len(fields), 1) // columns)
    titles = [field.rpartition(".")[2] for field in fields]
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, shared_yaxes=True)
    for i, field in enumerate(fields):
        values = [trial["parameters"][field] for trial in trials]
        if not all(_is_number(value) for value in values):
            values = [str(value) for value in values]
        figure.add_trace(
            go.Scatter(
                x=values,
                y=[trial[metric] for trial in trials],
                mode="markers",
                marker={"color": _BLUE, "size": 9, "opacity": 0.8},
                text=[_hover(trial, metric) for trial in trials],
                hoverinfo="text",
                showlegend=False,
            ),
            row=i // columns + 1,
            col=i % columns + 1,
        )
        if _are_few(values):
            ticks = sorted(set(values))
            figure.update_xaxes(tickvals=ticks, row=i // columns + 1, col=i % columns + 1)
    figure.update_yaxes(title_text=metric, col=1)
    return _laid_out(figure, height=320 * rows)


def _views(trials: list[dict[str, Any]], metric: str) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    order = sorted({trial["views"] for trial in trials})
    names = [str(views) for views in order]
    times = [
        sum(t["seconds"] for t in trials if t["views"] == views)
        / sum(t["views"] == views for t in trials)
        for views in order
    ]
    figure.add_trace(
        go.Bar(x=names, y=times, name="mean seconds", marker_color=_GREY, opacity=0.5),
        secondary_y=True,
    )
    figure.add_trace(
        go.Scatter(
            x=[str(trial["views"]) for trial in trials],
            y=[trial[metric] for trial in trials],
            mode="markers",
            name=metric,
            marker={"color": _BLUE, "size": 10},
            text=[_hover(trial, metric) for trial in trials],
            hoverinfo="text",
        ),
        secondary_y=False,
    )
    figure.update_xaxes(title_text="K", type="category", categoryarray=names)
    figure.update_yaxes(title_text=metric, secondary_y=False)
    figure.update_yaxes(
        title_text="seconds",
        secondary_y=True,
        rangemode="tozero",
        showgrid=False,
        tickmode="auto",
        nticks=6,
    )
    return _laid_out(figure, height=400, legend={"orientation": "h", "y": 1.12})


def _budget(result: dict[str, Any]) -> Figure:
    import plotly.graph_objects as go

    trials = result["trials"]
    figure = go.Figure(
        go.Bar(
            x=[trial["name"] for trial in trials],
            y=[trial["epsilon"] for trial in trials],
            marker_color=[_ORANGE if t["name"] == result["best_trial"] else _BLUE for t in trials],
        )
    )
    figure.add_hline(
        y=result["epsilon_of_search"],
        line={"color": "#c53030", "dash": "dash"},
        annotation_text=f"the search: {result['epsilon_of_search']:.3f}",
    )
    figure.update_xaxes(title_text="trial (the best one in orange)", type="category")
    figure.update_yaxes(title_text="ε", rangemode="tozero")
    return _laid_out(figure, height=340)


def _laid_out(figure: Figure, **layout: Any) -> Figure:
    defaults: dict[str, Any] = {
        "template": "plotly_white",
        "margin": {"l": 60, "r": 30, "t": 40, "b": 50},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }
    figure.update_layout(**(defaults | layout))
    return figure


def _table(result: dict[str, Any]) -> str:
    metric, trials = result["metric"], result["trials"]
    fields = table_fields(trials)
    heads = ["trial", metric, *(field.rpartition(".")[2] for field in fields)]
    heads += ["σ", "T", "ε", "time", "starts", "status"]
    lines = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    for trial in trials:
        cells = [
            trial["name"],
            _number(trial[metric]),
            *(_number(trial["parameters"][field]) for field in fields),
            _number(trial["noise_multiplier"]),
            str(trial["steps_planned"]),
            "–" if trial["epsilon"] is None else f"{trial['epsilon']:.4f}",
            duration(trial["seconds"]),
            str(trial["attempts"]),
            trial["status"] + (f": {trial['error']}" if trial["error"] else ""),
        ]
        kind = " class=best" if trial["name"] == result["best_trial"] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _varied(trials: list[dict[str, Any]]) -> list[str]:
    """Fields that differ among trials; all of them if none does."""
    fields = list(trials[0]["parameters"])
    varied = [f for f in fields if len({str(t["parameters"][f]) for t in trials}) > 1]
    return varied or fields


def _hover(trial: dict[str, Any], metric: str) -> str:
    words = describe_point(trial["parameters"])
    return f"{trial['name']}: {metric} {trial[metric]:.4f}<br>{html.escape(words)}"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _are_few(values: list[Any]) -> bool:
    return all(isinstance(v, int) for v in values) and len(set(values)) <= _FEW


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
