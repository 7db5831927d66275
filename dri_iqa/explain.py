"""Why a picture got its score: its crops' scores, what both halves of the extractor hold of it, and
the degradations that a linear probe finds in the degradation half.

Plain data, for pages (`explain_page.py`) and services; drawing is not done here.

Shapes: K crops, C channels, H x W pixels of the scored picture, h x w positions of a map.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dri_iqa.bundle import ScoreScale
from dri_iqa.bundle_head import ProbeFacts
from dri_iqa.config import to_dict
from dri_iqa.crops import cut_crops, micro_batch
from dri_iqa.evaluation.probe import half_features
from dri_iqa.pictures import Picture, place_crops, read_pixels
from dri_iqa.probe import DegradationProbe
from dri_iqa.scoring import Scorer


@dataclass(frozen=True, kw_only=True)
class CropScore:
    """One crop of the scored picture."""

    x: int
    """Left column, in pixels."""
    y: int
    """Top row."""
    score: float
    """On the label scale."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One kind of degradation, and how likely the probe finds it: the mean over all crops."""

    kind: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """One picture's score and what it comes from."""

    name: str
    """What the picture is called."""
    model: str
    """The labels' name and the first digits of the bundle's digest."""
    digest: str
    """SHA-256 of the bundle, hex."""
    scale: ScoreScale
    """Of all scores here."""
    score: float
    """Mean over the crops."""
    std: float
    """Standard deviation over the crops."""
    policy: str
    """How the picture was cut, e.g. random25."""
    side: int
    """Side of every crop, in pixels of `image_HWC`."""
    crops: tuple[CropScore, ...]
    degradations: tuple[Seen, ...] | None
    """Likeliest first; None where the bundle has no probe."""
    probe: ProbeFacts | None
    """How often the probe is right."""
    image_HWC: np.ndarray
    """The picture as it was scored, uint8 RGB: enlarged where it was smaller than a crop."""
    quality_hw: np.ndarray | None
    """Quality map: mean magnitude of the quality half, float32, no unit; None for a model without
    an extractor (the MANIQA baseline)."""
    degradation_hw: np.ndarray | None
    """Degradation map, likewise."""

    def plain(self) -> dict[str, Any]:
        """Everything but the picture as data that JSON can hold."""
        height, width = self.image_HWC.shape[:2]
        return {
            "image": self.name,
            "width": width,
            "height": height,
            "score": self.score,
            "std": self.std,
            "scale": to_dict(self.scale),
            "model": self.model,
            "digest": self.digest,
            "crops": {
                "policy": self.policy,
                "side": self.side,
                "scores": [asdict(crop) for crop in self.crops],
            },
            "degradations": None
            if self.degradations is None
            else [asdict(seen) for seen in self.degradations],
            "probe": None
            if self.probe is None
            else {**to_dict(self.probe), "chance": self.probe.chance},
            "quality_map": _rows(self.quality_hw),
            "degradation_map": _rows(self.degradation_hw),
        }


def explain(
    scorer: Scorer, picture: Picture, *, name: str | None = None, crops: str | int | None = None
) -> Explanation:
    """Explain the score that `scorer` gives a picture: a pure function of pixels, name and settings.

    Args:
        scorer: see `load_model`.
        picture: path or URI, encoded bytes, or a uint8 RGB array (H, W, 3).
        name: what to call it; default: its path, or "picture".
        crops: see `crop_positions`; None takes the bundle's policy.

    Raises:
        ValueError: not a usable picture, an unknown policy, or a model that gives no finite score.
        OSError: a file that cannot be read.
    """
    bundle = scorer.bundle
    if name is None:
        name = str(picture) if isinstance(picture, str | os.PathLike) else "picture"
    policy = bundle.scoring.crops if crops is None else crops
    image_HWC = read_pixels(picture, bundle.scoring.exif_transpose)
    encoder: Any = bundle.model.dre
    (scored,) = scorer.iter_scored([image_HWC], crops=policy, maps=True)
    if scored.score_K is None:
        raise ValueError(f"{name}: {scored.error}\nTry another picture or another model.")
    side = bundle.config.crop
    image_HWC, position_K2 = place_crops(image_HWC, side, policy)
    seen = None
    if bundle.probe is not None:
        seen = _seen(bundle.probe, encoder, image_HWC, position_K2, side, scorer.device)
    maps = scored.maps or {}
    return Explanation(
        name=name,
        model=scorer.name,
        digest=bundle.digest,
        scale=bundle.score,
        score=float(bundle.score.to_label(scored.score_K.mean())),
        std=float(scored.score_K.std() * bundle.score.span),
        policy=f"random{policy}" if isinstance(policy, int) else policy,
        side=side,
        crops=tuple(
            CropScore(x=int(x), y=int(y), score=float(bundle.score.to_label(score)))
            for (x, y), score in zip(position_K2, scored.score_K, strict=True)
        ),
        degradations=seen,
        probe=bundle.probe.facts if bundle.probe is not None else None,
        image_HWC=image_HWC,
        quality_hw=maps.get("quality"),
        degradation_hw=maps.get("degradation"),
    )


def _seen(
    probe: DegradationProbe,
    encoder: torch.nn.Module,
    image_HWC: np.ndarray,
    position_K2: np.ndarray,
    side: int,
    device: torch.device,
) -> tuple[Seen, ...]:
    crop_KCHW = torch.from_numpy(cut_crops(image_HWC, position_K2, side)).permute(0, 3, 1, 2)
    batch = micro_batch(side, device.type)
    feature_KF = half_features(encoder, crop_KCHW, batch, device)["up"]
    shares = probe.probabilities(feature_KF).mean(0).tolist()
    seen = [
        Seen(kind=kind, probability=share)
        for kind, share in zip(probe.facts.kinds, shares, strict=True)
    ]
    return tuple(sorted(seen, key=lambda one: -one.probability))


def _rows(map_hw: np.ndarray | None) -> list[list[float]] | None:
    return None if map_hw is None else np.round(map_hw.astype(np.float64), 5).tolist()
