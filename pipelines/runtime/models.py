"""The model that a worker's process scores with, kept from task to task."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from dri_iqa.scoring import Scorer


@lru_cache(maxsize=1)
def loaded(bundle: str, precision: str, compile: bool) -> Scorer:
    """The bundle at a folder or URI; the same object as long as nothing else is asked for."""
    from dri_iqa import load_model

    return load_model(bundle, precision=precision, compile=compile)
