"""Memory, measured: the peak of what was computed, and microbatches that do not fit a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from dp_ray.errors import ConfigError, RunError

_FIELD = "train.microbatch_size"
_PROCESS = Path("/proc/self")


def start_peak(device: torch.device) -> None:
    """Forget the peak so far; see :func:`peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> float | None:
    """Return the most bytes that tensors on a GPU took since :func:`start_peak`; None on a CPU."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.max_memory_allocated(device))


def start_process_peak() -> None:
    """Forget this process's peak so far; see :func:`process_peak_bytes`."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # see proc(5)


def process_peak_bytes() -> float | None:
    """Return the most memory that this process held since :func:`start_process_peak`.

    Returns:
        Bytes; None where the system does not tell: Linux does.
    """
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return 1024.0 * int(found[0][1]) if found else None


def size_that_fits(size: int, attempt: Callable[[int], object]) -> int:
    """Return the largest of size/2, size/4, … at which an attempt has the memory; 0 if none has."""
    while (size := size // 2) > 0:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            continue
        return size
    return 0


def does_not_fit(size: int, fitting: int, views: int) -> ConfigError:
    """Return the error for a microbatch that a GPU has no memory for.

    Args:
        size: B.
        fitting: a smaller size that has been computed there; 0 if not even 1 can be.
        views: K.
    """
    problem = f"the GPU runs out of memory with {size} examples × {views} views a microbatch"
    if fitting == 0:
        return ConfigError(
            _FIELD,
            size,
            f"{problem}, and with 1 as well",
            "Use fewer augment.views, a smaller network or data.image_size, or a larger GPU",
        )
    return ConfigError(
        _FIELD,
        size,
        f"{problem}. Nothing was charged",
        f"Set it to {fitting}, which fits (it was computed there; results do not depend on it), "
        "with --resume if the run was begun",
    )


@contextmanager
def out_of_memory_in_one_line(size: int | None) -> Iterator[None]:
    """Turn a GPU's lack of memory into an error that says what to do.

    Args:
        size: B of what is computed inside; None if microbatches play no part in it.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())[:160].rstrip(". ")
        remedy = "Use a larger GPU, a smaller network, or end what else computes on this one"
        if size is not None and size > 1:
            remedy = (
                f"Set train.microbatch_size to {size // 2} (results do not depend on it), or end "
                "what else computes on this GPU"
            )
        raise RunError(
            f"the GPU ran out of memory ({said}). What was charged is in the ledger, and nothing "
            f"was published. {remedy}, and continue with --resume"
        ) from error
