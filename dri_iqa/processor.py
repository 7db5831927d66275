"""What this machine's processor can do, from what Linux says of it, and its memory; torch is not needed for it."""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from pathlib import Path

BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
"""Flags of x86 and ARM processors that multiply bf16 matrices, or convert fast enough to be worth it."""


@functools.cache
def lacks_bf16(described: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor says what it has, and bf16 products are not among it.

    Their emulation is slow: a training step of preset `small` on an AMD EPYC of 2021 took 15 times
    as long in bf16 as in fp32.
    """
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", described.read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and BF16.isdisjoint(found[1].split())


GPU_NODES = ("nvidia[0-9]*", "kfd", "dxg")
"""Device files of NVIDIA's and AMD's drivers, and of either under Windows' Linux."""


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """False where asking torch for a GPU, which takes seconds to import, is sure to be in vain."""
    if not sys.platform.startswith("linux"):
        return True
    return any(any(devices.glob(name)) for name in GPU_NODES)


ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}
"""Environment of processes that train or score on a CPU, for glibc: memory that was used once stays with the process.

By default it gives every map of some megabytes back to Linux when it is freed, and the next one is cleared again page
by page: a fifth of a training step of preset `small`, a third of scoring with its model. One arena, because those of
further threads hold nothing of more than 64 MiB.
"""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> None:
    """What `ALLOCATOR` does, for the main thread of a process that runs already; nothing without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
