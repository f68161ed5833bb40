"""dp-ray: differentially private training of image classifiers on Ray.

The names below are the public surface. Importing this package imports neither Ray nor torch; the
names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_ray.api.export import export as export
    from dp_ray.api.model import LoadedModel as LoadedModel
    from dp_ray.api.model import load_model as load_model
    from dp_ray.api.predict import Prediction as Prediction
    from dp_ray.api.predict import Predictions as Predictions
    from dp_ray.api.predict import predict as predict
    from dp_ray.config.files import load_config as load_config
    from dp_ray.config.run import Config as Config
    from dp_ray.data.preprocess import Preprocess as Preprocess
    from dp_ray.errors import DpRayError as DpRayError
    from dp_ray.gradients.clipped_sum import ClippedSum as ClippedSum
    from dp_ray.gradients.clipped_sum import clipped_gradient_sum as clipped_gradient_sum

__version__ = "0.1.0"

_HOME = {
    "ClippedSum": "dp_ray.gradients.clipped_sum",
    "Config": "dp_ray.config.run",
    "DpRayError": "dp_ray.errors",
    "LoadedModel": "dp_ray.api.model",
    "Prediction": "dp_ray.api.predict",
    "Predictions": "dp_ray.api.predict",
    "Preprocess": "dp_ray.data.preprocess",
    "clipped_gradient_sum": "dp_ray.gradients.clipped_sum",
    "export": "dp_ray.api.export",
    "load_config": "dp_ray.config.files",
    "load_model": "dp_ray.api.model",
    "predict": "dp_ray.api.predict",
}

__all__ = [
    "ClippedSum",
    "Config",
    "DpRayError",
    "LoadedModel",
    "Prediction",
    "Predictions",
    "Preprocess",
    "clipped_gradient_sum",
    "export",
    "load_config",
    "load_model",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dp_ray' has no attribute {name!r}")
