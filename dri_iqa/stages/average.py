"""A moving average of the trained weights: smoother than the last step's, at no cost in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Averages of a module's trainable parameters; statistics and frozen parts stay the module's.

    Update n forgets at the rate min(decay, n / (n + 9)): a short training's average is not held back by the random
    weights that it began with.

    Args:
        module: what trains; the average starts at its weights.
        decay: largest weight of the past in an update.
    """

    updates: Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for number, parameter in enumerate(_trained(module)):
            self.register_buffer(f"weight_{number}", parameter.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average <- d * average + (1 - d) * weights, after an optimiser's step."""
        self.updates += 1
        decay = min(self._decay, float(self.updates / (self.updates + 9)))
        weights: list[Tensor] = [parameter.detach() for parameter in _trained(module)]
        torch._foreach_lerp_(self._averages(), weights, 1 - decay)  # pyright: ignore

    def _averages(self) -> list[Tensor]:
        return [tensor for name, tensor in self.named_buffers() if name != "updates"]

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averages as its weights, inside the block."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for average, parameter in zip(self._averages(), _trained(module), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Make the averages the module's weights."""
        for average, parameter in zip(self._averages(), _trained(module), strict=True):
            parameter.copy_(average)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
