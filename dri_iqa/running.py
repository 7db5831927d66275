"""Crops to scores and pictures to maps with a network of torch's; `graph.py` does the former without torch.

Shapes: B crops, C channels, H height, W width, K crops of one picture.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from dri_iqa.bundle import Bundle
from dri_iqa.crops import cut_crops, micro_batch
from dri_iqa.images import resize
from dri_iqa.models import DRIIQA, PackedModel, can_pack
from dri_iqa.models.mobile import is_separable
from dri_iqa.processor import lacks_bf16

log = logging.getLogger(__name__)

MAP_SIDE = 1024
"""Longest side, in pixels, of what the maps are computed from."""


class ScoringModel(Protocol):
    """What scoring asks of a model: predictions for crops, and maps for whole pictures."""

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Scores (B,), [0, 1] with 1 best, of crops in [0, 1]."""
        ...

    def maps(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Degradation and quality map, (B, h, w) each, of pictures of any size."""
        ...


def bundle_runner(
    bundle: Bundle, device: torch.device, *, precision: str, compile: bool
) -> TorchRunner:
    """A bundle's network, moved to the device and compiled or packed as asked.

    Raises:
        ValueError: `compile` on a machine without a C++ compiler.
    """
    bundle.model.to(device)
    network = cast(ScoringModel, bundle.model)
    on_cpu = device.type == "cpu"
    if compile:
        _check_compiler()
        bundle.model.compile()
    elif precision == "bf16" and on_cpu and can_pack():
        network = PackedModel(cast(DRIIQA, bundle.model))
    if precision == "bf16" and on_cpu and lacks_bf16():
        log.warning("precision=bf16, and this processor has no bf16 products: fp32 is faster")
    return TorchRunner(network, bundle.config.crop, device, precision)


class TorchRunner:
    """Runs crops through a network in micro-batches, halved where memory does not suffice.

    Raises:
        ValueError: a model in training mode.
    """

    crops_ahead = 0

    def __init__(
        self, model: ScoringModel, crop: int, device: torch.device, precision: str
    ) -> None:
        if isinstance(model, nn.Module) and model.training:
            raise ValueError("the model is in training mode; call model.eval() before scoring")
        self.model, self.crop, self.device = model, crop, device
        self.size = micro_batch(crop, device.type)
        self.autocast = precision == "bf16"
        last = device.type == "cpu" and not self.autocast and is_separable(model)
        self.layout = torch.channels_last if last else torch.contiguous_format

    def begin(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> Callable[[], np.ndarray]:
        """See `scoring.Runner`; crops are computed when they are asked for."""
        return partial(self.predict, image_HWC, position_K2)

    def predict(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> np.ndarray:
        """Normalised scores (K,), float64, of the crops of a uint8 picture at (x, y) positions."""
        scores, start = [], 0
        while start < len(position_K2):
            crop_BHWC = cut_crops(image_HWC, position_K2[start : start + self.size], self.crop)
            try:
                scores.append(self._forward(crop_BHWC))
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
                self.size //= 2
                warnings.warn(
                    f"not enough memory on {self.device}: {self.size} crops at a time from here; "
                    "the last digits of scores may differ",
                    RuntimeWarning,
                    stacklevel=3,
                )
                continue
            start += len(scores[-1])
        return np.concatenate(scores).astype(np.float64)

    def maps(self, image_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """Both maps, float32 (h, w); very large pictures are shrunk first to bound memory."""
        longest = max(image_HWC.shape[:2])
        if longest > MAP_SIDE:
            height, width = (round(side * MAP_SIDE / longest) for side in image_HWC.shape[:2])
            image_HWC = resize(image_HWC, max(width, 1), max(height, 1))
        with torch.inference_mode(), self._cast():
            drawn = self.model.maps(self._tensor(image_HWC[None]))
        names = ("degradation", "quality")
        return {
            name: map_1HW[0].float().cpu().numpy()
            for name, map_1HW in zip(names, drawn, strict=True)
        }

    def _forward(self, crop_BHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), self._cast():
            score_B = self.model.predict(self._tensor(crop_BHWC))
        return score_B.float().cpu().numpy()

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def _tensor(self, image_BHWC: np.ndarray) -> Tensor:
        pixel_BHWC = torch.from_numpy(np.ascontiguousarray(image_BHWC)).to(self.device)
        pixel_BCHW = pixel_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        return pixel_BCHW.float().div_(255)


def _check_compiler() -> None:
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ValueError(
            "compile: torch.compile needs a C++ compiler and found none\n"
            "Install g++, or score without compiling."
        )
