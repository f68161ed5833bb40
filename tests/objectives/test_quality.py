"""Figures of a released model against hand-computed values, and the picture against its parts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers.support import MakeConfig, folder, start
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binned_statistic

from dp_ray.errors import ConfigError, StorageError
from dp_ray.objectives.quality import calibration_error, quality, wilson_interval
from dp_ray.reporting.confusion import draw_confusion, picture_file, save_confusion
from dp_ray.reporting.evaluation import describe_evaluation
from dp_ray.training.evaluate_run import evaluate_run

# Class 2 has no example: right are 0, 0, 1; wrong are 0 → 1 once and 1 → 2 twice.
LABELS = np.array([0, 0, 0, 1, 1, 1])
PREDICTED = np.array([0, 0, 1, 1, 2, 2])
CONFIDENCE = np.array([0.9, 0.95, 0.5, 0.55, 0.7, 0.9])


def found(classes: int, examples: int = 2000) -> dict[str, Any]:
    """What an evaluation of random predictions finds, a third of them wrong."""
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, examples)
    shifts = generator.integers(0, classes, examples) * (generator.random(examples) < 1 / 3)
    confidence = generator.uniform(1 / classes, 1, examples)
    figures = quality(labels, (labels + shifts) % classes, confidence, classes)
    return {"data_evaluation": "public", **figures}


def test_figures_by_hand() -> None:
    figures = quality(LABELS, PREDICTED, CONFIDENCE, 3)
    assert figures["confusion_matrix"] == [[2, 1, 0], [0, 1, 2], [0, 0, 0]]
    assert (figures["test_accuracy"], figures["test_examples"]) == (0.5, 6)
    assert figures["mean_confidence"] == pytest.approx(0.75)
    assert [c["class"] for c in figures["per_class"]] == [0, 1, 2]
    assert [c["examples"] for c in figures["per_class"]] == [3, 3, 0]
    assert [c["accuracy"] for c in figures["per_class"]] == [2 / 3, 1 / 3, None]
    assert figures["per_class"][2]["interval_95"] is None
    assert figures["largest_confusions"] == [
        {"true": 1, "predicted": 2, "examples": 2, "share_of_class": 2 / 3},
        {"true": 0, "predicted": 1, "examples": 1, "share_of_class": 1 / 3},
    ]
    # Bins of 1/15: (0.467, 0.533] has the 0.5 and (0.533, 0.6] the 0.55, (0.667, 0.733] the 0.7,
    # (0.867, 0.933] both 0.9, (0.933, 1] the 0.95.
    gaps = [abs(0 - 0.5), abs(1 - 0.55), abs(0 - 0.7), abs(1 - 1.8), abs(1 - 0.95)]
    assert figures["calibration_error"] == pytest.approx(sum(gaps) / 6)


def test_the_interval_is_wilsons() -> None:
    share, n, z = 0.9, 50, 1.959963984540054
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson_interval(45, 50) == pytest.approx([centre - half, centre + half])
    assert wilson_interval(0, 0) is None


def test_calibration_error_agrees_with_its_definition() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 5000)
    # By turns too sure and too unsure, so that bins of another width give another figure.
    right = generator.random(5000) < confidence + 0.3 * np.sin(30 * confidence)
    bins = {"bins": 15, "range": (0, 1)}
    accuracy, _, number = binned_statistic(confidence, right, "mean", **bins)
    means = binned_statistic(confidence, confidence, "mean", **bins).statistic
    shares = np.bincount(number - 1, minlength=15) / 5000
    used = shares > 0
    expected = np.sum(shares[used] * np.abs(accuracy - means)[used])
    assert calibration_error(right, confidence) == pytest.approx(expected)
    assert expected > 0.1


def test_a_calibrated_model_has_no_calibration_error() -> None:
    right = np.array([True, True, True, False])
    assert calibration_error(right, np.full(4, 0.75)) == 0
    assert calibration_error(right[:3], np.ones(3)) == 0
    assert calibration_error(right[3:], np.ones(1)) == 1


def test_bins_are_closed_above() -> None:
    """3/15 lies below 0.23, as in Guo et al.: in one bin their gaps would partly cancel."""
    confidence = np.array([np.linspace(0, 1, 16)[3], 0.23])
    right = np.array([False, True])
    assert calibration_error(right, confidence) == pytest.approx((3 / 15 + 0.77) / 2)


@pytest.mark.parametrize("predicted", [0, 4])
def test_one_example_is_enough(predicted: int) -> None:
    figures = quality(np.array([4]), np.array([predicted]), np.array([0.5]), 30)
    assert figures["test_accuracy"] == (predicted == 4)
    assert figures["calibration_error"] == 0.5
    assert len(figures["largest_confusions"]) == (predicted != 4)
    text = describe_evaluation({"data_evaluation": "public", **figures})
    assert "29 more" in text
    assert draw_confusion(figures, "png")


def test_at_most_five_confusions_the_most_first() -> None:
    pairs = found(20)["largest_confusions"]
    numbers = [pair["examples"] for pair in pairs]
    assert len(pairs) == 5
    assert numbers == sorted(numbers, reverse=True)
    wrong = np.array(found(20)["confusion_matrix"])
    np.fill_diagonal(wrong, 0)
    assert numbers == sorted(wrong.ravel(), reverse=True)[:5]


def test_few_classes_are_all_told_and_of_many_the_worst_and_best() -> None:
    few, many = describe_evaluation(found(20)), describe_evaluation(found(100))
    assert few.count(" to ") == 1 + 20
    lines = [line for line in many.splitlines() if " to " in line][1:]
    accuracies = [float(line.split()[2]) for line in lines]
    everyone = sorted(c["accuracy"] for c in found(100)["per_class"])
    assert accuracies == pytest.approx(everyone[:5] + everyone[-5:], abs=5e-5)
    assert "90 more" in many


def test_a_class_without_examples_is_told_as_such() -> None:
    figures = quality(LABELS, PREDICTED, CONFIDENCE, 3)
    text = describe_evaluation({"data_evaluation": "held_out", **figures})
    assert "no test example" in text.splitlines()[-1]
    assert "1 taken for 2: 2 (66.7% of class 1)" in text


@pytest.mark.parametrize("classes", [2, 10, 100, 1001])
def test_the_picture_can_be_opened_and_is_of_a_readable_size(classes: int) -> None:
    with Image.open(io.BytesIO(draw_confusion(found(classes), "png"))) as image:
        image.load()
        assert image.format == "PNG"
        assert 600 < image.height < image.width < 2000
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 20


def test_the_picture_tells_counts_accuracy_and_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text stays text
    drawn = draw_confusion(quality(LABELS, PREDICTED, CONFIDENCE, 3), "svg").decode()
    for text in ("true class", "predicted class", "accuracy 0.5000", "n = 6"):
        assert text in drawn


def test_a_confusion_is_seen_among_a_thousand_classes() -> None:
    """Dark pixels off the diagonal, though a cell of the picture stands for 16 pairs."""
    labels = np.arange(1000).repeat(2)
    predicted = np.where(labels == 900, 100, labels)
    confidence = np.ones(2000)
    clean, confused = (
        np.asarray(
            Image.open(io.BytesIO(draw_confusion(quality(labels, p, confidence, 1000), "png")))
            .convert("L")
            .crop((100, 700, 700, 1300))  # below the diagonal
        )
        for p in (labels, predicted)
    )
    # The title differs, but not this part of the picture.
    assert np.sum(clean < 100) + 9 <= np.sum(confused < 100) <= np.sum(clean < 100) + 64


def test_nan_logits_make_null_and_no_warning(make_config: MakeConfig) -> None:
    config = make_config(privacy={"steps": 1})
    start(config)
    file = folder(config) / "release/model.safetensors"
    save_file({name: torch.full_like(t, torch.nan) for name, t in load_file(file).items()}, file)
    result = evaluate_run(str(folder(config)), []).figures
    assert result["calibration_error"] is result["mean_confidence"] is result["test_loss"] is None
    json.dumps(result, allow_nan=False)
    assert result["test_examples"] == np.sum(result["confusion_matrix"]) == 360
    assert "not finite" in describe_evaluation(result)
    assert draw_confusion(result, "png")


def test_where_the_picture_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/release").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for run, given, expected in (
        ("run", None, "run/confusion.png"),
        ("run/release", None, "here/confusion.png"),  # what is published stays as it is
        ("run", "a.svg", "here/a.svg"),
        ("run", "../new/b.pdf", "here/../new/b.pdf"),
        ("run", f"{tmp_path}/c.png", "c.png"),
    ):
        location = str(tmp_path / run)
        assert save_confusion(found(3), picture_file(location, given)) == str(tmp_path / expected)
        assert (tmp_path / expected).stat().st_size > 1000
    assert not list((tmp_path / "run/release").iterdir())
    assert (tmp_path / "new/b.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / "here/a.svg").read_bytes()


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    for name in ("a.gif", "a", ".png", "folder/"):
        with pytest.raises(ConfigError, match=r"--picture = .*\.png, \.svg, \.pdf"):
            picture_file(str(tmp_path), name)
    (tmp_path / "file").write_text("")
    file = picture_file(str(tmp_path), f"{tmp_path}/file/a.png")
    with pytest.raises(StorageError, match=r"file/a\.png cannot be written.*--picture"):
        save_confusion(found(3), file)
