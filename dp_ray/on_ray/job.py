"""What differs where ``ray job submit`` runs us: on the cluster, in a copy of the user's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dp_ray.errors import ConfigError, DpRayError, RunError
from dp_ray.storage import Folder, user_path

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's supervisor of a job tells its entry point here what it was submitted with."""

IN_JOB = "DP_RAY_IN_JOB"
"""Says the same to the job's workers, which Ray starts without that variable."""

ERROR = "error.txt"
"""In a private folder: the last error of a job, with the names that its log lacks."""


def in_job() -> bool:
    """Whether this process is a submitted job's, whose log others may read."""
    return _CONFIG in os.environ or IN_JOB in os.environ


def message_of(error: DpRayError) -> str:
    """What may be printed of an error: in a job, no name of a file or folder of the data."""
    return error.shared if in_job() else str(error)


def for_log(error: DpRayError, *places: Folder) -> DpRayError:
    """The error as it may be raised here: Ray logs what its workers raise, and so does a job.

    Args:
        error: what is wrong.
        places: private folders; the first that is there gets the message that the log lacks.
    """
    if not in_job() or error.shared == str(error):
        return error
    for folder in places:
        with suppress(OSError):
            if folder.names() and folder.exposure() is None:
                folder.write(ERROR, f"{error}\n".encode())
                return RunError(f"{error.shared.rstrip('.')}. {ERROR} in {folder} says which")
    return RunError(error.shared)


@contextmanager
def errors_for_log(*places: Folder) -> Iterator[None]:
    """Raises errors as :func:`for_log` has them."""
    try:
        yield
    except DpRayError as error:
        told = for_log(error, *places)
        if told is error:
            raise
        raise told from None


def variables_of_job() -> set[str]:
    """Names in the environment of all of the job's processes, which Ray lets nobody set twice."""
    job = json.loads(os.environ.get(_CONFIG, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def check_storage_path(path: str, field: str = "train.storage_path") -> None:
    """Refuses a place that ends with the job.

    Args:
        path: where something is to be kept.
        field: by which it was given.

    Raises:
        ConfigError: the path is relative, and this is a job.
    """
    if _CONFIG not in os.environ or "://" in path or user_path(path).is_absolute():
        return
    raise ConfigError(
        field,
        path,
        "a submitted job works in a copy of the folder that it was submitted from, which Ray "
        "removes with all that is in it",
        "Give an absolute path that all nodes see, or a URI such as s3://bucket/runs, in the file "
        "or by --set",
    )
