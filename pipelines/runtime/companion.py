"""The companion of a finished stage 2 (`model.companion.images`): a kernel regression fitted on its training images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from dri_iqa.config import ModelConfig, from_dict
from dri_iqa.data.batches import Stage2Batches
from dri_iqa.data.samples import unit_score
from dri_iqa.data.schedule import choose
from dri_iqa.models.companion import KernelCompanion
from dri_iqa.models.dri_iqa import BACKBONE, DRIIQA, build_model
from dri_iqa.models.weights import seeded
from dri_iqa.pictures import load_ahead
from dri_iqa.scoring import micro_batch
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import to_float
from pipelines.runtime.feeds import train_batches
from pipelines.runtime.fit import RunSpec

CROPS = "uniform4"
"""Crops of an image that its statistics are the mean of."""
DECODED_AHEAD = 16
SAID_EVERY = 60.0
"""Seconds between two words about how far it is."""


def with_companion(stage: TrainStage, spec: RunSpec, say: Callable[[str], object]) -> DRIIQA:
    """The trained model with the companion that its configuration asks for; the model itself where it asks for none.

    Scores and images are those that it was trained on, so the control with shuffled scores has them shuffled here too.

    Args:
        stage: trained to its end.
        spec: its run.
        say: hears how far it is.
    """
    model = stage.inference_model()
    sizes = from_dict(ModelConfig, spec.config["model"], "model").companion
    if not sizes.images:
        return model
    seed = spec.config["seed"]
    batches = train_batches(spec, 0, 1)
    ids = list(choose(batches.train_ids, sizes.images, seed))
    config = replace(model.config, companion=replace(sizes, images=len(ids)))
    device = next(model.parameters()).device
    with seeded(seed, BACKBONE):
        companion = KernelCompanion(config, load_weights=True).to(device).eval()
    begun = told = time.monotonic()
    rows = []
    for statistics_F in _statistics(companion, batches, ids, config.crop, device):
        rows.append(statistics_F)
        if (now := time.monotonic()) - told > SAID_EVERY:
            left = (now - begun) / len(rows) * (len(ids) - len(rows))
            say(f"companion: {len(rows)} of {len(ids)} training images, {left / 60:.1f} min left")
            told = now
    score_N = torch.tensor([_score(batches, image_id) for image_id in ids], device=device)
    penalty = companion.fit(torch.stack(rows), score_N)
    say(f"the companion is fitted on {len(ids)} training images (penalty {penalty:.3g})")
    whole = build_model(config, backbone_weights=False)
    whole.load_state_dict(
        model.state_dict()
        | {f"companion.{name}": value for name, value in companion.state_dict().items()}
    )
    return whole.eval()


def _statistics(
    companion: KernelCompanion,
    batches: Stage2Batches,
    ids: list[int],
    crop: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Pooled maps of every image, (F,), the mean over its crops."""
    reader = batches.scored.open()
    size = micro_batch(crop, device)
    encoded = (reader.read(image_id)["bytes"] for image_id in ids)
    for place, loaded in load_ahead(encoded, crop, CROPS, False, DECODED_AHEAD):
        if isinstance(loaded, str):  # it was read at every epoch
            raise RuntimeError(f"image {ids[int(place)]} cannot be read: {loaded}")
        image_HWC, position_K2 = loaded
        crop_KHWC = np.stack([image_HWC[y : y + crop, x : x + crop] for x, y in position_K2])
        crop_KCHW = torch.from_numpy(crop_KHWC).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            parts = [companion.statistics(to_float(part)) for part in crop_KCHW.split(size)]
            yield torch.cat(parts).mean(0)


def _score(batches: Stage2Batches, image_id: int) -> float:
    """The normalised score that the image was trained with."""
    label = (
        batches.scored.open().row(image_id)["score"]
        if batches.scores is None
        else batches.scores[image_id]
    )
    return unit_score(label, batches.score_lo, batches.score_hi, batches.higher_is_better)
