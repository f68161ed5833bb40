"""How good a released model is, in words: what ``dp-ray evaluate`` prints."""

from __future__ import annotations

from typing import Any

from dp_ray.data.files import skipped_line
from dp_ray.objectives.objective import metrics_in
from dp_ray.objectives.quality import CALIBRATION_BINS
from dp_ray.objectives.useless import class_label

_ALL_SHOWN = 20
"""So many classes are shown one by one; of more, the worst and the best."""

_SHOWN_EACH = 5


def describe_evaluation(result: dict[str, Any]) -> str:
    """Lines for the terminal.

    Args:
        result: figures of a :class:`~dp_ray.training.evaluate_run.ScoredRun`.
    """
    if "per_class" not in result:
        return _metrics(result)
    low, high = result["interval_95"]
    names = result.get("class_names", [])
    lines = [
        f"test accuracy {result['test_accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}) on "
        f"{result['test_examples']} examples declared {result['data_evaluation']}; "
        "not covered by ε",
        *_warnings(result),
        _calibration(result),
        *_confusions(result["largest_confusions"], names),
        *([line] if (line := skipped_line(result.get("skipped", {}))) else []),
        "",
        *_classes(result["per_class"], names),
        "",
    ]
    return "\n".join(lines)


def _metrics(result: dict[str, Any]) -> str:
    """Lines for an objective that has metrics and no further figures."""
    lines = [
        f"{name.replace('_', ' '):13s} {'not finite' if value is None else f'{value:.4f}'}"
        for name, value in metrics_in(result).items()
    ]
    lines.append(
        f"on {result['test_examples']} examples declared {result['data_evaluation']}; "
        "not covered by ε"
    )
    lines += _warnings(result)
    if (line := skipped_line(result.get("skipped", {}))) is not None:
        lines.append(line)
    return "\n".join([*lines, ""])


def _warnings(result: dict[str, Any]) -> list[str]:
    return [f"warning       {text}" for text in result.get("warnings", [])]


def _calibration(result: dict[str, Any]) -> str:
    if result["calibration_error"] is None:
        return "calibration   none: some of the network's outputs are not finite"
    return (
        f"calibration   expected error {result['calibration_error']:.4f} "
        f"({CALIBRATION_BINS} bins); mean confidence {result['mean_confidence']:.4f}"
    )


def _confusions(confusions: list[dict[str, Any]], names: list[str]) -> list[str]:
    heads = ["confused", *[""] * len(confusions)]
    return [
        f"{head:13s} {_shown(names, pair['true'])} taken for {_shown(names, pair['predicted'])}: "
        f"{pair['examples']} ({pair['share_of_class']:.1%} of {class_label(names, pair['true'])})"
        for head, pair in zip(heads, confusions, strict=False)
    ]


def _classes(classes: list[dict[str, Any]], names: list[str]) -> list[str]:
    worst, rest, best = classes, 0, []
    if len(classes) > _ALL_SHOWN:
        tested = sorted((c for c in classes if c["examples"]), key=lambda c: float(c["accuracy"]))
        worst, others = tested[:_SHOWN_EACH], tested[_SHOWN_EACH:]
        best = others[-_SHOWN_EACH:]
        rest = len(classes) - len(worst) - len(best)
    width = max([5, *(len(_shown(names, entry["class"])) for entry in (*worst, *best))])
    lines = [f"{'class':{width}s} {'examples':>11s}  accuracy  95% interval"]
    lines += [_class(entry, names, width) for entry in worst]
    if rest:
        between = "more between the worst and the best: --json has all"
        lines.append(f"{'…':{width}s}    {rest} {between}")
    return [*lines, *(_class(entry, names, width) for entry in best)]


def _class(entry: dict[str, Any], names: list[str], width: int) -> str:
    name = f"{_shown(names, entry['class']):<{width}s}"
    if not entry["examples"]:
        return f"{name} {0:11d}  no test example"
    low, high = entry["interval_95"]
    return f"{name} {entry['examples']:11d}    {entry['accuracy']:.4f}  {low:.4f} to {high:.4f}"


def _shown(names: list[str], label: int) -> str:
    """A class in a table: its name, or its number."""
    return class_label(names, label) if names else str(label)
