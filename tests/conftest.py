"""Shared fixtures: where optional real data lies, and a finished run of the main job that several tests look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs, where `DRI_IQA_SHARED` names one."""
    folder = os.environ.get("DRI_IQA_SHARED")
    if not folder:
        pytest.skip("DRI_IQA_SHARED is not set: no real photographs")
    return Path(folder)
