"""How good a released model is, in words: what ``dp-ray evaluate`` prints.

Classes are numbers, as labels are; those of an image folder count its folders by name.
"""

from __future__ import annotations

from typing import Any

from dp_ray.data.files import skipped_line
from dp_ray.objectives.objective import metrics_in
from dp_ray.objectives.quality import CALIBRATION_BINS

_ALL_SHOWN = 20
"""So many classes are shown one by one; of more, the worst and the best."""

_SHOWN_EACH = 5


def describe_evaluation(result: dict[str, Any]) -> str:
    """Lines for the terminal.

    Args:
        result: as :func:`~dp_ray.training.evaluate_run.evaluate_run` has it.
    """
    if "per_class" not in result:
        return _metrics(result)
    low, high = result["interval_95"]
    lines = [
        f"test accuracy {result['test_accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}) on "
        f"{result['test_examples']} examples declared {result['data_evaluation']}; "
        "not covered by ε",
        _calibration(result),
        *_confusions(result["largest_confusions"]),
        *([line] if (line := skipped_line(result.get("skipped", {}))) else []),
        "",
        "class    examples  accuracy  95% interval",
        *_classes(result["per_class"]),
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
    if (line := skipped_line(result.get("skipped", {}))) is not None:
        lines.append(line)
    return "\n".join([*lines, ""])


def _calibration(result: dict[str, Any]) -> str:
    if result["calibration_error"] is None:
        return "calibration   none: some of the network's outputs are not finite"
    return (
        f"calibration   expected error {result['calibration_error']:.4f} "
        f"({CALIBRATION_BINS} bins); mean confidence {result['mean_confidence']:.4f}"
    )


def _confusions(confusions: list[dict[str, Any]]) -> list[str]:
    heads = ["confused", *[""] * len(confusions)]
    return [
        f"{head:13s} {pair['true']} taken for {pair['predicted']}: "
        f"{pair['examples']} ({pair['share_of_class']:.1%} of class {pair['true']})"
        for head, pair in zip(heads, confusions, strict=False)
    ]


def _classes(classes: list[dict[str, Any]]) -> list[str]:
    if len(classes) <= _ALL_SHOWN:
        return [_class(entry) for entry in classes]
    tested = sorted((c for c in classes if c["examples"]), key=lambda c: float(c["accuracy"]))
    worst, others = tested[:_SHOWN_EACH], tested[_SHOWN_EACH:]
    best = others[-_SHOWN_EACH:]
    rest = len(classes) - len(worst) - len(best)
    return [
        *(_class(entry) for entry in worst),
        f"…        {rest} more between the worst and the best: --json has all",
        *(_class(entry) for entry in best),
    ]


def _class(entry: dict[str, Any]) -> str:
    if not entry["examples"]:
        return f"{entry['class']:<5d} {0:11d}  no test example"
    low, high = entry["interval_95"]
    return (
        f"{entry['class']:<5d} {entry['examples']:11d}    {entry['accuracy']:.4f}  "
        f"{low:.4f} to {high:.4f}"
    )
