"""How a training ends that cannot go on."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class EveryRankError(TrainingError):
    """Likewise, and every rank has found so at the same step."""
