"""Losses between a restored image and its clean reference (paper Eq. 3-6).

Shapes: B images, C channels, H x W pixels, h x w positions of the extractor's last map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.models.dre import DREEncoder, upper

NO_ERROR = 1e-4
"""Mean squared error (40 dB) below which `psnr` hardly rewards any further gain."""


def pixel_loss(restored_BCHW: Tensor, reference_BCHW: Tensor, kind: str) -> Tensor:
    """The image-level L2 of Eq. 3, averaged over images.

    Args:
        restored_BCHW: RGB, not clamped.
        reference_BCHW: RGB in [0, 1].
        kind: `mse` (the paper calls it "the conventional loss function L2 Loss"), `rmse` or `norm`
            of each image, or `psnr`: -PSNR / 10 dB of each image, as NAFNet itself is trained
            (basicsr/models/losses), so that images that are nearly clean count as much as others.
    """
    error_BCHW = restored_BCHW.float() - reference_BCHW.float()
    if kind == "mse":
        return error_BCHW.square().mean()
    squares_BX = error_BCHW.square().flatten(1)
    if kind == "psnr":
        return (squares_BX.mean(1) + NO_ERROR).log10().mean()
    # the constant keeps the root differentiable where restored and reference agree
    total_B = squares_BX.mean(1) if kind == "rmse" else squares_BX.sum(1)
    return (total_B + 1e-12).sqrt().mean()


def psnr(image_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """Mean over images of the peak signal-to-noise ratio in dB, for values in [0, 1]; 100 dB at
    most.
    """
    error_B = (image_BCHW.float().clamp(0, 1) - reference_BCHW.float()).square().flatten(1).mean(1)
    return (-10 * error_B.clamp(min=1e-10).log10()).mean()


def straight_through_clamp(image_BCHW: Tensor) -> Tensor:
    """Values clamped to [0, 1]; the gradient passes as if they were not."""
    return image_BCHW + (image_BCHW.clamp(0, 1) - image_BCHW).detach()


def representation_loss(frozen: nn.Module, restored_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """MSE between the degradation halves of restored and reference (Eq. 4-6).

    The gradient flows through the frozen extractor to the restored image, and to nothing on the
    reference's side.

    Args:
        frozen: the stage-1 encoder, in evaluation mode, its parameters without gradient.
        restored_BCHW: RGB with its graph; clamped straight-through.
        reference_BCHW: RGB in [0, 1].
    """
    assert isinstance(frozen, DREEncoder)
    with torch.no_grad():
        target_BChw = upper(frozen(reference_BCHW)[-1])
    return F.mse_loss(
        upper(frozen(straight_through_clamp(restored_BCHW))[-1]).float(), target_BChw.float()
    )
