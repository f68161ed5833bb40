"""Libraries that must fit one another: torchvision is built for one version of torch."""

from __future__ import annotations

import re
from importlib import metadata
from types import ModuleType

from dp_ray.errors import DpRayError


class LibraryError(DpRayError):
    """Installed libraries that do not work together."""


def import_torchvision() -> ModuleType:
    """Import torchvision; it is imported nowhere else, and only by runs that need it.

    Raises:
        LibraryError: it cannot be imported, which it cannot beside another torch than its own.
    """
    try:
        import torchvision
    except Exception as error:  # its compiled part fails in any way beside another torch
        raise LibraryError(_explained(error)) from error
    module: ModuleType = torchvision
    return module


def _explained(error: Exception) -> str:
    """Why torchvision cannot be imported, with the command that repairs it."""
    try:
        own, needed = metadata.version("torchvision"), metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return "torchvision is needed and not installed: pip install torchvision"
    torch = metadata.version("torch").partition("+")[0]  # without CUDA's version: any build of it
    wanted = next((text for text in needed if re.match(r"torch\b", text)), "torch")
    cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")
    return (
        f"torchvision {own} cannot be imported beside torch {torch} ({cause}): it is made for "
        f"{wanted}. Install the torchvision of this torch: pip install torch=={torch} torchvision"
    )
