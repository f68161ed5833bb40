"""What a finished run publishes: the model, its configuration and its privacy statement."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dp_ray.artifacts.consistency import disagreement
from dp_ray.artifacts.journal import roughly
from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.artifacts.score import assumption, published_score
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import write_yaml
from dp_ray.errors import RunError
from dp_ray.json_text import write_json
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.objectives.single_label import METRICS
from dp_ray.privacy.accounting import epsilon_by_accountant
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import MECHANISMS, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan, with_budget

MODEL = "model.safetensors"
STATEMENT = "privacy.json"

ASSUMPTIONS = (
    "Two data sets are neighbours if one has one example more; a person with several examples is "
    "covered for each of them, not for all at once.",
    "The number of examples, the configuration and the labels' names are public.",
    "The configuration was chosen without looking at the private data; a search on it costs more.",
    "Only the release folder is published; the run key and the private folder stay secret.",
    "The run's folder was not copied, or put back as it was earlier, and gone on with twice; nor "
    "was a model published that another run made with the same key (--replay-key).",
    "Run time, memory and traffic are not observed by the adversary.",
    "The network's outputs depend on its tensors, one example and the run's own randomness alone: "
    "each run checks that on made-up images, as far as Python objects can be read. It assumes it "
    "of all other images, and of what cannot be read: files, clocks, other processes and threads, "
    "installed packages, extensions in C, and what Python counts by itself.",
    "An example's gradient is rounded alike whichever worker computes it, and whatever else is in "
    "its microbatch: on made-up images, before its first step, each run compares workers bit for "
    "bit, the other examples of a microbatch bit for bit on a CPU and to within rounding on a GPU, "
    "and places in a microbatch to within rounding. It assumes it of all other images.",
    "The noise is Gaussian: its numbers are computed in float64 from a cipher (AES-256) with a key "
    "of the operating system, added in float64, and the sum is rounded to float32. No theorem "
    "covers that rounding.",
)

REPLAYED = (
    "This run repeats the draws and the noise of another one (--replay-key): publish at most one "
    "of the two models, because their difference may show sums of gradients without noise."
)

PRETRAINED = (
    "Training started from weights that were trained on public data, as the user declares; ε does "
    "not cover what those were trained on."
)

OWN_MECHANISM = (
    "The mechanism is the user's own code: that its noise costs what it says was not checked by "
    "dp-ray."
)

CHOICE = next(i for i, text in enumerate(ASSUMPTIONS) if "a search on it" in text)
"""Which of them speaks of how the configuration was chosen."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: False if it was stopped and can be resumed.
        steps: updates taken.
        history: noised sums paid for; more than ``steps`` if some were repeated.
        epsilon: what the accountant says of them.
        evaluation: on the test split, of what is released; None without test examples.
        seconds: wall-clock time of the last session; private.
        metric_names: of the objective, the primary one first.
    """

    finished: bool
    steps: int
    history: History
    epsilon: float
    evaluation: Evaluation | None
    seconds: float
    metric_names: tuple[str, ...] = tuple(METRICS)

    @property
    def charges(self) -> int:
        """Number of noised sums paid for."""
        return sum(count for _, _, count in self.history)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The evaluation by the names that results have; null without test examples."""
        if self.evaluation is None:
            return dict.fromkeys(self.metric_names)
        return {name: finite(value) for name, value in self.evaluation.metrics.items()}


def publish(
    run: RunDirectory,
    config: Config,
    plan: PrivacyPlan,
    *,
    tensors: dict[str, Tensor],
    outcome: Outcome,
    test_digest: str,
    charge_score: Callable[[str, float], History],
) -> None:
    """Writes ``release/`` (of a finished run) and ``result.json``, each whole or not at all.

    Args:
        run: where.
        config: what was trained; what is private in it is left out.
        plan: the privacy plan.
        tensors: what the file of the model holds, by name.
        outcome: how the run ended.
        test_digest: digest of the test split that the outcome's evaluation is of.
        charge_score: of the run's ledger; pays for an accuracy on held-out data.

    Raises:
        LedgerError: an accuracy cannot be charged; nothing is published.
        OSError: it cannot be written; the run can be resumed.
        RunError: the documents contradict each other; nothing is published.
    """
    result: dict[str, Any] = {
        "name": config.name,
        "path": str(run.root),
        "status": "finished" if outcome.finished else "stopped",
        "steps": outcome.steps,
        "steps_planned": plan.steps,
        "charges": outcome.charges,
        "epsilon": finite(outcome.epsilon),
        "delta": plan.delta,
        **(with_search(config, outcome.epsilon) or {}),
        **outcome.metrics,
        "seconds": roughly(outcome.seconds),
        "replay": run.is_replay(),
    }
    if outcome.finished:
        saved = save(tensors)
        score = published_score(
            config,
            plan,
            outcome.evaluation,
            outcome.metrics,
            key=run.key(),
            model=saved,
            test_digest=test_digest,
            charge=charge_score,
        )
        statement = privacy_statement(config, plan, outcome, replay=run.is_replay(), score=score)
        text = write_json(statement, indent=2) + "\n"
        published = published_config(config, plan)
        check_agreement(statement, published, outcome.history)
        files = {
            MODEL: saved,
            CONFIG: write_yaml(published).encode(),
            STATEMENT: text.encode(),
        }
        run.root.publish(RELEASE, files)
    run.write_result(result)


def with_search(config: Config, epsilon: float) -> dict[str, float | None] | None:
    """What a run and the search before it spend together; None if there was none.

    Both ε and both δ are added up (Dwork & Roth 2014, Theorem 3.16), which holds whatever the run
    was changed to since the search.
    """
    before = config.privacy.search_epsilon
    if before is None:
        return None
    return {
        "epsilon_with_search": finite(before + epsilon),
        "delta_with_search": 2 * config.privacy.delta,
    }


def finite(value: float) -> float | None:
    """JSON has no infinity: without noise, ε is null."""
    return value if math.isfinite(value) else None


def check_agreement(
    statement: dict[str, Any], published: dict[str, Any], history: History | None = None
) -> None:
    """Refuses to publish documents that contradict each other.

    Args:
        statement: the contents of privacy.json.
        published: the contents of config.yaml.
        history: the ledger's noised sums, as :func:`disagreement` takes them.

    Raises:
        RunError: they do; the message says where.
    """
    found = disagreement(statement, parse_config(published), history)
    if found is not None:
        raise RunError(
            f"the documents of the release contradict each other: {found}. Nothing was published. "
            "Go on with --resume and the configuration that the run was started with; if that "
            "does not help, report it as a bug of dp-ray"
        )


def published_config(config: Config, plan: PrivacyPlan) -> dict[str, Any]:
    """What config.yaml of a release holds: the budget is the plan's σ and T.

    ε is in the statement alone, which has it from the ledger.
    """
    return public_config(with_budget(config, plan))


def public_config(config: Config) -> dict[str, Any]:
    """The configuration without what helps to undo the noise or to find the data."""
    return without_secrets(config.dump())


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """The same of plain values, of a run or of a search, that need not be complete."""
    values = copy.deepcopy(values)
    hidden = {"data": ("root", "cache"), "train": ("storage_path",), "cluster": ("address",)}
    for section, names in hidden.items():
        for name in names:
            if name in (values.get(section) or {}):
                values[section][name] = "runs" if name == "storage_path" else None
    model = values.get("model") or {}
    if model.get("pretrained") is not None:  # the file's name says enough; a name stays as it is
        model["pretrained"] = Path(model["pretrained"]).name
    return values


def privacy_statement(
    config: Config,
    plan: PrivacyPlan,
    outcome: Outcome,
    *,
    replay: bool,
    score: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What may be claimed, by whose word, under which assumptions.

    Args:
        config: as trained.
        plan: the privacy plan.
        outcome: how the run ended.
        replay: whether the run repeats another one with its key.
        score: from :func:`published_score`; exact where nothing is published.
    """
    spent = epsilon_by_accountant(outcome.history, plan.delta)
    assumptions = [*ASSUMPTIONS, assumption(config, outcome.metric_names)]
    searched = with_search(config, outcome.epsilon)
    if searched is not None:
        assumptions[CHOICE] = (
            "The configuration was chosen by a search on the same data: epsilon_with_search counts "
            "it, and epsilon does not."
        )
    if config.model.pretrained is not None:
        assumptions.append(PRETRAINED)
    if plan.mechanism not in MECHANISMS:
        assumptions.append(OWN_MECHANISM)
    return {
        "epsilon": finite(outcome.epsilon),
        "delta": plan.delta,
        "accountant": plan.accountant,
        "epsilon_by_accountant": {name: finite(value) for name, value in spent.items()},
        **(searched or {}),
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "steps": outcome.steps,
        "charges": outcome.charges,
        "noise_factors": list(plan.noise_factors),
        "max_grad_norm": plan.max_grad_norm,
        "clipping": plan.clipping,
        "adaptive_clipping": plan.dump()["adaptive_clipping"],
        "views": plan.views,
        "expected_batch_size": plan.expected_batch_size,
        "num_examples": plan.num_examples,
        "mechanism": mechanism_of(plan).sentence,
        "released": [
            {"noise_multiplier": sigma, "sample_rate": rate, "sums": sums}
            for sigma, rate, sums in outcome.history
        ],
        "unit_of_privacy": "one training example, with all of its views",
        "adjacency": "add or remove one example",
        "replay": replay,
        "warning": REPLAYED if replay else None,
        **(outcome.metrics if score is None else score),
        "data_evaluation": config.data.evaluation,
        "assumptions": assumptions,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version(name) for name in ("dp-ray", "opacus", "dp-accounting")},
        },
    }
