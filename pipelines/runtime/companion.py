"""The companion of a finished stage 2 (`model.companion.images`): a kernel regression fitted on its training images,
and on clean photographs degraded in steps where those are asked for (`model.companion.order_series`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from dri_iqa.config import ModelConfig, Stage1Config, from_dict
from dri_iqa.crops import micro_batch
from dri_iqa.data.batches import Source, Stage2Batches
from dri_iqa.data.order import Permutation
from dri_iqa.data.samples import unit_score
from dri_iqa.data.schedule import choose
from dri_iqa.degradations.steps import one_series
from dri_iqa.images import decode, resize_short_side
from dri_iqa.models.companion import KernelCompanion
from dri_iqa.models.dri_iqa import BACKBONE, DRIIQA, build_model
from dri_iqa.models.weights import seeded
from dri_iqa.pictures import load_ahead
from dri_iqa.seeds import Purpose
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import to_float
from pipelines.runtime.clock import told
from pipelines.runtime.feeds import clean_parts, train_batches
from pipelines.runtime.fit import RunSpec

CROPS = "uniform4"
"""Crops of an image that its statistics are the mean of."""
DECODED_AHEAD = 16


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
    of_images = _statistics(companion, batches, ids, config.crop, device)
    of_images = told(of_images, len(ids), "companion", "training images", say)
    statistics_IF = torch.stack(list(of_images))
    score_I = torch.tensor([_score(batches, image_id) for image_id in ids], device=device)
    series_SLF = None
    if sizes.order_series:
        of_series = _series_statistics(companion, spec, sizes.order_series, config.crop, device)
        of_series = told(of_series, sizes.order_series, "companion", "series of levels", say)
        series_SLF = torch.stack(list(of_series))
    penalty, falling = companion.fit(statistics_IF, score_I, series_SLF)
    order = "" if falling is None else f"; {falling:.0%} of its steps from level to level fall"
    say(f"the companion is fitted on {len(ids)} training images (penalty {penalty:.3g}){order}")
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
    size = micro_batch(crop, device.type)
    encoded = (row["bytes"] for row in reader.read_each(ids))
    for place, loaded in load_ahead(encoded, crop, CROPS, False, DECODED_AHEAD):
        if isinstance(loaded, str):  # it was read at every epoch
            raise RuntimeError(f"image {ids[int(place)]} cannot be read: {loaded}")
        image_HWC, position_K2 = loaded
        crop_KHWC = np.stack([image_HWC[y : y + crop, x : x + crop] for x, y in position_K2])
        crop_KCHW = torch.from_numpy(crop_KHWC).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            parts = [companion.statistics(to_float(part)) for part in crop_KCHW.split(size)]
            yield torch.cat(parts).mean(0)


def _series_statistics(
    companion: KernelCompanion, spec: RunSpec, series: int, crop: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Pooled maps of a clean photograph's crop at every level of an operator, (L, F), series by series.

    The photographs, those that stage 1 learns from, take turns.
    """
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    seed = spec.config["seed"]
    reader = source.open()
    places = clean_parts(source, stage1, seed).train
    turn = Permutation(len(places), seed, Purpose.SERIES, 0, 2)
    drawn = reader.ids_at(places.take(turn(np.arange(series) % len(places))))
    for index, image_id in enumerate(drawn):
        found = one_series(
            resize_short_side(decode(reader.read(image_id)["bytes"]), crop),
            run_seed=seed,
            index=index,
            crop=crop,
            region=max(stage1.degrade.region, crop),
        )
        crop_LCHW = torch.from_numpy(found.crops_LHWC).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            yield companion.statistics(to_float(crop_LCHW))


def _score(batches: Stage2Batches, image_id: int) -> float:
    """The normalised score that the image was trained with."""
    label = (
        batches.scored.open().row(image_id)["score"]
        if batches.scores is None
        else batches.scores[image_id]
    )
    return unit_score(label, batches.score_lo, batches.score_hi, batches.higher_is_better)
