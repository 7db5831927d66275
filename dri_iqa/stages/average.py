"""A moving average of the trained weights: smoother than the last step's, at no cost in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Averages of a module's trainable parameters; statistics and frozen parts stay the module's.

    Args:
        module: what trains; the average starts at its weights.
        decay: weight of the past in every update.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        for number, parameter in enumerate(_trained(module)):
            self.register_buffer(f"weight_{number}", parameter.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average <- decay * average + (1 - decay) * weights, after an optimiser's step."""
        weights: list[Tensor] = [parameter.detach() for parameter in _trained(module)]
        torch._foreach_lerp_(list(self.buffers()), weights, 1 - self._decay)  # pyright: ignore

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
        for average, parameter in zip(self.buffers(), _trained(module), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Make the averages the module's weights."""
        for average, parameter in zip(self.buffers(), _trained(module), strict=True):
            parameter.copy_(average)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
