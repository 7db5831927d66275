"""What this machine's processor can do, from what Linux says of it; torch is not needed for it."""

from __future__ import annotations

import functools
import re
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
