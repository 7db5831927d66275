"""Trains stage 1 once for each description, whoever asks first; the others wait for the same result.

A module of its own and light on purpose: the actor only keeps references, so it must not import torch.
"""

from __future__ import annotations

from typing import Any

import ray


class Stage1Pool:
    """An actor's class; its references end with it."""

    def __init__(self) -> None:
        self._runs: dict[str, Any] = {}

    def train(
        self, name: str, spec: dict[str, Any], plan: dict[str, Any], output: str, threads: int
    ) -> list[Any]:
        """The reference to a stage-1 result, in a list: the reference itself travels, not the result."""
        if name not in self._runs:
            task: Any = ray.remote(num_cpus=0, max_retries=0)(_fit)
            self._runs[name] = task.remote(spec, plan, output, threads)
        return [self._runs[name]]


def _fit(spec: dict[str, Any], plan: dict[str, Any], output: str, threads: int) -> dict[str, Any]:
    from pipelines.runtime.cluster import Plan
    from pipelines.runtime.fit import Inputs, RunSpec, fit

    spec = spec | {"inputs": Inputs(**spec["inputs"])}
    return fit(RunSpec(**spec), Plan(**plan), output, threads=threads)
