"""Memory that stays with the process: pages that were used once are not asked of the system again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from dri_iqa.processor import ALLOCATOR, may_have_gpu

CODE = """
import resource, threading
import numpy as np
{first}
counts = []
def work():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            np.ones(100 << 20, np.uint8)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
{run}
print(counts[-1])
"""
IN_THREAD = "thread = threading.Thread(target=work); thread.start(); thread.join()"
KEEP = "from dri_iqa.processor import keep_memory; keep_memory()"


def faults(first: str = "", run: str = "work()", **environment: str) -> int:
    """Pages of 500 MB that the system gave in the fourth round."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = CODE.format(first=first, run=run)
    environment = {**plain, "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    command = [sys.executable, "-c", code]
    return int(subprocess.check_output(command, env=environment, text=True, timeout=120))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_asked_for_once() -> None:
    assert faults() > 10_000
    assert faults(run=IN_THREAD) > 10_000
    assert faults(first=KEEP) < 100
    assert faults(run=IN_THREAD, **ALLOCATOR) < 100


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is always asked")
@pytest.mark.parametrize(
    ("device", "there"),
    [("nvidia0", True), ("kfd", True), ("dxg", True), ("nvidiactl", False), ("null", False)],
)
def test_torch_is_asked_for_a_gpu_only_where_a_driver_made_its_device(
    tmp_path, device: str, there: bool
) -> None:
    (tmp_path / device).touch()
    assert may_have_gpu(tmp_path) is there
