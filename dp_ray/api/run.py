"""``dp_ray.Run``: a run on its storage, to be looked at, evaluated, reported on and resumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dp_ray.api.evaluate import EvaluationResult, evaluate
from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.api.predict import Predictions, predict
from dp_ray.api.report import Report, report
from dp_ray.artifacts.course import Evaluated, read_course
from dp_ray.artifacts.result import Result
from dp_ray.artifacts.run_directory import RELEASE, RunDirectory
from dp_ray.artifacts.statement import Statement
from dp_ray.config.files import apply_override, parse_config
from dp_ray.config.run import Config
from dp_ray.errors import RunError, no_run
from dp_ray.json_text import finite
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.reporting.callbacks import Callback
from dp_ray.reporting.ledger import describe_ledger, ledger_facts, repair_ledger
from dp_ray.reporting.make import Format
from dp_ray.reporting.summary import describe_result
from dp_ray.storage import open_folder

if TYPE_CHECKING:
    from dp_ray.data.preprocess import ImageLike


@dataclass(frozen=True)
class LedgerSummary:
    """What a run's ledger says, verified. Printed, it is what ``dp-ray ledger`` shows.

    Attributes:
        epsilon: spent so far, by the run's accountant; None without noise.
        epsilon_by_accountant: the same by each accountant.
        steps: updates that are paid for.
        charges: noised sums that were charged.
        facts: all figures by name, as ``dp-ray ledger --json`` has them.
    """

    epsilon: float | None
    epsilon_by_accountant: dict[str, float | None]
    steps: int
    charges: int
    facts: dict[str, Any]

    def __str__(self) -> str:
        return describe_ledger(self.facts)


class Run:
    """A run on its storage, as :func:`dp_ray.train` and :func:`dp_ray.open_run` return it.

    It holds no state of its own: each attribute reads what the run left.

    Args:
        path: path or URI of the run's folder.
        objects: what the run was passed as Python objects, for :meth:`evaluate` and
            :meth:`resume`.

    Raises:
        RunError: there is no run.
    """

    def __init__(self, path: str, objects: Objects | None = None) -> None:
        self._directory = RunDirectory(open_folder(path))
        self._objects = objects or Objects()
        if not self._directory.exists():
            raise no_run(path)

    @property
    def path(self) -> str:
        """Path or URI of the run's folder."""
        return str(self._directory.root)

    @property
    def release(self) -> str:
        """Path or URI of the folder that may be published.

        Raises:
            RunError: the run is not finished.
        """
        if not self._directory.root.exists(RELEASE):
            raise RunError(f"{self.path} has released nothing: it is not finished; see resume()")
        return f"{self.path}/{RELEASE}"

    @property
    def config(self) -> Config:
        """The configuration that the run was started with; private."""
        return self.put_objects(self._directory.config())

    def put_objects(self, config: Config) -> Config:
        """Return a configuration with the objects that this run was passed in their places."""
        return self._objects.put_into_this_process(config)

    @property
    def result(self) -> Result:
        """How the run ended.

        Raises:
            RunError: it has not ended yet.
        """
        return Result.read(self._directory.root)

    @property
    def status(self) -> str:
        """``finished``, ``stopped`` (it can be resumed), or ``running``."""
        found = Result.find(self._directory.root)
        return "running" if found is None else found.status

    @property
    def epsilon(self) -> float | None:
        """ε spent, as the run's accountant says of the ledger; None without noise."""
        ledger = self._directory.read_ledger()
        plan = ledger.plan
        return finite(epsilon_of(plan.accountant, ledger.history, plan.delta))

    @property
    def delta(self) -> float:
        """δ of :attr:`epsilon`."""
        return self.result.delta

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the test split at the end, which ε does not cover."""
        return dict(self.result.metrics)

    @property
    def statement(self) -> Statement:
        """The privacy statement of the release.

        Raises:
            RunError: the run is not finished.
        """
        return Statement.read(open_folder(self.release))

    @property
    def evaluations(self) -> list[Evaluated]:
        """Step, ε and metrics of each evaluation during the run, in order; private."""
        return read_course(self._directory.private)[0]

    def evaluate(
        self, overrides: Sequence[str] = (), *, own_code: bool = False
    ) -> EvaluationResult:
        """Evaluate the released model on the test split; see :func:`dp_ray.evaluate`."""
        given = self._objects
        return evaluate(
            self.path,
            overrides,
            model=given.model,
            data=given.data,
            objective=given.objective,
            own_code=own_code,
        )

    def predict(self, images: ImageLike | Iterable[Any], *, own_code: bool = False) -> Predictions:
        """Predict the classes of images with the released model; see :func:`dp_ray.predict`."""
        return predict(self, images, own_code=own_code)

    def report(
        self,
        *,
        public: bool = False,
        form: Format = "html",
        output: str | None = None,
        own_code: bool = False,
    ) -> Report:
        """Write a page about the run; see :func:`dp_ray.report`."""
        return report(self.path, public=public, form=form, output=output, own_code=own_code)

    def ledger(self, *, own_code: bool = False) -> LedgerSummary:
        """Verify the ledger and return what was spent.

        Args:
            own_code: run a mechanism of the user's own that the run names, though it has not been
                trained with on this machine.

        Raises:
            LedgerError: the ledger does not verify.
        """
        facts = ledger_facts(self.path, own_code=own_code)
        return LedgerSummary(
            facts["epsilon"],
            facts["epsilon_by_accountant"],
            facts["steps"],
            facts["charges"],
            facts,
        )

    def repair_ledger(self, *, own_code: bool = False) -> None:
        """Accept a damaged end of the ledger, and charge for what it may have held.

        Args:
            own_code: see :meth:`ledger`.

        Raises:
            LedgerError: more than the end is damaged, or another process writes it.
        """
        repair_ledger(self.path, own_code=own_code)

    def resume(
        self,
        overrides: Sequence[str] = (),
        *,
        callbacks: Sequence[Callback] = (),
        break_lock: bool = False,
        accept_charges: int | None = None,
    ) -> Self:
        """Continue a run that was stopped or that crashed, or give a finished one more steps.

        What the run was passed as Python objects is used again; a run of :func:`dp_ray.open_run`
        is given it there.

        Args:
            overrides: ``field=value``, such as ``privacy.steps=200``.
            callbacks: see :func:`dp_ray.train`.
            break_lock: take the run over from a process that is known to be dead.
            accept_charges: see :func:`dp_ray.train`.

        Returns:
            This run.

        Raises:
            DpRayError: the run cannot be continued; see the message.
        """
        from dp_ray.api.train import train  # which returns a Run

        values = self._directory.config().dump()
        folder, _, name = self.path.rpartition("/")
        values["train"]["storage_path"], values["name"] = folder or ".", name
        for override in overrides:
            apply_override(values, override)
        given = self._objects
        train(
            parse_config(values),
            model=given.model,
            data=given.data,
            objective=given.objective,
            callbacks=callbacks,
            resume=True,
            break_lock=break_lock,
            accept_charges=accept_charges,
        )
        return self

    def __str__(self) -> str:
        return describe_result(self.result)

    def __repr__(self) -> str:
        return f"Run({self.path!r})"


def open_run(
    path: str,
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
) -> Run:
    """Open a run that was made before, here or elsewhere.

    Args:
        path: path or URI of its folder, such as ``runs/digits``.
        model: the network, if the run was passed one that cannot be imported.
        data: likewise, the data.
        objective: likewise, the objective.

    Returns:
        The run.

    Raises:
        RunError: there is no run.
    """
    return Run(str(path), Objects(model, data, objective))
