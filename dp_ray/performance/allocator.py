"""What the C library does with large blocks of memory that are given back."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30
_LARGEST_OF_OLD = 2**25
"""What glibc took at most, for single blocks, before it took any size."""


def keep_freed_memory() -> None:
    """Lets the process keep large blocks for the next step, instead of handing them back.

    By default glibc maps each block above some megabytes anew, and the kernel then clears every
    page of it: a tenth to a third of a step's time on a CPU. The most that a process uses at a time
    stays what it was. Only glibc has this setting; elsewhere nothing happens. In a thread that is
    not the main one it takes environment variables too, which are set where workers are started.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST - 1)
