"""Which epoch's weights a run keeps, where that is not the last one's: the best on validation images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class BestWeights:
    """A copy of a module's weights and statistics after its best epoch so far; part of every checkpoint.

    Args:
        module: whose weights are kept.
        metric: the figure of an epoch's row of metrics that decides, larger is better.
    """

    def __init__(self, module: nn.Module, metric: str) -> None:
        self.module, self.metric = module, metric
        self.epoch, self.value = 0, float("-inf")
        self._tensors: dict[str, Tensor] = {}

    def offer(self, epoch: int, row: dict[str, float]) -> None:
        """Keep the weights as they are now if this epoch (1-based) is better than all before; of
        equal ones the earliest stays, and a figure that is not a number never wins.
        """
        value = row.get(self.metric, float("nan"))
        if value > self.value:
            self.epoch, self.value = epoch, value
            self._tensors = {
                name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()
            }

    @torch.no_grad()
    def restore(self) -> None:
        """Give the module the weights that were kept; without any it stays as it is."""
        own = self.module.state_dict()
        for name, tensor in self._tensors.items():
            own[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain data."""
        return {"epoch": self.epoch, "value": self.value, "tensors": self._tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.epoch, self.value = state["epoch"], state["value"]
        self._tensors = state["tensors"]
