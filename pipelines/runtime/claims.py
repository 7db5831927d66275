"""Who trains which stage 1: the first trial that asks, while the others wait for its result.

A module of its own and light on purpose: the actor only keeps names, so it must not import torch.
"""

from __future__ import annotations


class Claims:
    """An actor's class: names and their owners."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._seconds = 0.0

    def claim(self, name: str, owner: str) -> bool:
        """Whether the name is the owner's now; a trial that was started again keeps its own claim."""
        return self._owners.setdefault(name, owner) == owner

    def release(self, name: str, seconds: float) -> None:
        """The name is free again: its work is done, in so many seconds, or has failed."""
        self._owners.pop(name, None)
        self._seconds += seconds

    def seconds(self) -> float:
        """Of all work so far."""
        return self._seconds
