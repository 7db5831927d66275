"""Keep a worker on one core: libraries that start threads of their own are told not to."""

from __future__ import annotations

import ctypes
import os
import sys

import cv2
from threadpoolctl import threadpool_limits

_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def pin_threads(count: int = 1) -> None:
    """Limit OpenCV, torch and BLAS in this process to `count` threads, and keep freed memory. Safe to call again.

    A worker that degrades images should call this first: with one worker a core, threads of the libraries only fight
    for the same cores. Environment variables are set as well, for libraries that are loaded later and for child
    processes. torch is limited only if it is already loaded, so that workers without torch stay small.

    Args:
        count: threads allowed, at least 1.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"got {count} threads, expected at least 1")
    for variable in _VARIABLES:
        os.environ[variable] = str(count)
    keep_freed_memory()
    # 0 runs OpenCV's loops in the calling thread, without a pool.
    cv2.setNumThreads(0 if count == 1 else count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    threadpool_limits(limits=count)


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, where it is glibc.

    By default every array of some megabytes comes from the system and goes back to it, and the page faults cost more
    than the arithmetic on it. The process keeps at most what it once needed at the same time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 28)
    mallopt(_M_TRIM_THRESHOLD, 1 << 29)
