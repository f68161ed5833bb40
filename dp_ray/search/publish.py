"""The end of a search: the best trial chosen once, and published with what the search cost."""

from __future__ import annotations

from dp_ray.artifacts.claim import CHOICE
from dp_ray.artifacts.release import check_agreement, release_files
from dp_ray.artifacts.released_model import MODEL, ClassNames
from dp_ray.artifacts.run_directory import CONFIG, RELEASE, RunDirectory
from dp_ray.artifacts.statement import OwnCost, SearchNote, Statement
from dp_ray.config.yaml_text import read_yaml, write_yaml
from dp_ray.errors import RunError
from dp_ray.json_text import finite
from dp_ray.privacy.mechanism import mechanism_of
from dp_ray.search.cost import search_cost
from dp_ray.search.directory import BEST
from dp_ray.search.outcome import TrialOutcome, best_of, read_outcomes, settled
from dp_ray.search.result import SearchResult, SearchSummary, Winner
from dp_ray.search.search import Search

REPLAYED = (
    "This search repeats the draws and the noise of another one: publish at most one of the two, "
    "because the difference of two models may show sums of gradients without noise."
)

CHOSEN = (
    "The trial was chosen by {metric} on a test split that is public, as the user declares "
    "(data_evaluation): the choice says nothing about private images beyond what ε covers."
)

_RESTORE = "Restore it from a backup, and go on with --resume; nothing was published"


def decide(search: Search, *, seconds: float) -> SearchResult:
    """Choose the best trial of a search that came to its end, and record it for good.

    A second choice, after a crash, might fall on another trial: two would then be published.

    Args:
        search: whose trials ended.
        seconds: what it took.

    Returns:
        All there is to say; private where only the best trial may be seen.

    Raises:
        RunError: no trial finished; or one released more than the search is charged for.
        OSError: it cannot be written; the search can be resumed.
    """
    tune, outcomes = search.sweep.tune, settled(search, read_outcomes(search))
    _check_within_plans(search, outcomes)
    best = best_of(search, outcomes)
    if outcomes and best is None:
        raise _nothing_finished(search, outcomes)
    spent = [outcome.history for outcome in outcomes]
    cost = search_cost(search, spent)
    with_training = search_cost(search, spent, then=search.budgets.full_runs)
    result = SearchResult(
        name=search.sweep.name,
        path=str(search.directory.root),
        status="finished",
        privacy_mode=tune.privacy_mode,
        epsilon_of_search=cost.epsilon,
        epsilon_with_training=with_training.epsilon,
        delta=cost.delta,
        accountant=cost.accountant,
        how=cost.how,
        warning=REPLAYED if search.directory.is_replay() else None,
        metric=search.metric,
        mode=search.mode,
        best=None if best is None else Winner.of(best.result()),
        best_trial=None if best is None else best.name,
        trials=[outcome.result() for outcome in outcomes],
        seconds=round(seconds, 1),
    )
    result.write(search.directory.private)
    return result


def read_decision(search: Search) -> SearchResult | None:
    """Return what :func:`decide` wrote; None if nothing is decided.

    Raises:
        RunError: it is damaged.
    """
    return SearchResult.find(search.directory.private)


def publish_search(search: Search, result: SearchResult) -> SearchSummary:
    """Write best.yaml and release/; may be repeated.

    Args:
        search: which.
        result: from :func:`decide`.

    Returns:
        What result.json may say.

    Raises:
        OSError: it cannot be written; the search can be resumed.
    """
    directory, tune = search.directory, search.sweep.tune
    if result.best is not None and result.best_trial is not None:
        text = _best_config(search, result, result.best)
        directory.root.write(BEST, text.encode())
        _release(search, result, result.best_trial)
    return result.summary(only_best_may_be_seen=tune.only_best_may_be_seen)


def forget_losers(search: Search, result: SearchResult) -> None:
    """Delete what only the best trial of a private selection may leave: models and curves."""
    if not search.sweep.tune.only_best_may_be_seen:
        return
    for trial in result.trials:
        if trial.name != result.best_trial:
            RunDirectory(search.directory.trials / trial.name).forget()


def _check_within_plans(search: Search, outcomes: list[TrialOutcome]) -> None:
    """The bounds of a selection and of an adaptive search are on what was planned."""
    tune = search.sweep.tune
    if tune.privacy_mode == "public" or not (tune.only_best_may_be_seen or tune.is_adaptive):
        return
    for outcome in outcomes:
        mechanism, spent = mechanism_of(outcome.plan), outcome.charged
        if not mechanism.covers(spent):
            raise RunError(
                f"{search.directory.trials}/{outcome.name}: the ledger holds (σ, q, noised sums) "
                f"{sorted(spent)}, and the search was charged for "
                f"{sorted(mechanism.charges())}: the trial was gone on with outside of the search, "
                "whose ε does not hold any more. Nothing is "
                "published"
            )


def _nothing_finished(search: Search, outcomes: list[TrialOutcome]) -> RunError:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    first = f"the first says: {errors[0]}. " if errors else ""
    return RunError(
        f"{search.directory.root}: no trial finished; {first}Mend it and go on with --resume; what "
        "was charged is in the trials' ledgers, and nothing was published"
    )


def _best_config(search: Search, result: SearchResult, best: Winner) -> str:
    large, plan = search.budgets.full_at(best.parameters)
    values = large.model_copy(update={"name": f"{search.sweep.name}-best", "seed": None}).dump()
    values["train"]["storage_path"] = search.sweep.storage_path
    if search.sweep.tune.privacy_mode != "public":
        values["privacy"]["search_epsilon"] = result.epsilon_of_search
    held = "" if search.sweep.tune.hold is None else ", at the batch size that it stands for"
    lines = [
        f"# The best trial of {search.sweep.name}{held},",
        f"# chosen by {result.metric} on a test split that its user declares public.",
        f"# Trained on its own it spends ε = {plan.epsilon:.4f} at δ = {plan.delta:g}.",
    ]
    if search.sweep.tune.privacy_mode != "public":
        lines.append(
            "# On the data of the search both together spend ε = "
            f"{result.epsilon_with_training:.4f}; on other data\n"
            "# set privacy.search_epsilon to null."
        )
    return "\n".join(lines) + "\n\n" + write_yaml(values)


def _release(search: Search, result: SearchResult, best_trial: str) -> None:
    """The winner's release under the search's name, its statement about the search."""
    source = search.directory.trials / best_trial / RELEASE
    try:
        config = read_yaml(source.read(CONFIG).decode()) | {"name": search.sweep.name}
        model = source.read(MODEL)
        alone = Statement.read(source)
        found = ClassNames.find(source)
    except (OSError, ValueError, TypeError, RunError) as error:
        raise RunError(f"{source} is damaged: {error}. {_RESTORE}") from error
    statement = _statement(search, alone, result)
    check_agreement(statement, config)
    names = [] if found is None else found.names
    search.directory.root.publish(RELEASE, release_files(model, config, statement, names))


def _statement(search: Search, alone: Statement, result: SearchResult) -> Statement:
    """The winner's privacy statement, with the ε of the search in place of its own."""
    about = SearchNote(
        privacy_mode=result.privacy_mode,
        epsilon_of_search=finite(result.epsilon_of_search),
        how=result.how,
    )
    assumptions = [*alone.assumptions, CHOSEN.format(metric=result.metric)]
    if result.privacy_mode == "public":
        assumptions.append(
            "The data of the search is public, as its user declares: ε is what this run alone "
            "would spend if it were not, and does not count the other trials."
        )
        return alone.model_copy(update={"assumptions": assumptions, "search": about})
    assumptions[CHOICE] = (
        "The space of the search, and whatever else its file says, was chosen without looking at "
        "the private data."
    )
    if search.sweep.tune.only_best_may_be_seen:
        assumptions.append(
            "Nothing is published of the other trials, or acted upon: not even their number."
        )
    own = OwnCost(
        epsilon=alone.epsilon,
        epsilon_by_accountant=alone.epsilon_by_accountant,
        note="not the cost: the model was selected",
    )
    others = alone.dump()
    del others["epsilon_by_accountant"]
    return Statement.model_validate(
        {
            **others,
            "epsilon": finite(result.epsilon_of_search),
            "accountant": result.accountant,
            "assumptions": assumptions,
            "warning": result.warning,
            "search": about.model_copy(update={"of_this_run_alone": own}),
        }
    )
