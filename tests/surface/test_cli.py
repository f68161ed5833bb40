"""The commands as a user meets them: what they print, and how mistakes end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.support import MakeConfig, folder, heed_ctrl_c
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.artifacts.progress import Progress
from dp_ray.config.files import load_config
from dp_ray.reporting.run_progress import describe_progress
from dp_ray.reporting.words import duration
from dp_ray.training.preparation import make_plan

COMMANDS = (
    "plan",
    "data",
    "train",
    "tune",
    "audit",
    "evaluate",
    "predict",
    "export",
    "ledger",
    "report",
    "clean",
    "config",
)


@pytest.fixture
def config_file(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A small configuration as a file."""
    values = make_config().dump()
    del values["name"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def dp_ray(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "dp_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command_and_option() -> None:
    text = run("--help")
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        assert "--json" in run(command, "--help")


def test_plan_prints_the_budget_and_one_object(config_file: Path) -> None:
    lines = run("plan", config_file, "--json").splitlines()
    found = json.loads(lines[-1])
    plan = make_plan(load_config(config_file))
    assert found["epsilon"] == pytest.approx(plan.epsilon)
    assert (found["steps"], found["noise_multiplier"]) == (4, 1.0)
    curve = [epsilon for _, epsilon in found["epsilon_curve"]]
    assert curve == sorted(curve)
    assert curve[-1] == found["epsilon"]
    fewest, most = found["seconds"]
    assert 0 < fewest <= most
    assert found["memory_gib_per_worker"] > 0
    assert found["memory_is_measured"] is not None
    assert "σ = 1.0000" in "\n".join(lines)


def test_a_quick_plan_times_nothing(config_file: Path) -> None:
    lines = run("plan", config_file, "--quick", "--json").splitlines()
    found = json.loads(lines[-1])
    assert (found["seconds"], found["microbatch_seconds"]) == (None, None)
    assert not found["memory_is_measured"]
    assert "time          not estimated (--quick)" in lines
    refused = dp_ray("plan", config_file, "--quick", "--workers", "1,2")
    assert refused.returncode == 2
    assert "--workers predicts from the timing that --quick leaves out" in refused.stderr


def test_train_evaluate_and_the_taken_name(config_file: Path) -> None:
    result = json.loads(run("train", config_file, "--json").splitlines()[-1])
    assert (result["name"], result["status"]) == ("small", "finished")
    lines = run("evaluate", result["path"], "--json").splitlines()
    found = json.loads(lines[-1])
    assert found["test_accuracy"] == result["test_accuracy"]
    assert len(found["per_class"]) == len(found["confusion_matrix"]) == 10
    assert {"calibration_error", "mean_confidence", "largest_confusions"} <= found.keys()
    assert found["picture"] == f"{result['path']}/confusion.png"
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert f"picture       {found['picture']}" in lines
    other = run("train", config_file, "--name", "other", "--set", "privacy.steps=2", "--json")
    assert json.loads(other.splitlines()[-1])["steps"] == 2

    again = dp_ray("train", config_file)
    assert again.returncode == 2
    assert again.stderr.startswith("dp-ray: ")
    assert "choose another --name" in again.stderr
    assert "Traceback" not in again.stderr


def test_evaluate_one_example_of_many_classes(config_file: Path, tmp_path: Path) -> None:
    fake = ["--set", "data={name: fake, num_examples: 9, num_classes: 30, image_size: 8}"]
    few = ["--set", "data.expected_batch_size=4", "--set", f"data.cache={tmp_path}/cache"]
    result = json.loads(run("train", config_file, *fake, *few, "--json").splitlines()[-1])
    drawn = tmp_path / "drawn.svg"
    lines = run("evaluate", result["path"], "--picture", drawn, "--json").splitlines()
    found = json.loads(lines[-1])
    assert found["test_examples"] == 1
    assert [c["examples"] for c in found["per_class"]].count(0) == 29
    assert drawn.exists()
    assert not (Path(result["path"]) / "confusion.png").exists()


def test_evaluate_refuses_a_picture_before_it_reads_data(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, errors = failed(capsys, "evaluate", config_file.parent, "--picture", "a.bmp")
    assert "--picture = 'a.bmp'" in errors
    assert output == ""


def test_ctrl_c_leaves_a_run_that_can_be_resumed(config_file: Path) -> None:
    private = folder(load_config(config_file)) / "private"
    command = [sys.executable, "-m", "dp_ray", "train", str(config_file)]
    many = ["--set", "privacy.steps=4000", "--set", "privacy.accountant=rdp", "--json"]
    with subprocess.Popen(
        [*command, *many],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509
    ) as process:
        while not (private / "progress.json").exists():
            assert process.poll() is None, process.stderr
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 130
    # A busy machine may take more than the half minute after which a run says that it is starting.
    assert all(" … " in line for line in errors.splitlines()), errors
    result = json.loads(output.splitlines()[-1])
    assert result["status"] == "stopped"
    assert 0 < result["steps"] == result["charges"] < 4000
    assert list((private / "checkpoints").iterdir())
    assert "--resume" in output
    refused = dp_ray("train", config_file, *many)
    assert "continue it with --resume" in refused.stderr


def test_ledger_says_what_was_spent_and_whether_it_verifies(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(run("train", config_file, "--json").splitlines()[-1])
    *lines, last = run("ledger", result["path"], "--json").splitlines()
    facts = json.loads(last)
    assert facts["verified"]
    assert (facts["steps"], facts["charges"], facts["repeated"]) == (4, 4, 0)
    assert facts["epsilon"] == facts["epsilon_by_accountant"]["rdp"] == result["epsilon"]
    assert set(facts["epsilon_by_accountant"]) == {"prv", "rdp", "pld"}
    assert "verifies" in lines[0]

    records = Path(result["path"]) / "private/ledger/records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole.replace(b"charge", b"chargo", 1))
    _, errors = failed(capsys, "ledger", result["path"])
    assert "does not verify: record 3" in errors
    assert errors.count("\n") == 1

    records.write_bytes(whole[:-9])  # as a power cut leaves it
    _, errors = failed(capsys, "ledger", result["path"])
    assert "--repair" in errors
    facts = json.loads(run("ledger", result["path"], "--repair", "--json").splitlines()[-1])
    assert (facts["charges"], facts["repairs"]) == (4, 1)  # the head knows: no charge
    _, errors = failed(capsys, "ledger", str(config_file.parent / "nothing"))
    assert "there is no run" in errors


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("privacy.delta=0.9", "privacy.delta = 0.9: δ must be below 1/N"),
        ("privacy.epsilom=1", "Did you mean privacy.epsilon?"),
        ("nonsense", "not of the form section.field=value"),
        ("data.name=mnist", "data.root = None: mnist needs the folder"),
    ],
)
def test_a_mistake_is_one_message(
    config_file: Path, override: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, errors = failed(capsys, "train", config_file, "--set", override)
    assert expected in errors
    assert errors.count("\n") == 1
    assert output == ""


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, errors = failed(capsys, "plan", "no/such/file.yaml")
    assert "cannot read the configuration" in errors


def failed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends with exit code 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dp-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 2
    output, errors = capsys.readouterr()
    return output, errors


def test_config_prints_every_field_with_its_meaning(config_file: Path) -> None:
    text = run("config")
    assert "# K: augmented copies of each example" in text
    assert "#   num_samples: 8" in text
    values = yaml.safe_load(run("config", config_file))
    assert values["privacy"]["steps"] == 4


def test_progress_is_told_in_one_line(make_config: MakeConfig) -> None:
    plan = make_plan(make_config(privacy={"steps": 100}))
    progress = Progress(
        step=42,
        steps=100,
        charges=42,
        repaired=False,
        metrics={"test_accuracy": 0.5},
        images_per_second=1234.5,
        seconds_left=75.0,
        seconds=60.0,
    )
    line = describe_progress(progress, plan)
    for part in ("step 42/100", "1,23", "accuracy 0.500", "1 min 15 s left"):
        assert part in line
    shown = float(line.split("ε ≤ ")[1].split()[0])
    assert plan.epsilon_after(42) - 0.005 <= shown <= plan.epsilon_after(45) + 0.005

    # A repair charges as for the least noise: what the plan's first steps cost is too little.
    falling = make_plan(make_config(privacy={"steps": 100, "noise_schedule": {"final": 0.2}}))
    line = describe_progress(progress.model_copy(update={"repaired": True}), falling)
    assert f"ε ≤ {falling.epsilon:.2f} of {falling.epsilon:.2f}" in line


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("dp_ray.api.train.begin", "stopped before the run began: nothing was written"),
        ("dp_ray.training.coordinator.Coordinator.save", "stopped at once, 1 noised sum charged; "),
    ],
)
def test_a_command_that_is_interrupted_says_what_is_there(
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    said: str,
) -> None:
    """As by a second Ctrl-C, or by the first one while the run is planned."""

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    command = ["dp-ray", "train", str(config_file), "--set", "train.checkpoint_every=1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(signal, "signal", lambda *_: signal.default_int_handler)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    [line] = [text for text in capsys.readouterr().err.splitlines() if "stopped" in text]
    assert line.startswith(f"dp-ray: {said}")
