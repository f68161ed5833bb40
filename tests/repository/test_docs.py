"""The documentation: its commands are run, its YAML is loaded, its links and names are followed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from helpers.documents import FASTER, Reader
from helpers.pages import INFOS, PROGRAMS, ROOT, Page, pages
from PIL import Image
from typer.core import TyperGroup

from dp_ray import cli
from dp_ray.config.files import describe_fields, parse_config
from dp_ray.config.run import Config
from dp_ray.config.search import TuneConfig, parse_sweep
from dp_ray.config.yaml_text import read_yaml
from dp_ray.data.facts import data_facts
from dp_ray.reporting.reference import configuration_page
from dp_ray.reporting.reference import main as write_reference

PAGES = {page.name: page for page in pages()}

CLOUD = "it needs a cloud, Kubernetes, Slurm or Docker; what it reads is checked"
NOT_HERE: dict[str, tuple[str, str]] = {
    "make test": ("this test is part of it", ".ci/run"),
    "make check": ("it needs the tools of an installation", ".ci/run"),
    "make faults": ("it takes an hour; parts of it are run", "tests/faults/test_with_ray.py"),
    "make verify": ("it breaks the code on purpose, for minutes", "tests/mutations/__main__.py"),
    "make docs": ("this test is, or checks, what it does", "Makefile"),
    "python first.py": ("it is run by its own test", "tests/surface/test_places.py"),
    "ray job": ("it needs a cluster", "tests/on_ray/test_jobs.py"),
    "export RAY_ADDRESS": ("it needs a cluster", "tests/on_ray/test_jobs.py"),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0": ("it starts a cluster", "tests/helpers/cluster_head.py"),
    "DISK=/mnt/disk1 ray start": ("it needs several nodes", "tests/on_ray/test_nodes.py"),
    "dp-ray train … --set data.root='$DISK": (
        "it needs several nodes",
        "tests/on_ray/test_nodes.py",
    ),
    "dp-ray tune configs/sweeps/digits.yaml --name search": (
        "it needs Ray",
        "tests/on_ray/test_docs_on_ray.py",
    ),
    "dp-ray report runs/my-search": ("it needs a search", "tests/reporting/test_report_page.py"),
    "dp-ray train runs/search/best.yaml": (
        "it needs what Ray has found",
        "tests/on_ray/test_docs_on_ray.py",
    ),
    "docker": (CLOUD, "tests/repository/test_cluster_files.py"),
    "kubectl": (CLOUD, "tests/repository/test_kubernetes_files.py"),
    "sed 's|REGISTRY": (CLOUD, "tests/repository/test_kubernetes_files.py"),
    "(umask 077; kubectl": (CLOUD, "tests/repository/test_kubernetes_files.py"),
    "sbatch": (CLOUD, "tests/repository/test_cluster_files.py"),
    "(umask 077; ray get-auth-token": (CLOUD, "tests/helpers/cluster_head.py"),
    "ray up": (CLOUD, "tests/repository/test_cluster_files.py"),
    "ray rsync-up": (CLOUD, "tests/repository/test_cluster_files.py"),
    "ray exec": (CLOUD, "tests/repository/test_cluster_files.py"),
    "ray down": (CLOUD, "tests/repository/test_cluster_files.py"),
    "dp-ray train configs/cifar10/wrn_16_4_eps8.yaml": (
        "it needs a GPU",
        "benchmarks/gpu/learning.py",
    ),
    "make gpu-bundle": ("it packs what pip downloads", "tests/repository/test_gpu_bundle.py"),
    "bash build/gpu/": ("it needs a GPU", "tests/repository/test_gpu_bundle.py"),
    "python benchmarks/collectives.py": ("it measures for minutes", "docs/scaling.md"),
}
"""How commands begin that are not run by this test: why not; where they, or their figures, are."""


def elsewhere(command: str) -> str | None:
    """Which entry of ``NOT_HERE`` a command is."""
    if command.endswith("--dry-run"):
        return None
    return next((start for start in NOT_HERE if command.startswith(start)), None)


# What a page needs to be there


def own_images(folder: Path) -> None:
    """Five classes of images in folders, and as arrays."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for name in ("ash", "beech", "elm", "lime", "oak"):
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")
    arrays = {}
    for split, count in (("train", 60), ("test", 10)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 5, count)
    np.savez(folder / "arrays.npz", **arrays)


def own_arrays(folder: Path) -> None:
    """Images of five classes in .npy files."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 10)):
        place = folder / "arrays" / split
        place.mkdir(parents=True)
        images = generator.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
        np.save(place / "images.npy", images)
        np.save(place / "labels.npy", generator.integers(0, 5, count))


def trained_run(folder: Path) -> None:
    """A run, and its release at another place."""
    Reader.run("dp-ray train configs/digits.yaml")
    shutil.copytree(folder / "runs/digits/release", folder / "path/to/release")


def run_and_photos(folder: Path) -> None:
    """A run, and pictures beside it."""
    Reader.run("dp-ray train configs/digits.yaml")
    photos(folder)


def photos(folder: Path) -> None:
    """Pictures, by themselves and in a folder."""
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for name in ("photo.png", "photos/one.png", "photos/two.jpg"):
        Image.fromarray(pixels).save(folder / name)


PREPARE: dict[str, Callable[[Path], None]] = {
    "docs/extending.md": own_arrays,
    "docs/how_to/own_data.md": own_images,
    "docs/report.md": trained_run,
    "docs/how_to/use_a_model.md": run_and_photos,
    "README.md": photos,
}
RUN = [name for name, page in PAGES.items() if any(b.commands or b.file for b in page.blocks())]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_commands_do_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, monkeypatch)
    PREPARE.get(name, lambda _: None)(tmp_path)
    reader.follow(PAGES[name], skip=elsewhere)


def test_what_is_run_elsewhere_is_in_a_page_and_there() -> None:
    commands = [c for page in PAGES.values() for b in page.blocks() for c in b.commands]
    used = {elsewhere(re.sub(r"\s+# .*", "", command)) for command in commands}
    assert not NOT_HERE.keys() - used
    for _, where in NOT_HERE.values():
        assert (ROOT / where).is_file(), where
    for file in FASTER:
        assert any(file in command for command in commands), file


def test_a_command_that_nobody_knows_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, monkeypatch)
    for command in ("dp-ray trian configs/digits.yaml", "dp-ray plan no.yaml", "make nothing"):
        path = tmp_path / "page.md"
        path.write_text(f"```bash\n{command}\n```\n")
        with pytest.raises(AssertionError):
            reader.follow(Page(path), skip=elsewhere)


# What is named exists

COMMAND = typer.main.get_command(cli.app)
FIELDS = {path for path, _ in describe_fields()} | {
    path for path, _ in describe_fields(TuneConfig, "tune.")
}
SECTIONS = {path.split(".")[0] for path in FIELDS if "." in path}
PATH = re.compile(r"(dp_ray|tests|docs|configs|benchmarks|cluster)/[\w./-]*")
FIELD = re.compile(rf"({'|'.join(SECTIONS)})(\.[a-z_]+)+(?=$|[=: /…])")
FILE = re.compile(r"\.(safetensors|yaml|json|py|md)$")


def check_field(field: str) -> None:
    """A dotted field, or one within a field that holds a mapping."""
    parts = field.split(".")
    known = {".".join(parts[: i + 1]) for i in range(len(parts))} & FIELDS
    assert known or any(f.startswith(f"{field}.") for f in FIELDS), f"no field {field}"


def check_command(text: str) -> None:
    """The subcommand, options and fields of ``dp-ray …``; options of benchmarks; make's targets."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:  # quotes are open: within other quotes
        words = text.split()
    if words[:1] == ["dp-ray"] and len(words) > 1 and re.fullmatch(r"\w+", words[1]):
        assert isinstance(COMMAND, TyperGroup)
        found = COMMAND.commands.get(words[1])
        assert found is not None, f"no command {text}"
        options = {o for p in found.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for index, word in enumerate(words[2:], start=2):
            assert not word.startswith("--") or word in options, f"{text}: no option {word}"
            if words[index - 1] == "--set" and word != "a.b=c":
                check_field(word.split("=")[0])
            if word.startswith("configs/"):
                assert (ROOT / word).exists(), word
    if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words[2:]:
            option = word.strip("[]")
            assert not option.startswith("--") or f'"{option}"' in script, f"{text}: {word}"
    if words[:1] == ["make"] and len(words) == 2:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), text


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_what_is_named_exists(page: Page) -> None:
    for code in page.codes():
        if found := PATH.fullmatch(code):
            assert (ROOT / found[0]).exists() or (ROOT / "dp_ray" / found[0]).exists(), code
        if (found := FIELD.match(code)) and not FILE.search(code):
            check_field(found[0])
        if PROGRAMS.match(code):
            check_command(code)
    for command in (command for block in page.blocks() for command in block.commands):
        check_command(command)
        if " dp-ray " in command:  # as a cluster is told
            check_command(command[command.index(" dp-ray ") :].strip())


@pytest.mark.parametrize(
    "text",
    [
        "dp-ray trian x.yaml",
        "dp-ray train x.yaml --resum",
        "dp-ray train configs/none.yaml",
        "dp-ray train x.yaml --set privacy.epsilom=1",
        "python benchmarks/start_up.py --wokers 2",
        "make demos",
    ],
)
def test_what_does_not_exist_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        check_command(text)


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), link
        assert not anchor or anchor in Page(target).anchors(), link


def test_every_page_is_in_the_index() -> None:
    index = PAGES["docs/README.md"]
    linked = {(index.path.parent / link.split("#")[0]).resolve() for link in index.links()}
    docs = {page.path for name, page in PAGES.items() if name.startswith("docs/")}
    assert not docs - linked - {index.path}


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_yaml_is_loaded(page: Page) -> None:
    for block in page.blocks():
        assert block.info in INFOS, f"{page.name}: {block.info}"
        if block.info == "yaml":
            load(read_yaml(block.content))


def load(snippet: dict[str, Any]) -> None:
    """A part of a configuration, put into one that is whole."""
    values: dict[str, Any] = {
        "name": "documented",
        "data": {"name": "digits", "expected_batch_size": 64},
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "steps": 10},
        "optimizer": {"lr": 1.0},
    }
    for name, section in snippet.items():
        merged = isinstance(section, dict) and name in ("data", "optimizer")
        values[name] = {**values[name], **section} if merged else section
    if "tune" in values:
        parse_sweep(values)
    else:
        data_facts(parse_config(values).data)


# The configuration reference


def test_the_configuration_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == configuration_page(), (
        "make docs writes it"
    )


def test_the_reference_has_every_field_with_its_bounds() -> None:
    lines = configuration_page().splitlines()
    for path, field in (*describe_fields(Config), *describe_fields(TuneConfig, "tune.")):
        [line] = [line for line in lines if line.startswith(f"| `{path}` |")]
        assert field.description is not None
        assert field.description in line
    assert any("`augment.hue` | number at least 0 and at most 0.5 | `0.0` |" in x for x in lines)


def test_check_tells_a_reference_that_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "configuration.md"
    assert write_reference([str(file)]) == 0
    assert write_reference([str(file), "--check"]) == 0
    file.write_text(file.read_text().replace("`privacy.delta`", "`privacy.gamma`"))
    assert write_reference([str(file), "--check"]) == 1
    assert "make docs writes it" in capsys.readouterr().err
    assert "privacy.gamma" in file.read_text()
