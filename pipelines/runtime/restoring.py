"""What the restoration network makes of images that nothing was trained on, drawn where it is at hand: it serves
training only and is in no bundle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

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
from dri_iqa.seeds import Purpose, generator
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import Stage, to_float
from pipelines.runtime.feeds import clean_parts
from pipelines.runtime.fit import RunSpec
from pipelines.runtime.tracking import PICTURES, RESTORATION

SHOWN = 5
SIDE = 256
"""Side in pixels of the middle of an image that is restored: to look at, a whole large one costs too much."""


def draw_restoration(stage: Stage, spec: RunSpec, target: str) -> None:
    """A picture of degraded, restored and reference image; nothing for a stage that restores nothing.

    Test images with their references where the data set has any, else clean images under chains of their own.

    Args:
        stage: trained to its end.
        spec: its run.
        target: URI of the run's results.
    """
    if not isinstance(stage, TrainStage) or stage.ram is None:
        return
    pairs = list(_test_pairs(spec)) or list(_degraded_pairs(spec))
    if not pairs:
        return
    device = next(stage.parameters()).device
    rows = []
    for name, image_HWC, reference_HWC in pairs:
        image_BCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].to(device)
        restored_CHW = stage.restore(to_float(image_BCHW))[0].cpu()
        restored_HWC = (restored_CHW * 255).round().byte().permute(1, 2, 0).numpy()
        rows.append(
            Restored(
                degraded_HWC=image_HWC,
                restored_HWC=restored_HWC,
                reference_HWC=reference_HWC,
                name=name,
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        path = restoration_strip(rows, Path(folder) / RESTORATION)
        storage.write_bytes(storage.join(target, PICTURES, RESTORATION), path.read_bytes())


def _test_pairs(spec: RunSpec) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What was done to some test images, they themselves and their references."""
    reader = Source(uri=spec.inputs.scored_uri, digest=spec.inputs.scored_digest).open()
    table = reader.manifest.table().select(["image_id", "reference"]).to_pylist()
    test = set(load_splits(spec.inputs.split_uri)[0].test)
    ids = [row["image_id"] for row in table if row["reference"] and row["image_id"] in test]
    for image_id in choose(tuple(ids), SHOWN, spec.config["seed"]):
        row = reader.read(image_id)
        pair = (row, reader.read_reference(row["reference"]))
        image_HWC, reference_HWC = (middle(decode(item["bytes"]), SIDE) for item in pair)
        if image_HWC.shape == reference_HWC.shape:
            yield row["recipe"] or row["type"] or row["name"], image_HWC, reference_HWC


def _degraded_pairs(spec: RunSpec) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Chains, clean images under them, and the images; held-out photographs where stage 1 held out some."""
    seed = spec.config["seed"]
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    reader = source.open()
    for image_id in choose(clean_parts(source, stage1, seed).test, SHOWN, seed):
        clean_HWC = middle(decode(reader.read(image_id)["bytes"]), SIDE)
        rng = generator(seed, Purpose.DEGRADE, 0, image_id, 2)  # a view that training never draws
        recipe = draw_recipe(rng, stage1.degrade)
        image_HWC = apply_recipe(clean_HWC, recipe, rng, stage1.degrade)
        yield str(recipe) or "pristine", image_HWC, clean_HWC
