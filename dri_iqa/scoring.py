"""Pictures to scores: crops, their predictions, mean and spread.

A score is a pure function of the picture's pixels and the settings. Crop positions come from a
digest of the decoded pixels, so file name, order and neighbours cannot matter; and with torch every
picture goes through the network alone, in micro-batches whose shapes follow from its crops only,
because the last bits of a matrix product may depend on the shape of the batch and on a row's place in
it. (They may also depend on torch's number of threads: keep it equal where bits are compared. With a
bundle's graph every crop is computed alone, by one thread.)
Filling batches across pictures would be somewhat faster for tiny networks and would give that up.

Shape suffixes: B crops, C channels, H height, W width, K crops of one picture.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dri_iqa.bundle_files import BundleError
from dri_iqa.bundle_head import BundleFiles, read_bundle
from dri_iqa.crops import parse_crops
from dri_iqa.graph import GraphRunner, has_runtime
from dri_iqa.pictures import Loaded, Picture, load_ahead
from dri_iqa.processor import may_have_gpu

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from dri_iqa.bundle import Bundle
    from dri_iqa.running import ScoringModel, TorchRunner

log = logging.getLogger(__name__)

NON_FINITE = "the model gave a non-finite score"
"""The one reason for a row without a score that is the model's fault, not the picture's."""


class Runner(Protocol):
    """What turns a picture's crops into scores: `TorchRunner`, or `GraphRunner`."""

    crops_ahead: int
    """How many crops should be begun before those of the oldest picture are asked for."""

    def begin(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> Callable[[], np.ndarray]:
        """What returns the normalised scores (K,), float64, of the crops of a uint8 picture at (x, y) positions."""
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
    import torch

    from dri_iqa.running import TorchRunner

    _check(precision=precision)
    runner = TorchRunner(model, crop, torch.device(device), precision)
    yield from _scored(
        runner,
        images,
        crop=crop,
        crops=crops,
        exif_transpose=exif_transpose,
        batch_size=batch_size,
        draw=runner.maps if maps else None,
    )


def _check(*, precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: got {precision!r}, expected fp32 or bf16")


def _scored(
    runner: Runner,
    images: Iterable[Picture],
    *,
    crop: int,
    crops: str | int,
    exif_transpose: bool,
    batch_size: int,
    draw: Callable[[np.ndarray], dict[str, np.ndarray]] | None,
) -> Iterator[Scored]:
    parse_crops(crops)
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")

    def begin(name: str, loaded: Loaded) -> tuple[int, Callable[[], Scored]]:
        if isinstance(loaded, str):
            return 0, lambda: Scored(name=name, score_K=None, error=loaded)
        image_HWC, position_K2 = loaded
        scores = runner.begin(image_HWC, position_K2)

        def end() -> Scored:
            score_K = scores()
            if not np.isfinite(score_K).all():
                return Scored(name=name, score_K=None, error=NON_FINITE)
            drawn = draw(image_HWC) if draw is not None else None
            return Scored(name=name, score_K=score_K, error=None, maps=drawn)

        return len(position_K2), end

    begun: deque[tuple[int, Callable[[], Scored]]] = deque()
    crops_begun = 0
    for name, loaded in load_ahead(images, crop, crops, exif_transpose, batch_size):
        begun.append(begin(name, loaded))
        crops_begun += begun[-1][0]
        while begun and crops_begun - begun[0][0] >= runner.crops_ahead:
            count, end = begun.popleft()
            crops_begun -= count
            yield end()
    for _, end in begun:
        yield end()


class Scorer:
    """A loaded model with its score scale; what `load_model` returns.

    With a bundle's files alone, its graph scores, and torch is loaded by what needs the network: maps, `bundle`.

    Attributes:
        head: configuration, scale, policy, meta, digest.
        name: the labels' name and the first digits of the bundle's digest.

    Raises:
        ValueError: an unknown setting, or one that a graph does not have.
    """

    def __init__(
        self,
        bundle: Bundle | BundleFiles,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        _check(precision=precision)
        self._device, self._precision, self._compile = device, precision, compile
        self._files = bundle if isinstance(bundle, BundleFiles) else None
        self._bundle: Bundle | None = None
        self._network: TorchRunner | None = None
        if isinstance(bundle, BundleFiles):
            if str(device) != "cpu" or precision != "fp32" or compile:
                raise ValueError("a graph scores on the CPU, in fp32, and is not compiled")
            self.head = bundle.head
            self._runner: Runner = GraphRunner(bundle)
        else:
            self.head = self._bundle = bundle
            self._runner = self._torch_runner()
        self.name = f"{self.head.score.name}@{self.head.digest[:12]}"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        import torch

        return torch.device(self._device)

    @property
    def bundle(self) -> Bundle:
        """Head, network and probe of degradations; built when it is first asked for."""
        if self._bundle is None:
            from dri_iqa.bundle import build_bundle

            assert self._files is not None
            self._bundle = build_bundle(self._files)
        return self._bundle

    def _torch_runner(self) -> TorchRunner:
        if self._network is None:
            from dri_iqa.running import bundle_runner

            self._network = bundle_runner(
                self.bundle, self.device, precision=self._precision, compile=self._compile
            )
        return self._network

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
        crops = self.head.scoring.crops if crops is None else crops
        rows = list(self.iter_rows(images, crops=crops, batch_size=batch_size, maps=maps))
        columns = ["image", "score", "std", "error"]
        columns += ["degradation_map", "quality_map"] if maps else []
        table = pd.DataFrame(rows, columns=columns)
        # Explicit types: inferred ones turn None into NaN and an empty table into objects.
        table = table.astype({"image": object, "score": float, "std": float})
        table["error"] = pd.Series([row["error"] for row in rows], dtype=object)
        table.attrs = {"model": self.name, "digest": self.head.digest, "crops": str(crops)}
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
        scoring = self.head.scoring
        drawing = maps and "dre" in self.head.parts
        return _scored(
            self._runner,
            images,
            crop=self.head.config.crop,
            crops=scoring.crops if crops is None else crops,
            exif_transpose=scoring.exif_transpose,
            batch_size=batch_size,
            draw=self._torch_runner().maps if drawing else None,
        )

    def _row(self, item: Scored, maps: bool) -> dict[str, Any]:
        scale = self.head.score
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
    engine: Literal["auto", "torch"] = "auto",
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
        engine: `auto` scores by the bundle's graph where it has one, on a CPU in fp32 (`dri_iqa/graph.py`: no
            torch, faster, last digits differ); `torch` never does.

    Raises:
        BundleError: no such model, or a damaged one; the message says which.
        ValueError: an unknown setting, or `compile` on a machine without a C++ compiler.
    """
    if engine not in ("auto", "torch"):
        raise ValueError(f"engine: got {engine!r}, expected auto or torch")
    _check(precision=precision)
    files = read_bundle(os.fspath(uri))
    if device is None:
        device = "cuda" if _gpu_there() else "cpu"
    plain = str(device) == "cpu" and precision == "fp32" and not compile
    if plain and engine == "auto" and files.graph is not None and has_runtime():
        try:
            return Scorer(files)
        except (
            BundleError
        ) as error:  # its bytes are the ones that were written: another runtime than its writer's
            log.warning("%s (here the network itself scores, with torch)", error)
    from dri_iqa.bundle import build_bundle

    bundle = build_bundle(files, device=device)
    return Scorer(bundle, device=device, precision=precision, compile=compile)


def _gpu_there() -> bool:
    if not may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()
