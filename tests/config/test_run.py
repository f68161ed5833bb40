"""The configuration: strict, documented, and every refusal worded so that a user can act on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from helpers.support import MakeConfig
from pydantic import BaseModel

from dp_ray.config.files import apply_override, describe_fields, load_config, parse_config
from dp_ray.config.run import Config
from dp_ray.data.sources.own import Own
from dp_ray.data.sources.registry import SOURCES
from dp_ray.errors import ConfigError, DpRayError, ModelError
from dp_ray.reporting.fields import describe_config
from dp_ray.training.preparation import make_plan

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
N = 1437  # training examples of digits

TEXT = """
data:
  name: digits
  expected_batch_size: 64
privacy:
  noise_multiplier: 1.5
  steps: 10
  delta: 1e-5
  accountant: rdp
optimizer:
  lr: 2
"""

OWN_BUILDERS = """
from opacus import GradSampleModule
from torch import nn

def plain(channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))

def batch_norm(**shape):
    return nn.Sequential(nn.BatchNorm2d(shape["channels"], affine=False), plain(**shape))

def hooked(**shape):
    return GradSampleModule(plain(**shape))
"""


def values(**sections: Any) -> dict[str, Any]:
    """The values of ``TEXT``; a dictionary is merged into its section, others replace."""
    found: dict[str, Any] = yaml.safe_load(TEXT.replace("1e-5", "1.0e-5"))
    for name, section in sections.items():
        merge = isinstance(section, dict) and isinstance(found.get(name, {}), dict)
        found[name] = {**found.get(name, {}), **section} if merge else section
    return found


def refused(**sections: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(values(**sections))
    return caught.value


def plan_refused(**sections: Any) -> ConfigError:
    config = parse_config(values(**sections))
    with pytest.raises(ConfigError) as caught:
        make_plan(config)
    return caught.value


def write(folder: Path, text: str, name: str = "trial.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("2.5e-4", 2.5e-4),
        ("0.00001", 1e-5),
        (".5e-3", 5e-4),
    ],
)
def test_scientific_notation_is_a_number(tmp_path: Path, text: str, expected: float) -> None:
    """Plain YAML 1.1 reads 1e-5 as a string."""
    config = load_config(write(tmp_path, TEXT.replace("1e-5", text)))
    assert config.privacy.delta == expected
    config = load_config(write(tmp_path, TEXT), [f"privacy.delta={text}"])
    assert config.privacy.delta == expected


@pytest.mark.parametrize("text", ["1e-5x", "e5", "'1e-5'", "1-5", "v1e5"])
def test_other_text_stays_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.delta = '.*': it should be a valid number"):
        load_config(write(tmp_path, TEXT.replace("1e-5", text)))


def test_name_comes_from_the_argument_the_file_or_its_name(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, TEXT)).name == "trial"
    named = write(tmp_path, f"name: chosen\n{TEXT}")
    assert load_config(named).name == "chosen"
    assert load_config(named, ["name=set"]).name == "set"
    assert load_config(named, ["name=set"], name="argument").name == "argument"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "3"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DpRayError, match="must hold sections") as caught:
        load_config(write(tmp_path, text))
    assert "trial.yaml" in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DpRayError, match=r"cannot read the configuration .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(DpRayError, match=r"trial\.yaml is not YAML"):
        load_config(write(tmp_path, "data: [1, 2"))
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(DpRayError, match=r"cannot read the configuration .*latin\.yaml"):
        load_config(path)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(DpRayError, match="is not YAML"):
        load_config(write(tmp_path, "name: !!python/object/apply:os.getcwd []\n"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configurations_of_the_repository_can_be_loaded(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_there_are_configurations_in_the_repository() -> None:
    assert {"digits.yaml", "mnist.yaml", "fine_tune.yaml"} <= {path.name for path in CONFIGS}


# Unknown keys


@pytest.mark.parametrize(
    ("sections", "found", "meant"),
    [
        ({"privacy": {"epsilonn": 3}}, "privacy.epsilonn = 3", "privacy.epsilon"),
        ({"optimizer": {"learning": 1}}, "optimizer.learning = 1", "optimizer."),
        ({"optimiser": {"lr": 1}}, "optimiser = {'lr': 1}", "optimizer"),
        ({"train": {"batch_size": 8}}, "train.batch_size = 8", "train.microbatch_size"),
        ({"sead": 1}, "sead = 1", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(sections: dict[str, Any], found: str, meant: str) -> None:
    message = str(refused(**sections))
    assert message.startswith(f"{found}: no such field. Did you mean {meant}")
    assert "dp-ray config" in message


@pytest.mark.parametrize(
    ("sections", "right"),
    [
        ({"train": {"lr": 3}}, "optimizer.lr"),
        ({"train": {"num_workers": 3}}, "cluster.num_workers"),
        ({"data": {"views": 4}}, "augment.views"),
        ({"epsilon": 3}, "privacy.epsilon"),
        ({"augment": {"cutuot": 3}}, "augment.cutout"),
    ],
)
def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(
    sections: dict[str, Any], right: str
) -> None:
    error = refused(**sections)
    assert "no such field" in str(error)
    assert f"Did you mean {right}?" in str(error)


def test_an_unknown_key_comes_before_other_complaints() -> None:
    """A missing field may be missing because of the typing error."""
    broken = values()
    broken["optimizer"] = {"learning_rate": 3}
    with pytest.raises(ConfigError, match=r"^optimizer\.learning_rate = 3: no such field"):
        parse_config(broken)


@pytest.mark.parametrize("section", [3, None, [1], "sgd"])
def test_a_section_that_is_none_is_refused(section: Any) -> None:
    message = str(refused(optimizer=section))
    assert message.startswith(f"optimizer = {section!r}: a section of fields is expected")
    assert "lr" in message


# Values


@pytest.mark.parametrize(
    ("path", "section", "field"),
    [
        ("privacy.delta", "privacy", "delta"),
        ("optimizer.lr", "optimizer", "lr"),
        ("data.expected_batch_size", "data", "expected_batch_size"),
    ],
)
def test_a_missing_field_is_named(path: str, section: str, field: str) -> None:
    incomplete = values()
    del incomplete[section][field]
    with pytest.raises(ConfigError) as caught:
        parse_config(incomplete)
    message = str(caught.value)
    assert message.startswith(f"{path} = None: must be given")
    assert not message.endswith("..")


def test_a_missing_section_is_named() -> None:
    incomplete = values()
    del incomplete["privacy"]
    with pytest.raises(ConfigError, match=r"^privacy = None: must be given"):
        parse_config(incomplete)


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"privacy": {"delta": 0.0}}, "privacy.delta = 0.0: it should be greater than 0"),
        ({"privacy": {"delta": 1.0}}, "privacy.delta = 1.0: it should be less than 1"),
        ({"privacy": {"delta": float("nan")}}, "privacy.delta = nan: it should be"),
        ({"privacy": {"steps": 1.5}}, "privacy.steps = 1.5: it should be a valid integer"),
        ({"privacy": {"steps": 0}}, "privacy.steps = 0: it should be greater than or equal to 1"),
        (
            {"privacy": {"noise_multiplier": float("inf")}},
            "privacy.noise_multiplier = inf: it should be a finite number",
        ),
        ({"privacy": {"max_grad_norm": 0.0}}, "privacy.max_grad_norm = 0.0: it should be greater"),
        ({"privacy": {"accountant": "gdp"}}, "privacy.accountant = 'gdp': it should be 'prv'"),
        ({"augment": {"views": 0}}, "augment.views = 0: it should be greater"),
        ({"augment": {"views": True}}, "augment.views = True: it should be a valid integer"),
        ({"augment": {"padding": "edge"}}, "augment.padding = 'edge': it should be 'reflect'"),
        ({"augment": {"horizontal_flip": 1.1}}, "augment.horizontal_flip = 1.1: it should be less"),
        ({"augment": {"scale": 1.0}}, "augment.scale = 1.0: it should be less than 1"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr = 'fast': it should be a valid number"),
        ({"optimizer": {"ema_decay": 1.0}}, "optimizer.ema_decay = 1.0: it should be less than 1"),
        ({"data": {"std": [0.0]}}, "data.std = 0.0: it should be greater than 0"),
        ({"data": {"channels": 2}}, "data.channels = 2: it should be 1 or 3"),
        ({"cluster": {"num_workers": -1}}, "cluster.num_workers = -1: it should be greater"),
        ({"seed": -1}, "seed = -1: it should be greater"),
        ({"model": {"arguments": [1]}}, "model.arguments = [1]: it should be a valid dictionary"),
        ({"model": {"trainable": "fc"}}, "model.trainable = 'fc': it should be 'all' or 'head'"),
        ({"model": {"trainable": []}}, "model.trainable = []: "),
        ({"model": {"pretrained": True}}, "model.pretrained = True: it should be a valid string"),
    ],
)
def test_a_bad_value_is_named_with_its_field(sections: dict[str, Any], start: str) -> None:
    error = refused(**sections)
    assert str(error).startswith(start)
    assert str(error).endswith(".")
    assert error.remedy


def test_mean_and_channels_must_agree() -> None:
    message = str(refused(data={"mean": [0.1, 0.2], "channels": 3}))
    assert message.startswith("data = ")
    assert "mean has 2 values for 3 channels" in message


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "found none"),
        ({"steps": 10}, "found steps"),
        ({"epsilon": 3.0}, "found epsilon"),
        ({"noise_multiplier": 1.0}, "found noise_multiplier"),
        (
            {"epsilon": 3.0, "noise_multiplier": 1.0, "steps": 10},
            "found epsilon, noise_multiplier, steps",
        ),
    ],
)
def test_exactly_two_of_three_are_given(given: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**values(), "privacy": {"delta": 1e-5, **given}})
    message = str(caught.value)
    assert message.startswith("privacy = ")
    assert "of epsilon, noise_multiplier and steps exactly two are given" in message
    assert found in message


@pytest.mark.parametrize("missing", ["epsilon", "noise_multiplier", "steps"])
def test_any_two_of_three_will_do(missing: str) -> None:
    given: dict[str, Any] = {"epsilon": 3.0, "noise_multiplier": 1.0, "steps": 10}
    del given[missing]
    config = parse_config({**values(), "privacy": {"delta": 1e-5, **given}})
    assert getattr(config.privacy, missing) is None


def test_no_noise_has_no_epsilon() -> None:
    message = str(refused(privacy={"noise_multiplier": 0, "epsilon": 3.0, "steps": None}))
    assert "noise_multiplier = 0 has no finite epsilon" in message
    assert parse_config(values(privacy={"noise_multiplier": 0})).privacy.noise_multiplier == 0


@pytest.mark.parametrize("name", ["a", "mnist-3", "A.b_c", "2024"])
def test_names_of_runs(name: str) -> None:
    assert parse_config(values(name=name)).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "/tmp", ".hidden", "a b", "-x", "é"]
)
def test_a_name_that_could_leave_the_folder_of_runs_is_refused(name: str) -> None:
    assert refused(name=name).field == "name"


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_config(values())
    with pytest.raises(ValueError, match="frozen"):
        config.privacy.delta = 0.5


# --set


def test_overrides_set_fields(tmp_path: Path) -> None:
    overrides = [
        "privacy.epsilon=3",
        "privacy.noise_multiplier=null",
        "cluster.num_workers=2",
        "augment.subpixel=true",
        "data.mean=[0.25]",
        "optimizer.arguments.momentum=0.9",
        "model.arguments={widths: [8, 16]}",
        "seed=7",
        " data.root = a=b ",
    ]
    config = load_config(write(tmp_path, TEXT), overrides)
    assert config.privacy.epsilon == 3.0
    assert config.privacy.noise_multiplier is None
    assert config.cluster.num_workers == 2
    assert config.augment.subpixel is True
    assert config.data.mean == [0.25]
    assert config.optimizer.arguments == {"momentum": 0.9}
    assert config.model.arguments == {"widths": [8, 16]}
    assert config.seed == 7
    assert config.data.root == "a=b"
    assert config.optimizer.lr == 2  # and the rest is as it was


def test_the_last_override_counts(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, TEXT), ["seed=1", "seed=2"])
    assert config.seed == 2


@pytest.mark.parametrize(
    "override", ["privacy.delta", "=3", "privacy..delta=3", ".delta=3", "a.=1"]
)
def test_an_override_of_another_form_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override({}, override)
    message = str(caught.value)
    assert message.startswith(f"--set = {override!r}: not of the form section.field=value")
    assert "--set privacy.delta=1e-5" in message


def test_an_override_inside_a_value_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override(values(), "optimizer.lr.x=3")
    assert str(caught.value).startswith("optimizer.lr.x = 3: lr is no section")


def test_an_override_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_override(values(), "data.mean=[1, 2")
    assert str(caught.value).startswith("data.mean = '[1, 2': not a YAML value")


def test_an_override_of_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean privacy\.epsilon\?"):
        load_config(write(tmp_path, TEXT), ["privacy.epsilno=3"])


# The plan: what can be checked without data


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to data raises."""

    def raising(*_: object, **__: object) -> NoReturn:
        raise AssertionError("data was read")

    for path in (
        "dp_ray.data.store.open_dataset",
        "sklearn.datasets.load_digits",
        "torchvision.datasets.MNIST",
        "torchvision.datasets.ImageFolder",
    ):
        monkeypatch.setattr(path, raising)
    for kind in (*SOURCES.values(), Own):
        monkeypatch.setattr(kind, "splits", raising)
        monkeypatch.setattr(kind, "stamp", raising)


@pytest.mark.usefixtures("no_data")
def test_a_plan_reads_no_data(tmp_path: Path) -> None:
    plan = make_plan(parse_config(values()))
    assert plan.num_examples == N
    assert plan.sample_rate == 64 / N
    assert 0 < plan.epsilon < 10
    assert plan.epsilon == plan.epsilon_after(plan.steps)
    missing = str(tmp_path / "nowhere")
    assert make_plan(parse_config(values(data={"name": "mnist", "root": missing}))).steps == 10
    folder = {
        "name": "image_folder",
        "root": missing,
        "num_examples": 5000,
        "num_classes": 4,
        "image_size": 16,
        "channels": 3,
    }
    assert make_plan(parse_config(values(data=folder))).num_examples == 5000
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("missing", ["noise_multiplier", "steps"])
def test_a_solved_plan_keeps_to_the_budget(missing: str) -> None:
    privacy: dict[str, Any] = {"epsilon": 2.0, missing: None}
    plan = make_plan(parse_config(values(privacy=privacy)))
    assert 1.5 < plan.epsilon <= 2.0
    assert plan.noise_multiplier > 0
    assert plan.steps >= 1


@pytest.mark.usefixtures("no_data")
def test_q_above_one_is_refused() -> None:
    error = plan_refused(data={"expected_batch_size": N + 1})
    assert str(error) == (
        f"data.expected_batch_size = {N + 1}: q = {N + 1}/{N} is above 1. "
        f"Use at most {N}, the number of examples."
    )
    assert make_plan(parse_config(values(data={"expected_batch_size": N}))).sample_rate == 1


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("delta", [0.5, 1e-3, 1 / N])
def test_delta_of_one_over_n_or_more_is_refused(delta: float) -> None:
    """Exactly 1/N too."""
    message = str(plan_refused(privacy={"delta": delta}))
    assert message.startswith(f"privacy.delta = {delta}: δ must be below 1/N = 1/{N}")
    assert "Use 7e-05" in message


@pytest.mark.usefixtures("no_data")
def test_delta_just_below_one_over_n_is_taken_and_so_is_the_advice() -> None:
    assert make_plan(parse_config(values(privacy={"delta": 0.999 / N}))).delta < 1 / N
    assert make_plan(parse_config(values(privacy={"delta": 7e-05}))).delta == 7e-05


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("microbatch_size", "views"), [(10**9, 1), (32, 10**8), (10**6, 10**4), (10**12, 10**6)]
)
def test_microbatches_that_do_not_fit_are_refused(microbatch_size: int, views: int) -> None:
    message = str(
        plan_refused(train={"microbatch_size": microbatch_size}, augment={"views": views})
    )
    assert message.startswith(f"train.microbatch_size = {microbatch_size}: ")
    assert f"{microbatch_size} examples × {views} views need about" in message
    assert "GiB in each worker (an estimate), which has" in message
    for field in ("augment.views", "cluster.num_workers"):
        assert field in message


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("privacy", "reason"),
    [
        ({"epsilon": 1e-9, "noise_multiplier": None}, "no noise multiplier up to 10000 is enough"),
        (
            {"epsilon": 0.001, "noise_multiplier": 0.5, "steps": None},
            "a single step costs more than the whole budget",
        ),
        ({"epsilon": 100.0, "noise_multiplier": 5e3, "steps": None}, "10,000,000 steps"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(privacy: dict[str, Any], reason: str) -> None:
    message = str(plan_refused(privacy=privacy))
    assert message.startswith(f"privacy.epsilon = {privacy['epsilon']}: the budget cannot be met")
    assert reason in message
    for field in ("privacy.noise_multiplier", "privacy.steps", "data.expected_batch_size"):
        assert field in message


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """The model section for a function of the module ``OWN_BUILDERS``."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN_BUILDERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda function: {"name": f"{name}:{function}"}


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("batch_norm", ("layer 0 (BatchNorm2d)", "mixes the examples", "GroupNorm")),
        ("hooked", ("carries hooks of Opacus", "#626", "pass the plain model")),
    ],
)
def test_a_network_that_mixes_examples_or_is_hooked_is_refused(
    own: Callable[[str], dict[str, str]], function: str, words: tuple[str, ...]
) -> None:
    assert make_plan(parse_config(values(model=own("plain")))).steps == 10
    with pytest.raises(ModelError) as caught:
        make_plan(parse_config(values(model=own(function))))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    "name", ["sgdd", "sgd", "LBFGS", "SparseAdam", "Optimizer", "lr_scheduler"]
)
def test_an_optimizer_that_torch_lacks_or_that_does_not_fit_is_refused(name: str) -> None:
    message = str(plan_refused(optimizer={"name": name}))
    assert message.startswith(f"optimizer.name = {name!r}: no optimizer of torch.optim that fits")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("field", "name", "meant"),
    [
        ("train.engine", "per-layer", "per_layer"),
        ("objective.name", "single_lable", "single_label"),
        ("privacy.mechanism", "gausian", "gaussian"),
        ("data.name", "digitz", "digits"),
        ("model.name", "resnet8", "resnet18"),
        ("model.name", "gncnn", "gn_cnn"),
        ("optimizer.name", "adamw", "AdamW"),
        ("optimizer.scheduler", "CosineAnealing", "CosineAnnealingLR"),
    ],
)
def test_an_unknown_name_of_any_registry_suggests_the_nearest(
    field: str, name: str, meant: str
) -> None:
    section, _, key = field.partition(".")
    message = str(plan_refused(**{section: {key: name}}))
    assert message.startswith(f"{field} = {name!r}: no ")
    assert f". Did you mean {meant}? Use " in message


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("arguments", [{"momentun": 0.9}, {"momentum": -1.0}, {"momentum": "much"}])
def test_a_bad_argument_of_the_optimizer_is_refused(arguments: dict[str, Any]) -> None:
    message = str(plan_refused(optimizer={"arguments": arguments}))
    assert message.startswith(f"optimizer.arguments = {arguments}: SGD: ")
    assert "momentu" in message.partition("SGD: ")[2] or "not supported" in message


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", ["CosineLR", "LRScheduler", "ReduceLROnPlateau", "Optimizer"])
def test_a_scheduler_that_torch_lacks_or_that_needs_a_loss_is_refused(name: str) -> None:
    """ReduceLROnPlateau would steer by a private loss."""
    message = str(plan_refused(optimizer={"scheduler": name}))
    assert message.startswith(f"optimizer.scheduler = {name!r}: no scheduler of torch")
    assert "needs the step alone" in message


@pytest.mark.usefixtures("no_data")
def test_a_scheduler_without_its_arguments_is_refused_and_lengths_default_to_t() -> None:
    message = str(plan_refused(optimizer={"scheduler": "StepLR"}))
    assert message.startswith("optimizer.scheduler_arguments = {}: StepLR: ")
    assert "step_size" in message
    for name in ("CosineAnnealingLR", "LinearLR", "PolynomialLR", "ConstantLR"):
        assert make_plan(parse_config(values(optimizer={"scheduler": name}))).steps == 10


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 5}, "fails at step 6 of 10: ValueError"),
        ("ExponentialLR", {"gamma": 1e50}, "fails at step 7 of 10: OverflowError"),
        ("ExponentialLR", {"gamma": 1e40}, "fails at step 8 of 10: OverflowError"),
    ],
)
def test_a_schedule_that_does_not_last_the_run_is_refused(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    """By the plan, which takes it through all T steps."""
    optimizer = {"scheduler": name, "scheduler_arguments": arguments}
    message = str(plan_refused(optimizer=optimizer))
    assert message.startswith("optimizer.scheduler_arguments = {")
    assert f"{name} {words}" in message
    fits = {"scheduler": "OneCycleLR", "scheduler_arguments": {"max_lr": 1.0, "total_steps": 10}}
    assert make_plan(parse_config(values(optimizer=fits))).steps == 10


@pytest.mark.usefixtures("no_data")
def test_an_optimizer_that_fails_when_it_is_used_is_refused() -> None:
    """Not at its first step, when it is paid for."""
    message = str(plan_refused(optimizer={"name": "Adam", "arguments": {"betas": [0.9, "0.99"]}}))
    assert message.startswith("optimizer.arguments = {'betas'")


# Documentation made from the code


def sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in section.model_fields.values()]
    found = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
    return [section, *(deeper for part in found for deeper in sections(part))]


def test_every_field_and_section_has_a_sentence() -> None:
    paths = [path for path, _ in describe_fields()]
    assert len(paths) == len(set(paths)) > 40
    for path, field in describe_fields():
        assert field.description, path
        assert field.description.endswith((".", "…")), path
    assert len(sections(Config)) == 9
    for section in sections(Config):
        assert "description" not in section.model_fields  # it would hide behind the docstring
        assert section.__doc__


def test_names_that_others_rely_on() -> None:
    """Issue 2 lists them: renaming one breaks users' files."""
    paths = {path for path, _ in describe_fields()}
    assert paths >= {
        "data.name",
        "data.root",
        "data.expected_batch_size",
        "augment.views",
        "model.name",
        "privacy.epsilon",
        "privacy.delta",
        "privacy.noise_multiplier",
        "privacy.steps",
        "privacy.max_grad_norm",
        "train.storage_path",
        "cluster.num_workers",
        "seed",
        "name",
    }


FULL: dict[str, Any] = {
    "data": {
        "name": "image_folder",
        "root": "~/a folder: with, odd #signs",
        "download": True,
        "expected_batch_size": 512,
        "num_examples": 50_000,
        "num_classes": 10,
        "image_size": 32,
        "channels": 3,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.247, 0.2435, 0.2616],
        "evaluation": "public",
        "cache": "null",
    },
    "augment": {"views": 16, "shift": 4.0, "padding": "reflect", "horizontal_flip": 0.5},
    "model": {
        "name": "gn_cnn",
        "arguments": {
            "widths": [16, 32, 64],
            "a_rather_long_name_of_an_argument": "and a text that is long as well, to be wrapped",
            "another_one": {"nested": [1e-5, None, True, "yes", "", "multi\nline"]},
        },
        "pretrained": "~/weights.safetensors",
        "trainable": ["*.bias", "9.*"],
    },
    "privacy": {
        "epsilon": 3.0,
        "steps": 2500,
        "delta": 1e-5,
        "max_grad_norm": 0.1,
        "adaptive_clipping": {"quantile": 0.7, "learning_rate": 0.3, "count_noise": 12.5},
        "noise_schedule": {"final": 0.5, "shape": "exponential", "parts": 3},
    },
    "optimizer": {
        "name": "Adam",
        "lr": 1e-3,
        "arguments": {"betas": [0.9, 0.999]},
        "scheduler": "StepLR",
        "scheduler_arguments": {"step_size": 3},
        "ema_decay": 0.9999,
    },
    "train": {"storage_path": "/some/where", "microbatch_size": 7, "evaluate_every": 3},
    "cluster": {"num_workers": 4, "address": "auto", "gpus_per_worker": 0.5},
    "seed": 12,
    "name": "2024",
}


@pytest.mark.parametrize("full", [True, False])
def test_the_printed_configuration_can_be_loaded_again(tmp_path: Path, full: bool) -> None:
    config = parse_config(FULL if full else values())
    text = describe_config(config)
    assert load_config(write(tmp_path, text, "other.yaml")) == config
    for path, field in describe_fields():
        assert path.rpartition(".")[2] + ":" in text
        assert field.description is not None
        assert field.description.split()[0] in text


@pytest.mark.parametrize("text", ["1e5", "1e-5", "12", "null", "true"])
def test_printed_text_that_looks_like_something_else_stays_text(tmp_path: Path, text: str) -> None:
    """A run may be called 1e5: what the loader would take for a number is quoted."""
    config = parse_config(values(name="1e5", data={"root": text}))
    assert load_config(write(tmp_path, describe_config(config))) == config


def test_the_printed_defaults_are_yaml_and_show_what_must_be_given(tmp_path: Path) -> None:
    text = describe_config(None)
    found = yaml.safe_load(text)
    assert found["data"]["name"] == "digits"
    assert found["cluster"]["num_workers"] == 1
    required = [line.split(":")[0].strip() for line in text.splitlines() if "# must be" in line]
    assert required == ["expected_batch_size", "delta", "lr"]
    config = load_config(
        write(tmp_path, text),
        [
            "data.expected_batch_size=64",
            "privacy.delta=1e-5",
            "optimizer.lr=2",
            "privacy.steps=10",
            "privacy.noise_multiplier=1.5",
            "privacy.accountant=rdp",
            "name=trial",
        ],
    )
    assert config == parse_config(values(name="trial"))


def test_a_section_that_may_be_null_is_set_field_by_field(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "  scheduler: null\n")
    config = load_config(path, ["privacy.adaptive_clipping.quantile=0.3"])
    assert config.privacy.adaptive_clipping is not None
    assert config.privacy.adaptive_clipping.quantile == 0.3
    nulled = load_config(write(tmp_path, describe_config(config)), ["privacy.adaptive_clipping="])
    assert nulled.privacy.adaptive_clipping is None
    again = load_config(
        write(tmp_path, describe_config(nulled)), ["privacy.noise_schedule.final=.5"]
    )
    assert again.privacy.noise_schedule is not None
    for override, expected in (
        ("privacy.adaptive_clipping.quantil=1", r"adaptive_clipping\.quantil = 1.*quantile"),
        ("privacy.adaptive_clipping.quantile=1", r"adaptive_clipping\.quantile = 1: .*less than 1"),
        ("privacy.adaptive_clipping=3", r"adaptive_clipping = 3: a section"),
        ("privacy.noise_schedule={}", r"noise_schedule\.final.*must be given"),
        ("privacy.noise_schedule.final=1", r"noise_schedule\.final = 1: .*less than 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_config(path, [override])


def test_dump_is_plain_and_complete() -> None:
    config = parse_config(FULL)
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.dump()))) == config


def test_a_schedule_that_fails_when_stepped_is_refused_before_data_is_read(
    make_config: MakeConfig,
) -> None:
    config = make_config(
        optimizer={"scheduler": "CosineAnnealingLR", "scheduler_arguments": {"T_max": 0}}
    )
    with pytest.raises(ConfigError, match=r"optimizer\.scheduler_arguments"):
        make_plan(config)
