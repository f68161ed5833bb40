"""The report of a run or a search: what it says, who may see it, and what it never shows."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import yaml
from helpers.searches import MakeSweep, begin, finish, made_up, made_up_trial, run_trial, runs_of
from helpers.support import start
from tinyhtml5.parser import HTMLParser
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.artifacts.statement import Statement
from dp_ray.config.files import parse_config
from dp_ray.errors import ConfigError, DpRayError, RunError
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.reporting.charts import PALETTE, draw, thinned
from dp_ray.reporting.make import write_report
from dp_ray.reporting.run_facts import read_release, read_run
from dp_ray.reporting.run_page import model_card, run_page
from dp_ray.reporting.search_page import sweep_page
from dp_ray.reporting.statement import (
    accuracy_in_words,
    figures,
    guess_bound,
    not_covered,
    privacy_profile,
    promise,
)
from dp_ray.reporting.words import without_paths
from dp_ray.search.result import SearchResult, Winner
from dp_ray.storage import open_folder

PRIVATE_LINE = {
    "examples": 91_919.0,
    "loss": 8.1818,
    "clipped_fraction": 0.7373,
    "mean_norm": 65.6565,
    "seconds": 43.4343,
}
"""Numbers that are nowhere else, for each step."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that came to its end; nothing writes to it."""
    root = tmp_path_factory.mktemp("secret-place")
    config = parse_config(
        {
            "name": "pictures",
            "data": {"name": "digits", "expected_batch_size": 64, "cache": str(root / "cache")},
            "augment": {"views": 2},
            "privacy": {"noise_multiplier": 2.0, "steps": 6, "delta": 1e-4, "accountant": "rdp"},
            "optimizer": {"lr": 0.5},
            "train": {"storage_path": str(root / "runs"), "evaluate_every": 2},
            "cluster": {"num_workers": 0, "threads_per_worker": 1},
            "seed": 1,
        }
    )
    assert start(config)["status"] == "finished"
    return root / "runs/pictures"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "pictures"))


def private_page(run: Path) -> str:
    return run_page(read_run(open_folder(str(run)), public=False))


def public_texts(run: Path) -> tuple[str, str]:
    """The page and the card that may be published."""
    facts = read_run(open_folder(str(run)), public=True)
    return run_page(facts), model_card(facts)


def changed(run: Path, file: str, **values: Any) -> None:
    path = run / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def plant(run: Path, factor: float = 1.0) -> None:
    """Replaces all private numbers of the steps."""
    path = run / "private/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    planted = {name: value * factor for name, value in PRIVATE_LINE.items()}
    lines = [line if "epsilon" in line else line | planted for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed(run, "private/progress.json", seconds=777.0 * factor)


def elements(page: str) -> list[Element]:
    """All of a page, by a parser that tells what it had to mend."""
    parser = HTMLParser()
    tree = parser.parse(page)
    assert not parser.errors
    return list(tree.iter())


def text_of(page: str) -> str:
    [body] = [e for e in elements(page) if str(e.tag).endswith("}body")]
    return " ".join(" ".join(body.itertext()).split())


def test_plain_words_come_first_and_figures_after(run: Path) -> None:
    text = text_of(private_page(run))
    result = json.loads((run / "result.json").read_text())
    order = [
        "pictures",
        f"ε = {result['epsilon']:.4f} at δ = 0.0001",
        f"The model is right on {result['test_accuracy']:.2%} of the test images",
        "What is promised",
        "they are right at most",
        "What ε covers",
        "one training example, with all of its views",
        "What it does not cover",
        "declared held out",
        "Run time, memory and traffic are not observed by the adversary.",
        "The statement in figures",
        "RDP of Opacus",
        "add or remove one example",
        "σ = 2.0000, C = 1",
        "views of an image K 2",
        "Accuracy over the steps",
        "ε over the steps",
        "ε against δ",
        "6 noised sums paid for 6 steps. No step had to be paid for twice.",
        "dp-ray train config.yaml",
        "opacus",
        "Private: not for publication",
        "throughput, B̄·K = 128 images a step",
        "Clipped fraction",
        "Gradient norms",
    ]
    assert [text.find(part) for part in order] == sorted(text.find(part) for part in order)
    assert all(part in text for part in order)
    assert "This run repeats the draws and the noise of another one" in text


@pytest.mark.parametrize("public", [False, True])
def test_the_page_is_valid_and_loads_nothing(run: Path, public: bool) -> None:
    page = public_texts(run)[0] if public else private_page(run)
    found = elements(page)
    tags = {str(e.tag).partition("}")[2] for e in found}
    assert not tags & {
        "script",
        "link",
        "iframe",
        "img",
        "image",
        "object",
        "embed",
        "base",
        "form",
    }
    for element in found:
        for name, value in element.attrib.items():
            if str(name).rpartition("}")[2] in ("href", "src", "srcset", "action", "data"):
                assert value.startswith("#")
            assert not str(name).startswith("on")
    assert set(re.findall(r"url\(\s*['\"]?(.)", page)) <= {"#"}
    assert not re.findall(r"@import|https?://(?!www\.w3\.org/)", page)
    [policy] = [e.get("content") for e in found if e.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ids = [e.get("id") for e in found if e.get("id")]
    assert len(ids) == len(set(ids))
    named = {e.get("aria-labelledby") for e in found if e.get("aria-labelledby")}
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | {
        e.get("href", "#")[1:] for e in found if str(e.tag).endswith("}use")
    }
    assert named | used <= set(ids)
    assert len(page) < 300_000


def test_charts_are_described_and_follow_the_page_into_the_dark(run: Path) -> None:
    page = private_page(run)
    drawn = [e for e in elements(page) if str(e.tag).endswith("}svg")]
    assert len(drawn) == 8
    assert all(e.get("role") == "img" and e.get("aria-label") for e in drawn)
    assert all(e.get("viewBox") and e.get("width") is None for e in drawn)
    charts = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    # Every colour is a variable of the page; only what shows nothing has one of its own.
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", charts)) <= {
        "none",
        *(f"var(--{name})" for name in PALETTE),
    }
    assert "prefers-color-scheme:dark" in page


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        *((ink, "paper") for ink in ("ink", "muted", "blue", "orange", "red")),
        ("ink", "panel"),
        ("ink", "alarm"),
    ],
)
def test_colours_have_the_contrast_that_reading_needs(scheme: int, ink: str, paper: str) -> None:
    low, high = sorted(luminance(PALETTE[name][scheme]) for name in (ink, paper))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_what_is_public_does_not_depend_on_what_is_private(run: Path) -> None:
    """Whatever the private numbers were, the public texts are the same to the last character."""
    before, private_before = public_texts(run), private_page(run)
    plant(run)
    (run / "private/engine.json").unlink()
    assert public_texts(run) == before
    planted = private_page(run)
    assert planted != private_before
    plant(run, factor=2.0)
    assert public_texts(run) == before
    told = ("91919", "43.4", "12 min 57 s", "Clipped fraction", "Training loss", "throughput")
    for part in told:
        assert part in planted
        assert part not in before[0]
        assert part not in before[1]
    assert "Private: not for publication" not in before[0]


def test_warnings_are_as_private_as_a_confusion_matrix(run: Path) -> None:
    """They are exact figures of the test split, beside those that the statement declares."""
    changed(run, "result.json", warnings=["ash is predicted for every test image"])
    told = "Ash is predicted for every test image."
    assert told in text_of(private_page(run))
    page, card = public_texts(run)
    assert "ash is predicted" not in f"{page}{card}".lower()
    changed(run, "release/privacy.json", data_evaluation="public")
    config = yaml.safe_load((run / "release/config.yaml").read_text())
    config["data"]["evaluation"] = "public"
    (run / "release/config.yaml").write_text(yaml.safe_dump(config))
    page, card = public_texts(run)
    assert told in text_of(page)
    assert told in card


def test_classes_and_the_lines_that_load_the_model_are_in_what_is_published(run: Path) -> None:
    names = ["ash", "<b>elm</b>", *"cdefghij"]
    (run / "release/class_names.json").write_text(json.dumps({"format": 1, "names": names}))
    page, card = public_texts(run)
    assert "ash, <b>elm</b>, c, d, e, f, g, h, i, j" in text_of(page)
    assert "1 &lt;b&gt;elm&lt;/b&gt;" in card
    assert 'model.load_state_dict(load_file("model.safetensors"))' in card


def test_no_page_says_where_the_run_lies_or_how_its_noise_was_drawn(run: Path) -> None:
    key = RunDirectory(open_folder(str(run))).key().secret.hex()
    assert key in (run / "private/run_key").read_text()
    texts = [private_page(run), *public_texts(run)]
    for text in texts:
        assert not re.search(rf"{key}|secret-place|{run.parent}", text, re.IGNORECASE)
    assert without_paths("/a/b.txt: no such file, s3://c/d and ~/e or ../f.") == (
        "…: no such file, … and … or …."
    )
    assert without_paths("3/4 of runs and 1e-5 / N") == "3/4 of runs and 1e-5 / N"


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>|`[x](javascript:y)` $\\frac{$"


def test_what_comes_from_a_file_stays_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release folder may come from anybody."""
    statement = json.loads((run / "release/privacy.json").read_text())
    for name in ("mechanism", "unit_of_privacy", "adjacency", "warning", "clipping"):
        statement[name] = HOSTILE
    statement |= {"assumptions": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
    (run / "release/privacy.json").write_text(json.dumps(statement))
    config = yaml.safe_load((run / "release/config.yaml").read_text())
    config |= {"name": HOSTILE, "model": {"name": f"```\n{HOSTILE}"}}
    (run / "release/config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(run.parent)
    for form in ("html", "markdown"):
        told = write_report(str(run / "release"), public=False, form=form, output=None)
        assert told["public"]
        text = Path(told["report"]).read_text()
        if form == "html":
            page = text
        else:
            prose = [line for line in text.splitlines() if not line.startswith("    ")]
            assert not re.search(r"<script|<img|(?<!\\)[`\[|](?=\w|\(|/)", "\n".join(prose))
    tags = {str(e.tag).partition("}")[2] for e in elements(page)}
    assert not tags & {"script", "img"}
    assert text_of(page).count("<script>alert(1)</script>") >= 8


def test_names_in_charts_are_neither_markup_nor_formulas() -> None:
    chart = draw(HOSTILE, HOSTILE, lambda axes: axes.set_xlabel(HOSTILE))
    found = elements(f"<!doctype html><title>x</title><body>{chart.svg}")
    assert not {str(e.tag).partition("}")[2] for e in found} & {"script", "img"}
    assert any((e.text or "") == HOSTILE for e in found)


def test_long_curves_become_means_of_neighbours() -> None:
    xs, ys = thinned(range(1000), [float(i % 2) for i in range(999)] + [math.nan])
    assert len(xs) == len(ys) == 200
    assert sum(ys) / 200 == pytest.approx(0.5, abs=0.01)
    assert thinned([1, 2], [math.nan, math.inf]) == ([], [])


def test_a_run_without_its_release_is_said_to_be_unfinished(run: Path) -> None:
    shutil.rmtree(run / "release")
    (run / "result.json").unlink()
    text = text_of(private_page(run))
    assert "Privacy report of a run that is not finished" in text
    assert "Nothing of it is published yet" in text
    with pytest.raises(RunError, match="unfinished, and nothing of it is published"):
        public_texts(run)


def test_a_run_that_did_nothing_yet_has_a_page(run: Path) -> None:
    shutil.rmtree(run / "release")
    (run / "result.json").unlink()
    (run / "private/metrics.jsonl").unlink()
    assert "nothing is known of its accuracy" in text_of(private_page(run))


def test_a_torn_line_of_metrics_is_passed_over(run: Path) -> None:
    whole = private_page(run)
    with (run / "private/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "examples": 64.0, "lo')
    assert private_page(run) == whole


def test_a_damaged_ledger_is_said_and_nothing_is_made_public(run: Path) -> None:
    ledger = run / "private/ledger/records.jsonl"
    ledger.write_text(ledger.read_text().replace("2.0", "9.0"))
    text = text_of(private_page(run))
    assert "The ledger could not be read, so nothing bears the numbers out" in text
    assert str(run) not in text
    assert "made without the ledger" in text
    with pytest.raises(RunError, match="cannot be reported on in public"):
        public_texts(run)
    shutil.rmtree(run / "release")
    with pytest.raises(RunError, match="ledger"):
        private_page(run)


def test_a_lost_run_key_is_as_bad_as_a_damaged_ledger(run: Path) -> None:
    (run / "private/run_key").unlink()
    assert "could not be read" in text_of(private_page(run))
    with pytest.raises(RunError, match="cannot be reported on in public"):
        public_texts(run)


def test_a_statement_that_the_ledger_does_not_bear_out_is_not_repeated(run: Path) -> None:
    honest = json.loads((run / "release/privacy.json").read_text())
    fewer = [honest["released"][0] | {"sums": 3}]
    changed(run, "release/privacy.json", released=fewer, charges=3, epsilon=honest["epsilon"] / 2)
    text = text_of(private_page(run))
    assert "list different noised sums" in text
    assert f"ε = {honest['epsilon']:.4f}" in text  # the ledger's
    with pytest.raises(RunError, match="unfinished"):
        public_texts(run)
    changed(run, "release/privacy.json", **honest | {"epsilon": honest["epsilon"] / 2})
    assert "The ε that is claimed is less than" in text_of(private_page(run))
    with pytest.raises(RunError, match="The ε that is claimed is less than"):
        public_texts(run)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("release/privacy.json", "{}"),
        ("release/privacy.json", "not JSON"),
        ("release/privacy.json", '{"epsilon": "<b>"}'),
        ("release/config.yaml", "a: [\n"),
        ("release/config.yaml", "[]"),
        ("private/config.yaml", "modell: 3"),
        ("private/config.yaml", "\x00"),
        ("result.json", "[]"),
        ("result.json", "{"),
    ],
)
def test_files_of_another_version_end_in_one_message(run: Path, file: str, content: str) -> None:
    (run / file).write_text(content)
    with pytest.raises(DpRayError):
        write_report(str(run), public=False, form="html", output=None)


def test_a_release_folder_is_enough_and_stays_as_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = Path(shutil.copytree(run / "release", tmp_path / "received"))
    before = sorted(p.name for p in released.iterdir())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = write_report(str(released), public=False, form="html", output=None)
    assert told == {"report": str(tmp_path / "here/privacy-report.html"), "public": True}
    text = text_of(Path(told["report"]).read_text())
    assert "made without the ledger, from what was published" in text
    assert "ε against δ" in text
    assert sorted(p.name for p in released.iterdir()) == before


@pytest.mark.parametrize("whole", [False, True])
def test_reading_a_release_runs_no_code_that_it_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A folder from anywhere, by itself or in a run without its ledger."""
    (tmp_path / "evil_code.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    file = run / "release/config.yaml"
    values = yaml.safe_load(file.read_text())
    fields = [
        ("privacy", "mechanism"),
        ("train", "engine"),
        *((s, "name") for s in ("objective", "model", "data")),
    ]
    for section, name in fields:
        values[section][name] = "evil_code:f"
    file.write_text(yaml.safe_dump(values))
    if whole:
        (run / "private/run_key").unlink()
        facts = read_run(open_folder(str(run)), public=False)
    else:
        facts = read_release(open_folder(str(run / "release")))
    assert "the sums were not compared with the configuration" in text_of(run_page(facts))
    assert not facts.checked
    assert not (tmp_path / "ran").exists()


def test_where_reports_go(run: Path, tmp_path: Path) -> None:
    def written(*arguments: str) -> list[str]:
        result = CliRunner().invoke(cli.app, ["report", str(run), *arguments, "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.output.splitlines()[-1])["public"] == bool(arguments)
        return [line.split()[-1] for line in result.output.splitlines() if "report  " in line]

    assert written() == [f"{run}/private/report.html"]
    assert (run / "private/report.html").stat().st_mode & 0o077 == 0
    assert written("--public") == [f"{run}/privacy-report.html"]
    assert written("--format", "markdown") == [f"{run}/model-card.md"]
    assert written("--public", "--output", f"{tmp_path}/a.html") == [f"{tmp_path}/a.html"]
    for form, name in (("html", "a.md"), ("markdown", "a.html"), ("html", "a")):
        with pytest.raises(ConfigError, match="--output"):
            write_report(str(run), public=True, form=form, output=name)  # type: ignore[arg-type]
    for location in ("nowhere", "."):
        with pytest.raises(RunError, match="give"):
            write_report(str(tmp_path / location), public=False, form="html", output=None)


def statement_of(run: Path, **values: Any) -> Statement:
    told = json.loads((run / "release/privacy.json").read_text())
    return Statement.model_validate(told | values)


def test_the_bound_on_guessing() -> None:
    assert guess_bound([(1e-9, 0.0)]) == pytest.approx(0.5)
    # Randomised response with two answers reaches it.
    assert guess_bound([(0.0, 1.5)]) == pytest.approx(math.exp(1.5) / (1 + math.exp(1.5)))
    assert guess_bound([(0.5, 0.0)]) == pytest.approx(0.75)
    assert guess_bound([(1e-5, 1e6)]) == 1.0
    assert guess_bound([(1e-9, 9.0), (1e-3, 0.1)]) == guess_bound([(1e-3, 0.1)])


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_bound_holds_for_the_best_attack_on_gaussian_noise(run: Path, sigma: float) -> None:
    """One sum of everybody: whoever knows all the rest is right with probability Φ(1/2σ)."""
    sums = [{"noise_multiplier": sigma, "sample_rate": 1.0, "sums": 1}]
    spent = epsilon_of("pld", ((sigma, 1.0, 1),), 1e-4)
    told = statement_of(run, released=sums, epsilon=spent, delta=1e-4, accountant="pld")
    best = NormalDist().cdf(1 / (2 * sigma))
    assert best <= guess_bound(privacy_profile(told)) <= best + 0.15


def test_the_words_do_not_promise_more_than_the_numbers(run: Path) -> None:
    honest = statement_of(run)
    assert "nobody can be sure" in promise(honest, privacy_profile(honest))[0]
    weak = [{"noise_multiplier": 0.2, "sample_rate": 1.0, "sums": 6}]
    loose = statement_of(run, released=weak, epsilon=200.0)
    assert promise(loose, privacy_profile(loose))[0].startswith("The promise is weak")
    none = statement_of(run, epsilon=None, noise_multiplier=0.0)
    [only] = promise(none, privacy_profile(none))
    assert "Nothing is promised" in only
    # The search before counts, and training's own profile is no bound on both.
    searched = statement_of(run, epsilon_with_search=9.0, delta_with_search=2e-4)
    told = " ".join(promise(searched, privacy_profile(searched)))
    assert "ε = 9.0000 and δ = 0.0002" in told
    assert f"right at most {math.ceil(1000 * guess_bound([(2e-4, 9.0)])) / 10:.1f}%" in told


def test_noise_beside_an_exact_accuracy_is_no_protection(run: Path) -> None:
    noised = {"test_accuracy_noise": 3.0, "test_accuracies_published": 2}
    for epsilon in (0.4321, None):
        statement = statement_of(run, **noised, epsilon_of_test_accuracy=epsilon)
        said = [
            accuracy_in_words(statement),
            not_covered(statement)[0],
            dict(figures(statement))["ε of the test accuracy, for test images"],
        ]
        exact = [text for text in said if "exact accuracy of this run was published" in text]
        assert exact == ([] if epsilon else said)
        assert any("hides each of them" in text or "0.4321" in text for text in said) == bool(
            epsilon
        )


def test_what_was_charged_again_is_told(run: Path) -> None:
    facts = read_run(open_folder(str(run)), public=True)
    more = facts.statement.model_copy(update={"charges": facts.statement.charges + 2})
    page = text_of(run_page(replace(facts, statement=more)))
    assert "2 charges more than steps" in page
    assert "What a stop or crash cost on top: 2 noised sums." in page


def test_a_search_has_its_page_and_only_its_best_a_public_one(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(make_sweep(num_samples=4))
    for index in range(len(search.points or [])):
        run_trial(search, index)
    location = search.directory.root.uri
    with pytest.raises(RunError, match=r"a search that is not finished.*--resume"):
        write_report(location, public=False, form="html", output=None)
    with pytest.raises(RunError, match="nothing is released yet"):
        write_report(location, public=True, form="html", output=None)
    told = finish(search, monkeypatch)
    private = Path(location) / "private"
    page = (private / "report.html").read_text()
    made = write_report(location, public=False, form="html", output=None)
    assert made == {"report": str(private / "report.html"), "public": False}
    assert (private / "report.html").read_text() == page
    text = text_of(page)
    assert f"ε = {told['epsilon_of_search']:.4f} at δ = 0.0001" in text
    assert "What is promised" in text
    assert "The search for the configuration, which used the same images." in text
    assert f"Budget {'ε that each trial spent'}" in text

    public = Path(write_report(location, public=True, form="html", output=None)["report"])
    before = public.read_text()
    assert f"ε = {told['epsilon_of_search']:.4f}" in text_of(before)
    everything = json.loads((private / "results.json").read_text())
    for trial in everything["trials"]:
        if trial["name"] != everything["best_trial"]:
            trial["test_accuracy"] = 0.123456
    changed_results = everything | {"trials": everything["trials"][:-1], "seconds": 1e6}
    (private / "results.json").write_text(json.dumps(changed_results))
    write_report(location, public=True, form="html", output=None)
    assert public.read_text() == before
    for trial in runs_of(search):
        [alone, *others] = read_run(trial.root, public=False).notices
        assert "its own, which is not the cost" in alone
        chosen = trial.root.uri.endswith(everything["best_trial"])
        assert chosen != any("its release is not here" in other for other in others)
        with pytest.raises(RunError, match="trial of a search"):
            write_report(trial.root.uri, public=True, form="html", output=None)
    (private / "results.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        write_report(location, public=False, form="html", output=None)


def sweep_result(**values: Any) -> SearchResult:
    """A finished search of three trials and one that failed."""
    trials = [
        made_up_trial(
            name=f"000{i}",
            parameters={"augment.views": 2**i, "optimizer.name": name, "optimizer.lr": 0.1 * i},
            test_accuracy=0.8 + 0.05 * i,
            views=2**i,
            seconds=10.0 * (i + 1),
        )
        for i, name in enumerate(("SGD", "Adam", HOSTILE))
    ]
    lost = {"metrics": {"test_accuracy": None}, "epsilon": None, "status": "failed", "name": "0003"}
    error = f"/data/people/x.png: {HOSTILE}"
    trials.append(trials[0].model_copy(update={**lost, "error": error}))
    best = Winner.of(trials[2])
    return made_up(**{"best": best, "best_trial": "0002", "trials": trials, **values})


def test_the_page_of_a_search_draws_every_field_and_names_what_failed() -> None:
    page = sweep_page(sweep_result(), None)
    found = elements(page)
    assert not {str(e.tag).partition("}")[2] for e in found} & {"script", "img", "link"}
    labels = [e.get("aria-label", "") for e in found if str(e.tag).endswith("}svg")]
    for part in ("All fields at once", "against views", "against name", "against lr", "Budget"):
        assert sum(part in label for label in labels) == 1
    text = text_of(page)
    assert "ε = 5.5000 at δ = 0.0001" in text
    assert "which is not the cost" in text
    assert "people" not in page
    assert "failed (private/results.json says why)" in text
    assert "This page may be published" in text
    private = text_of(sweep_page(sweep_result(privacy_mode="private_selection"), None))
    assert "failed: …: <script>" in private
    assert "may be published" not in private


@pytest.mark.parametrize(
    "values",
    [
        {"trials": [], "best": None, "best_trial": None},
        {"trials": sweep_result().trials[:1]},
        {"trials": sweep_result().trials[3:], "best": None, "best_trial": None},
        {"mode": "min", "privacy_mode": "public", "epsilon_of_search": 0.0},
        {"privacy_mode": "private_selection", "warning": "repeated"},
    ],
    ids=["no trial", "one", "one that failed", "the least of public data", "private"],
)
def test_every_outcome_of_a_search_has_a_page(values: dict[str, Any]) -> None:
    assert elements(sweep_page(sweep_result(**values), None))
