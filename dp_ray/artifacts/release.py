"""What a run publishes: the model, its configuration and its privacy statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from safetensors.torch import save
from torch import Tensor

from dp_ray.artifacts.card import CARD, release_card
from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.consistency import disagreement
from dp_ray.artifacts.public_config import published_config
from dp_ray.artifacts.released_model import MODEL, ClassNames
from dp_ray.artifacts.result import Outcome, Result
from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.artifacts.score import published_score
from dp_ray.artifacts.statement import Statement
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import write_yaml
from dp_ray.errors import RunError
from dp_ray.privacy.history import History
from dp_ray.privacy.plan import PrivacyPlan


def publish(
    run: RunDirectory,
    config: Config,
    plan: PrivacyPlan,
    *,
    tensors: dict[str, Tensor],
    outcome: Outcome,
    class_names: Sequence[str],
    test_digest: str,
    charge_score: Callable[[str, float], History],
) -> None:
    """Write ``release/`` (of a finished run) and ``result.json``, each whole or not at all.

    Args:
        run: where.
        config: what was trained; what is private in it is left out.
        plan: the privacy plan.
        tensors: what the file of the model holds, by name.
        outcome: how the run ended.
        class_names: by label; empty if the classes have no names.
        test_digest: digest of the test split that the outcome's evaluation is of.
        charge_score: of the run's ledger; pays for a figure of the test split.

    Raises:
        LedgerError: an accuracy cannot be charged; nothing is published.
        OSError: it cannot be written; the run can be resumed.
        RunError: the documents contradict each other; nothing is published.
    """
    replay = run.is_replay()
    result = Result.of(config, plan, outcome, path=str(run.root), replay=replay)
    if outcome.finished:
        model = save(tensors)
        score = published_score(
            config,
            plan,
            outcome.evaluation,
            outcome.metrics,
            key=run.key(),
            model=model,
            test_digest=test_digest,
            charge=charge_score,
        )
        statement = privacy_statement(config, plan, outcome, replay=replay, score=score)
        published = published_config(config, plan)
        check_agreement(statement, published, outcome.history)
        run.root.publish(RELEASE, release_files(model, published, statement, class_names))
    result.write(run.root)


def release_files(
    model: bytes,
    published: dict[str, Any],
    statement: Statement,
    class_names: Sequence[str] = (),
) -> dict[str, bytes]:
    """Return the files of a release by name; the statement is the last.

    Args:
        model: the content of its file.
        published: the contents of config.yaml.
        statement: what is claimed.
        class_names: by label; empty if the classes have no names.
    """
    names = {}
    if class_names:
        names[ClassNames.FILE] = ClassNames(names=list(class_names)).encode()
    return {
        MODEL: model,
        CONFIG: write_yaml(published).encode(),
        **names,
        CARD: release_card(published, statement, class_names).encode(),
        Statement.FILE: statement.encode(),
    }


def check_agreement(
    statement: Statement, published: dict[str, Any], history: History | None = None
) -> None:
    """Refuse to publish documents that contradict each other.

    Args:
        statement: what is claimed.
        published: the contents of config.yaml.
        history: the ledger's noised sums, as :func:`disagreement` takes them.

    Raises:
        RunError: they do; the message says where.
    """
    found = disagreement(statement, parse_config(published), history)
    if found is not None:
        raise RunError(
            f"the documents of the release contradict each other: {found}. Nothing was published. "
            "Resume with --resume and the configuration that the run was started with; if that "
            "does not help, report it as a bug of dp-ray"
        )
