"""Pictures to scores: crops, their predictions, mean and spread.

A score is a pure function of the picture's pixels and the settings. Crop positions come from a
digest of the decoded pixels, so file name, order and neighbours cannot matter; and every picture
goes through the network alone, in micro-batches whose shapes follow from its crops only, because
the last bits of a matrix product may depend on the shape of the batch and on a row's place in it.
(They may also depend on torch's number of threads: keep it equal where bits are compared.)
Filling batches across pictures would be somewhat faster for tiny networks and would give that up.

Shape suffixes: B crops, C channels, H height, W width, K crops of one picture.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from dri_iqa.bundle import Bundle, load_bundle
from dri_iqa.crops import parse_crops
from dri_iqa.images import resize
from dri_iqa.models import DRIIQA, PackedModel, can_pack
from dri_iqa.models.mobile import is_separable
from dri_iqa.pictures import Picture, load_ahead
from dri_iqa.processor import lacks_bf16

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NON_FINITE = "the model gave a non-finite score"
"""The one reason for a row without a score that is the model's fault, not the picture's."""
MAP_SIDE = 1024
"""Longest side, in pixels, of what the maps are computed from."""


def micro_batch(crop: int, device: torch.device) -> int:
    """Crops in one pass of the network; part of the arithmetic, so no setting.

    Large crops keep two CPU cores busy five at a time; 25 at once only take more memory there
    (the paper's sizes at 224 pixels: 4.1 instead of 2.0 GB, the same time a crop).
    """
    return 5 if device.type == "cpu" and crop >= 128 else 25


class ScoringModel(Protocol):
    """What scoring asks of a model: predictions for crops, and maps for whole pictures."""

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Scores (B,), [0, 1] with 1 best, of crops in [0, 1]."""
        ...

    def maps(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Degradation and quality map, (B, h, w) each, of pictures of any size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One picture's result. `score_K` is normalised (1 = best) and None where `error` says why."""

    name: str
    score_K: np.ndarray | None
    error: str | None
    maps: dict[str, np.ndarray] | None = None


def score_images(
    model: ScoringModel,
    images: Iterable[Picture],
    *,
    crop: int,
    crops: str | int = "random25",
    exif_transpose: bool = False,
    batch_size: int = 16,
    maps: bool = False,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> Iterator[Scored]:
    """Predictions for every crop of every picture, in the order given, with flat memory.

    Args:
        model: in evaluation mode, on `device`.
        images: paths or URIs, encoded bytes, or uint8 arrays (H, W, 3); may be a generator.
        crop: side of the crops the model was trained on; smaller pictures are enlarged bilinearly.
        crops: see `crop_positions`.
        batch_size: pictures decoded ahead by threads; results do not depend on it.
        maps: also run the model's `maps` on the whole picture.
        precision: `fp32`, or `bf16` for autocast (faster, last digits differ; on CPUs `Scorer` hands over
            a packed network, which is faster still).

    Yields:
        One `Scored` for each picture; what cannot be read or scored carries the reason.

    Raises:
        ValueError: model in training mode or an unknown setting.
    """
    parse_crops(crops)
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: got {precision!r}, expected fp32 or bf16")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("the model is in training mode; call model.eval() before scoring")
    run = _Runner(model, crop, torch.device(device), precision)
    for name, loaded in load_ahead(images, crop, crops, exif_transpose, batch_size):
        if isinstance(loaded, str):
            yield Scored(name=name, score_K=None, error=loaded)
            continue
        image_HWC, position_K2 = loaded
        score_K = run.predict(image_HWC, position_K2)
        if not np.isfinite(score_K).all():
            yield Scored(name=name, score_K=None, error=NON_FINITE)
            continue
        drawn = run.maps(image_HWC) if maps else None
        yield Scored(name=name, score_K=score_K, error=None, maps=drawn)


class Scorer:
    """A loaded model with its score scale; what `load_model` returns.

    Attributes:
        bundle: configuration, scale, meta, digest.
        name: the labels' name and the first digits of the bundle's digest.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        self.bundle = bundle
        self.device = torch.device(device)
        self.precision = precision
        bundle.model.to(self.device)
        self._network = cast(ScoringModel, bundle.model)
        if compile:
            _check_compiler()
            bundle.model.compile()
        elif precision == "bf16" and self.device.type == "cpu" and can_pack():
            self._network = PackedModel(cast(DRIIQA, bundle.model))
        if precision == "bf16" and self.device.type == "cpu" and lacks_bf16():
            log.warning("precision=bf16, and this processor has no bf16 products: fp32 is faster")
        self.name = f"{bundle.score.name}@{bundle.digest[:12]}"

    def score(
        self,
        images: Iterable[Picture],
        *,
        crops: str | int | None = None,
        batch_size: int = 16,
        maps: bool = False,
    ) -> pd.DataFrame:
        """Score pictures; one row each, in the order given.

        Args:
            images: paths or URIs, encoded bytes, or uint8 RGB arrays (H, W, 3).
            crops: see `crop_positions`; None takes the bundle's policy (25 random crops).
            batch_size: pictures decoded ahead; scores do not depend on it.
            maps: add columns `degradation_map` and `quality_map`, float32 arrays; None for a model
                without an extractor (the MANIQA baseline).

        Returns:
            Columns image (path, or position in the input), score and std over the crops (both on
            the label scale, NaN where it failed) and error (None, or the reason). `attrs` holds
            the model's digest and the settings.

        Raises:
            ValueError: an unknown setting; never because of a picture.
        """
        import pandas as pd  # takes a third of a second, and most callers want rows

        if isinstance(images, str | bytes | bytearray | os.PathLike | np.ndarray):
            raise ValueError("images: got a single picture, expected a list of pictures")
        crops = self.bundle.scoring.crops if crops is None else crops
        rows = list(self.iter_rows(images, crops=crops, batch_size=batch_size, maps=maps))
        columns = ["image", "score", "std", "error"]
        columns += ["degradation_map", "quality_map"] if maps else []
        table = pd.DataFrame(rows, columns=columns)
        # Explicit types: inferred ones turn None into NaN and an empty table into objects.
        table = table.astype({"image": object, "score": float, "std": float})
        table["error"] = pd.Series([row["error"] for row in rows], dtype=object)
        table.attrs = {"model": self.name, "digest": self.bundle.digest, "crops": str(crops)}
        return table

    def iter_rows(
        self,
        images: Iterable[Picture],
        *,
        crops: str | int | None = None,
        batch_size: int = 16,
        maps: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """The rows of `score` one by one, for progress bars and endless inputs."""
        for item in self.iter_scored(images, crops=crops, batch_size=batch_size, maps=maps):
            yield self._row(item, maps)

    def iter_scored(
        self,
        images: Iterable[Picture],
        *,
        crops: str | int | None = None,
        batch_size: int = 16,
        maps: bool = False,
    ) -> Iterator[Scored]:
        """`score_images` with this model: normalised scores of every crop, picture by picture."""
        scoring = self.bundle.scoring
        has_extractor = cast(Any, self.bundle.model).dre is not None
        return score_images(
            self._network,
            images,
            crop=self.bundle.config.crop,
            crops=scoring.crops if crops is None else crops,
            exif_transpose=scoring.exif_transpose,
            batch_size=batch_size,
            maps=maps and has_extractor,
            device=self.device,
            precision=self.precision,
        )

    def _row(self, item: Scored, maps: bool) -> dict[str, Any]:
        scale = self.bundle.score
        row: dict[str, Any] = {"image": item.name, "score": np.nan, "std": np.nan}
        row["error"] = item.error
        if item.score_K is not None:
            row["score"] = float(scale.to_label(item.score_K.mean()))
            row["std"] = float(item.score_K.std() * scale.span)
        if maps:
            drawn = item.maps or {}
            row |= {f"{half}_map": drawn.get(half) for half in ("degradation", "quality")}
        return row


def load_model(
    uri: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Scorer:
    """Load a model that scores pictures.

    Args:
        uri: folder of a bundle (local, `file://`, `s3://`), or a URI whose scheme an installed
            package reads, e.g. `models:/dri-iqa@champion` with MLflow.
        device: default: a GPU where there is one.
        precision: `fp32`, or `bf16` (faster, last digits differ); on a CPU the weights are then rounded and
            laid out once, here.
        compile: compile the network with torch.compile at its first picture, which takes a minute or
            so and pays for thousands of pictures; last digits of scores may differ.

    Raises:
        BundleError: no such model, or a damaged one; the message says which.
        ValueError: `compile` on a machine without a C++ compiler.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bundle = load_bundle(uri, device=device)
    return Scorer(bundle, device=device, precision=precision, compile=compile)


def _check_compiler() -> None:
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ValueError(
            "compile: torch.compile needs a C++ compiler and found none\n"
            "Install g++, or score without compiling."
        )


class _Runner:
    """Runs crops through a network in micro-batches, halved where memory does not suffice."""

    def __init__(
        self, model: ScoringModel, crop: int, device: torch.device, precision: str
    ) -> None:
        self.model, self.crop, self.device = model, crop, device
        self.size = micro_batch(crop, device)
        self.autocast = precision == "bf16"
        last = device.type == "cpu" and not self.autocast and is_separable(model)
        self.layout = torch.channels_last if last else torch.contiguous_format

    def predict(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> np.ndarray:
        crop = self.crop
        scores, start = [], 0
        while start < len(position_K2):
            corner_B2 = position_K2[start : start + self.size]
            crop_BHWC = np.stack([image_HWC[y : y + crop, x : x + crop] for x, y in corner_B2])
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
