"""dp-ray: differentially private training of image classifiers on Ray.

The names below are the public surface. Importing this package imports neither Ray nor torch; the
names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_ray.api.audit import audit as audit
    from dp_ray.api.evaluate import EvaluationResult as EvaluationResult
    from dp_ray.api.evaluate import evaluate as evaluate
    from dp_ray.api.export import export as export
    from dp_ray.api.model import LoadedModel as LoadedModel
    from dp_ray.api.model import load_model as load_model
    from dp_ray.api.plan import Plan as Plan
    from dp_ray.api.plan import plan as plan
    from dp_ray.api.predict import Prediction as Prediction
    from dp_ray.api.predict import Predictions as Predictions
    from dp_ray.api.predict import predict as predict
    from dp_ray.api.report import Report as Report
    from dp_ray.api.report import report as report
    from dp_ray.api.run import LedgerSummary as LedgerSummary
    from dp_ray.api.run import Run as Run
    from dp_ray.api.run import open_run as open_run
    from dp_ray.api.train import train as train
    from dp_ray.api.tune import tune as tune
    from dp_ray.artifacts.result import Result as Result
    from dp_ray.artifacts.statement import Statement as Statement
    from dp_ray.auditing.directory import AuditOutcome as AuditOutcome
    from dp_ray.config.files import load_config as load_config
    from dp_ray.config.run import Config as Config
    from dp_ray.config.search import SweepConfig as SweepConfig
    from dp_ray.config.search import load_sweep as load_sweep
    from dp_ray.data.preprocess import Preprocess as Preprocess
    from dp_ray.data.source import DataFacts as DataFacts
    from dp_ray.data.source import Source as Source
    from dp_ray.errors import ChargesError as ChargesError
    from dp_ray.errors import DpRayError as DpRayError
    from dp_ray.gradients.clipped_sum import ClippedSum as ClippedSum
    from dp_ray.gradients.clipped_sum import clipped_gradient_sum as clipped_gradient_sum
    from dp_ray.objectives.objective import LabelSpec as LabelSpec
    from dp_ray.objectives.objective import Objective as Objective
    from dp_ray.objectives.single_label import Classification as Classification
    from dp_ray.reporting.callbacks import Callback as Callback
    from dp_ray.reporting.callbacks import PrivateValues as PrivateValues
    from dp_ray.reporting.callbacks import PublicValues as PublicValues
    from dp_ray.search.result import SearchSummary as SearchSummary

__version__ = "0.1.0"

_HOME = {
    "AuditOutcome": "dp_ray.auditing.directory",
    "Callback": "dp_ray.reporting.callbacks",
    "ChargesError": "dp_ray.errors",
    "Classification": "dp_ray.objectives.single_label",
    "ClippedSum": "dp_ray.gradients.clipped_sum",
    "Config": "dp_ray.config.run",
    "DataFacts": "dp_ray.data.source",
    "DpRayError": "dp_ray.errors",
    "EvaluationResult": "dp_ray.api.evaluate",
    "LabelSpec": "dp_ray.objectives.objective",
    "LedgerSummary": "dp_ray.api.run",
    "LoadedModel": "dp_ray.api.model",
    "Objective": "dp_ray.objectives.objective",
    "Plan": "dp_ray.api.plan",
    "Prediction": "dp_ray.api.predict",
    "Predictions": "dp_ray.api.predict",
    "Preprocess": "dp_ray.data.preprocess",
    "PrivateValues": "dp_ray.reporting.callbacks",
    "PublicValues": "dp_ray.reporting.callbacks",
    "Report": "dp_ray.api.report",
    "Result": "dp_ray.artifacts.result",
    "Run": "dp_ray.api.run",
    "SearchSummary": "dp_ray.search.result",
    "Source": "dp_ray.data.source",
    "Statement": "dp_ray.artifacts.statement",
    "SweepConfig": "dp_ray.config.search",
    "audit": "dp_ray.api.audit",
    "clipped_gradient_sum": "dp_ray.gradients.clipped_sum",
    "evaluate": "dp_ray.api.evaluate",
    "export": "dp_ray.api.export",
    "load_config": "dp_ray.config.files",
    "load_model": "dp_ray.api.model",
    "load_sweep": "dp_ray.config.search",
    "open_run": "dp_ray.api.run",
    "plan": "dp_ray.api.plan",
    "predict": "dp_ray.api.predict",
    "report": "dp_ray.api.report",
    "train": "dp_ray.api.train",
    "tune": "dp_ray.api.tune",
}

__all__ = [
    "AuditOutcome",
    "Callback",
    "ChargesError",
    "Classification",
    "ClippedSum",
    "Config",
    "DataFacts",
    "DpRayError",
    "EvaluationResult",
    "LabelSpec",
    "LedgerSummary",
    "LoadedModel",
    "Objective",
    "Plan",
    "Prediction",
    "Predictions",
    "Preprocess",
    "PrivateValues",
    "PublicValues",
    "Report",
    "Result",
    "Run",
    "SearchSummary",
    "Source",
    "Statement",
    "SweepConfig",
    "audit",
    "clipped_gradient_sum",
    "evaluate",
    "export",
    "load_config",
    "load_model",
    "load_sweep",
    "open_run",
    "plan",
    "predict",
    "report",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dp_ray' has no attribute {name!r}")
