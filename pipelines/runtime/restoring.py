"""What the restoration network makes of images that nothing was trained on, seen where it is at hand: it serves
training only and is in no bundle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from dri_iqa import storage
from dri_iqa.config import Stage1Config, from_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.schedule import choose
from dri_iqa.data.splits import load_splits
from dri_iqa.degradations import apply_recipe, draw_recipe
from dri_iqa.evaluation.figures import Restored, restoration_strip
from dri_iqa.images import decode, middle
from dri_iqa.losses.restoration import psnr
from dri_iqa.seeds import Purpose, generator
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import Stage, to_float
from pipelines.runtime.feeds import clean_parts
from pipelines.runtime.fit import RunSpec
from pipelines.runtime.tracking import PICTURES, RESTORATION

SHOWN = 5
MEASURED = 200
"""Most images whose restoration is measured."""
SIDE = 256
"""Side in pixels of the middle of an image that is restored: to look at, a whole large one costs too much."""

Pair: TypeAlias = tuple[str, np.ndarray, np.ndarray]
"""What was done to an image, itself and its reference, (H, W, 3) uint8."""


def show_restoration(stage: Stage, spec: RunSpec, target: str) -> dict[str, float]:
    """What restoration gains, and a picture of degraded, restored and reference image.

    Test images with their references where the data set has any, else clean images under chains of their own.

    Args:
        stage: trained to its end.
        spec: its run.
        target: URI of the run's results.

    Returns:
        How many `images`, and their mean PSNR in dB as they are (`psnr_input`) and restored (`psnr_restored`);
        nothing for a stage that restores nothing. An image that equals its reference has no PSNR and is left out.
    """
    if not isinstance(stage, TrainStage) or stage.ram is None:
        return {}
    device = next(stage.parameters()).device

    def unit(image_HWC: np.ndarray) -> torch.Tensor:
        return to_float(torch.from_numpy(image_HWC).permute(2, 0, 1)[None].to(device))

    rows: list[Restored] = []
    gains: list[tuple[float, float]] = []
    for name, image_HWC, reference_HWC in _test_pairs(spec) or _degraded_pairs(spec):
        image_BCHW, reference_BCHW = unit(image_HWC), unit(reference_HWC)
        restored_BCHW = stage.restore(image_BCHW)
        if not torch.equal(image_BCHW, reference_BCHW):
            pair = (psnr(each, reference_BCHW) for each in (image_BCHW, restored_BCHW))
            gains.append((float(next(pair)), float(next(pair))))
        if len(rows) < SHOWN:
            restored_HWC = (restored_BCHW[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            rows.append(
                Restored(
                    degraded_HWC=image_HWC,
                    restored_HWC=restored_HWC,
                    reference_HWC=reference_HWC,
                    name=name,
                )
            )
    if not rows:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = restoration_strip(rows, Path(folder) / RESTORATION)
        storage.write_bytes(storage.join(target, PICTURES, RESTORATION), path.read_bytes())
    if not gains:
        return {}
    before, after = np.mean(gains, axis=0)
    return {"images": len(gains), "psnr_input": float(before), "psnr_restored": float(after)}


def _test_pairs(spec: RunSpec) -> list[Pair]:
    """What was done to some test images, they themselves and their references."""
    reader = Source(uri=spec.inputs.scored_uri, digest=spec.inputs.scored_digest).open()
    table = reader.manifest.table().select(["image_id", "reference"]).to_pylist()
    test = set(load_splits(spec.inputs.split_uri)[0].test)
    ids = [row["image_id"] for row in table if row["reference"] and row["image_id"] in test]
    found = []
    for image_id in choose(tuple(ids), MEASURED, spec.config["seed"]):
        row = reader.read(image_id)
        pair = (row, reader.read_reference(row["reference"]))
        image_HWC, reference_HWC = (middle(decode(item["bytes"]), SIDE) for item in pair)
        if image_HWC.shape == reference_HWC.shape:
            found.append((row["recipe"] or row["type"] or row["name"], image_HWC, reference_HWC))
    return found


def _degraded_pairs(spec: RunSpec) -> Iterator[Pair]:
    """Chains, clean images under them, and the images; held-out photographs where stage 1 held out some."""
    seed = spec.config["seed"]
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    reader = source.open()
    for image_id in choose(clean_parts(source, stage1, seed).test, MEASURED, seed):
        clean_HWC = middle(decode(reader.read(image_id)["bytes"]), SIDE)
        rng = generator(seed, Purpose.DEGRADE, 0, image_id, 2)  # a view that training never draws
        recipe = draw_recipe(rng, stage1.degrade)
        image_HWC = apply_recipe(clean_HWC, recipe, rng, stage1.degrade)
        yield str(recipe) or "pristine", image_HWC, clean_HWC
