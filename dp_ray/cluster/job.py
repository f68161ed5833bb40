"""What differs where ``ray job submit`` runs us: on the cluster, in a copy of the user's folder."""

from __future__ import annotations

import json
import os

from dp_ray.errors import ConfigError
from dp_ray.storage import user_path

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's supervisor of a job tells its entry point here what it was submitted with."""


def variables_of_job() -> set[str]:
    """Names in the environment of all of the job's processes, which Ray lets nobody set twice."""
    job = json.loads(os.environ.get(_CONFIG, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def check_storage_path(path: str) -> None:
    """Refuses a place that ends with the job.

    Raises:
        ConfigError: the path is relative, and this is a job.
    """
    if _CONFIG not in os.environ or "://" in path or user_path(path).is_absolute():
        return
    raise ConfigError(
        "train.storage_path",
        path,
        "a submitted job works in a copy of the folder that it was submitted from, which Ray "
        "removes with all that is in it",
        "Give an absolute path that all nodes see, or a URI such as s3://bucket/runs, in the file "
        "or by --set",
    )
