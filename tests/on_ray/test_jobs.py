"""``ray job submit``: what comes of a job, how it is stopped, and what the cluster sees of it."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cluster_head import Head, listening, start_head, wait_for
from helpers.support import MakeConfig, folder, start

import dp_ray
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.yaml_text import write_yaml

RUNTIME_ENV = Path(dp_ray.__file__).parents[1] / "cluster/runtime-env.yaml"
STEPS = 100
OWN_MODEL = """
import time
from pathlib import Path
from torch import nn

class Dawdle(nn.Module):
    def forward(self, images):
        if Path(SLOWLY).exists():
            time.sleep(0.1)
        return images

def build(num_classes, channels, image_size):
    return nn.Sequential(Dawdle(), nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with start_head({"slot": 2}) as started:
        yield started


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that jobs are submitted from: a configuration, and a network of the user's own."""
    path = tmp_path_factory.mktemp("work")
    (path / "my_model.py").write_text(f"SLOWLY = {str(path / 'slowly')!r}\n{OWN_MODEL}")
    values: dict[str, Any] = {
        "name": "job",
        "data": {
            "name": "digits",
            "expected_batch_size": 64,
            "root": str(path / "secret-place"),
            "cache": str(path / "secret-cache"),
        },
        "model": {"name": "my_model:build"},
        "privacy": {"noise_multiplier": 1.0, "steps": STEPS, "delta": 1e-4, "accountant": "rdp"},
        "optimizer": {"lr": 0.5},
        "train": {"storage_path": str(path / "results"), "engine": "vmap"},
        "cluster": {
            "num_workers": 2,
            "namespace": "images",
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": {"slot": 1},
        },
    }
    (path / "job.yaml").write_text(write_yaml(values))
    values["cluster"]["num_workers"] = 1
    values["privacy"] = {"epsilon": 3.0, "delta": 1e-4, "accountant": "rdp"}
    values["data"] = {**values["data"], "evaluation": "public"}
    values["tune"] = {
        "space": {"augment.views": {"choice": [1, 2]}, "privacy.steps": {"choice": [10]}},
        "num_samples": 2,
        "privacy_mode": "compose",
    }
    (path / "search.yaml").write_text(write_yaml(values))
    return path


def submit(
    head: Head, work: Path, name: str, *command: str, wait: bool = True
) -> subprocess.CompletedProcess[str]:
    """As docs/cluster.md says."""
    return submit_program(head, work, name, "dp-ray", *command, wait=wait)


def submit_program(
    head: Head, work: Path, name: str, *command: str, wait: bool = True
) -> subprocess.CompletedProcess[str]:
    """Any program, likewise."""
    return head.ray(
        *("job", "submit", "--address", head.url, "--submission-id", name),
        *("--working-dir", ".", "--runtime-env", str(RUNTIME_ENV)),
        *(() if wait else ("--no-wait",)),
        *("--", *command),
        cwd=work,
    )


def seen_secrets(head: Head, work: Path, name: str) -> set[tuple[str, str]]:
    """(secret of a run or search, where on the cluster it is seen)."""
    secrets = {
        "data.root": str(work / "secret-place").encode(),
        "data.cache": str(work / "secret-cache").encode(),
    }
    files = list((work / "results" / name / "private").rglob("run_key"))
    assert files
    for file in files:
        key = file.read_text().split()[0]
        secrets |= {f"{file} in words": key.encode(), f"{file} in bytes": bytes.fromhex(key)}
    told = head.told()
    assert any(b"Running entrypoint" in text for text in told.values())  # it does look at logs
    return {(what, where) for what, s in secrets.items() for where, t in told.items() if s in t}


@dataclass(frozen=True)
class Stopped:
    """A job that was stopped, and what was seen of it while it ran.

    Attributes:
        run: of which it was the first part.
        secrets: see :func:`seen_secrets`.
        listens: where its processes and the cluster's did.
        actors: by class.
    """

    run: RunDirectory
    secrets: set[tuple[str, str]]
    listens: set[str]
    actors: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def stopped(head: Head, work: Path) -> Stopped:
    run = RunDirectory.of(dp_ray.load_config(work / "job.yaml"))
    (work / "slowly").touch()  # there is time to look, and to stop it
    begun = submit(head, work, "begun", "train", "job.yaml", wait=False)
    assert begun.returncode == 0, begun.stderr
    wait_for(lambda: run.private.exists(Progress.FILE) or head.job("begun")["status"] == "FAILED")
    assert head.job("begun")["status"] == "RUNNING", head.logs("begun")
    actors = json.loads(head.get("api/v0/actors?detail=1"))["data"]["result"]["result"]
    seen = Stopped(
        run,
        seen_secrets(head, work, "job"),
        listening(head.descendants()),
        {actor["class_name"]: actor for actor in actors},
    )
    stop = head.ray("job", "stop", "--address", head.url, "begun")
    assert stop.returncode == 0, stop.stderr
    (work / "slowly").unlink()
    return seen


def test_a_job_that_is_stopped_leaves_a_resumable_run(head: Head, stopped: Stopped) -> None:
    assert head.job("begun")["status"] == "STOPPED"
    result = Result.read(stopped.run.root).dump()
    assert result["status"] == "stopped"
    assert 0 < result["charges"] == result["steps"] < STEPS
    assert head.logs("begun").splitlines()[-1].endswith("the same command with --resume")


def test_a_job_goes_on_to_its_end(head: Head, work: Path, stopped: Stopped) -> None:
    resumed = submit(head, work, "resumed", "train", "job.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stdout
    job = head.job("resumed")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0)
    lines = head.logs("resumed").splitlines()
    assert any(line.startswith(f"finished      {STEPS} steps") for line in lines)
    assert lines[-1] == f"keep secret   {stopped.run.private}"
    assert Result.read(stopped.run.root).charges == STEPS


def test_no_secret_is_seen_on_the_cluster(head: Head, work: Path, stopped: Stopped) -> None:
    """Nor is a path of the data: in answers, logs and environments, during a run and after it."""
    assert stopped.secrets == set()
    assert seen_secrets(head, work, "job") == set()


def test_all_listen_on_the_loopback(stopped: Stopped) -> None:
    assert stopped.listens == {"127.0.0.1"}


def test_workers_are_where_and_what_was_configured(stopped: Stopped) -> None:
    worker = stopped.actors["RayTrainWorker"]
    assert worker["ray_namespace"] == "images"
    assert any(name.startswith("slot_group_") for name in worker["required_resources"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["privacy.delta=0.9"], "dp-ray: privacy.delta = 0.9: "),
        pytest.param(
            ["train.storage_path=runs"],
            "dp-ray: train.storage_path = 'runs': a submitted job",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["cluster.resources_per_worker.slot=3", "cluster.timeout_s=1"],
            "dp-ray: cluster.resources_per_worker = {'slot': 3.0}: a worker needs 1 CPU, 3 slot, "
            "and there is room for 0 of 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_is_the_last_line_of_the_log(
    head: Head, work: Path, settings: list[str], message: str
) -> None:
    name = f"mistaken-{settings[0].partition('=')[0]}"
    arguments = [word for setting in settings for word in ("--set", setting)]
    refused = submit(head, work, name, "train", "job.yaml", "--name", name, *arguments)
    assert refused.returncode == 1  # whatever the command's own code, which the job has
    job = head.job(name)
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)
    assert head.logs(name).splitlines()[-1].startswith(message)
    assert "Traceback" not in refused.stdout + refused.stderr + head.logs(name)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train job.yaml", "tune search.yaml"])
def test_a_stop_is_noticed_while_room_is_awaited(head: Head, work: Path, command: str) -> None:
    name = f"waiting-{command.partition(' ')[0]}"
    slots = "cluster.resources_per_worker.slot=3"
    waiting = submit(head, work, name, *command.split(), "--name", name, "--set", slots, wait=False)
    assert waiting.returncode == 0, waiting.stderr
    wait_for(lambda: "(cluster.timeout_s)" in head.logs(name))
    stop = head.ray("job", "stop", "--address", head.url, name)
    assert stop.returncode == 0, stop.stderr
    assert head.job(name)["status"] == "STOPPED"
    assert head.logs(name).splitlines()[-1] == (
        "dp-ray: stopped while room was awaited; the same command with --resume goes on"
    )


@pytest.mark.slow
def test_a_search(head: Head, work: Path) -> None:
    found = submit(head, work, "search", "tune", "search.yaml", "--name", "search", "--json")
    assert found.returncode == 0, found.stdout
    assert head.job("search")["status"] == "SUCCEEDED"
    result = json.loads(head.logs("search").splitlines()[-1])
    assert [trial["status"] for trial in result["trials"]] == ["finished", "finished"]
    assert seen_secrets(head, work, "search") == set()


SCRIPT = """
import dp_ray
import my_model

class Count(dp_ray.Callback):
    seen = 0

    def on_evaluation(self, public, private):
        self.seen += 1

count = Count()
short = ["privacy.steps=3", "train.evaluate_every=1"]
config = dp_ray.load_config("job.yaml", short, name="script")
run = dp_ray.train(config, model=my_model.build, callbacks=[count])
print("run is", run.status, "after", count.seen, "evaluations")
"""


@pytest.mark.slow
def test_a_script_is_a_job_as_well(head: Head, work: Path) -> None:
    (work / "script.py").write_text(SCRIPT)
    done = submit_program(head, work, "script", "python", "script.py")
    assert done.returncode == 0, done.stdout
    assert head.logs("script").splitlines()[-1] == "run is finished after 3 evaluations"
    assert seen_secrets(head, work, "script") == set()


@pytest.mark.parametrize("excluded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_private_part_travels_to_a_cluster(
    make_config: MakeConfig, tmp_path: Path, excluded: bool
) -> None:
    """By what Ray packs for ``--working-dir .``; with our file, and with what runs say of it."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load(RUNTIME_ENV.read_text())["excludes"] if excluded else []
    for path in ("runs", "results/of/mine"):
        config = make_config(train={"storage_path": str(tmp_path / "work" / path)})
        start(config)
        if excluded:
            (folder(config) / "private/.gitignore").unlink()
    (tmp_path / "work/mine.py").write_text("")
    create_package(
        str(tmp_path / "work"),
        tmp_path / "package.zip",
        include_gitignore=True,
        excludes=[*get_runtime_env_default_excludes(), *excludes],
    )
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    assert {"mine.py", "results/of/mine/run/result.json"} <= set(names)
    assert not [name for name in names if "private" in name and not name.endswith("private/")]
    assert excluded != any(name.startswith("runs/run/") for name in names)
