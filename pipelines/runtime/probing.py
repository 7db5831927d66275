"""The probes of a run: linear classifiers on frozen halves every k epochs of stage 1, as numbers and
as a picture that the driver takes to MLflow; and the one that a finished stage 2 leaves in its bundle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from dri_iqa import storage
from dri_iqa.config import Stage1Config, from_dict
from dri_iqa.data.batches import Source
from dri_iqa.evaluation.probe import (
    Views,
    fit_degradation_probe,
    half_features,
    make_views,
    probe_errors,
)
from dri_iqa.images import decode, resize_short_side
from dri_iqa.probe import DegradationProbe
from dri_iqa.stages import PretrainStage, TrainStage
from dri_iqa.stages.base import Stage
from pipelines.runtime.feeds import Parts, clean_parts
from pipelines.runtime.fit import RunSpec
from pipelines.runtime.tracking import PICTURES


@dataclass(kw_only=True)
class Probe:
    """Probes a stage after an epoch, where one is due; what `Training.validate` wants."""

    source: Source
    parts: Parts
    stage1: Stage1Config
    crop: int
    seed: int
    target: str
    """URI of the run's results."""

    def __call__(self, stage: Stage, epoch: int) -> dict[str, float]:
        """`probe_<type|level|content>_<up|low>`: error rates on held-out views."""
        every, last = self.stage1.probe.epochs, self.stage1.optim.epochs
        if not every or (epoch % every and epoch != last) or len(self.parts.test) < 2:
            return {}
        assert isinstance(stage, PretrainStage)
        fit, test = self._views
        device = next(stage.parameters()).device
        known = half_features(stage.query.encoder, fit.crops_NCHW, device=device)
        asked = half_features(stage.query.encoder, test.crops_NCHW, device=device)
        row: dict[str, float] = {}
        with torch.enable_grad():  # validation runs without; the classifiers are fitted with it
            for half in known:
                errors = probe_errors(fit, known[half], test, asked[half])
                row |= {f"probe_{name}_{half}": error for name, error in errors.items()}
        self._draw(test, asked, epoch)
        return row

    @cached_property
    def _views(self) -> tuple[Views, Views]:
        return self._make(self.parts.fit), self._make(self.parts.test)

    def _make(self, ids: Sequence[int]) -> Views:
        return clean_views(self.source, ids, self.stage1, crop=self.crop, seed=self.seed)

    def _draw(self, views: Views, features: dict[str, torch.Tensor], epoch: int) -> None:
        from dri_iqa.evaluation.halves import halves_figure

        with tempfile.TemporaryDirectory() as folder:
            title = f"Both halves after epoch {epoch}, views of held-out photographs"
            path = halves_figure(views, features, Path(folder) / "halves.png", title)
            uri = storage.join(self.target, PICTURES, f"epoch_{epoch:04d}.png")
            storage.write_bytes(uri, path.read_bytes())


def clean_views(
    source: Source,
    ids: Sequence[int],
    stage1: Stage1Config,
    *,
    crop: int,
    seed: int,
    clean: bool = False,
) -> Views:
    """These clean images under every single operator of stage 1's set, see `make_views`."""
    reader = source.open()
    images = (
        (image_id, resize_short_side(decode(reader.read(image_id)["bytes"]), crop))
        for image_id in ids
    )
    return make_views(images, seed=seed, crop=crop, config=stage1.degrade, clean=clean)


def degradation_probe(stage: TrainStage, spec: RunSpec) -> DegradationProbe | None:
    """The probe that the bundle of a finished stage 2 keeps of its extractor, fitted on clean photographs; None
    without an extractor (the MANIQA baseline), with `stage2.probe_images=0`, and with too few photographs.
    """
    encoder, images = stage.model.dre, stage.config.probe_images
    if encoder is None or not images:
        return None
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    seed, crop = spec.config["seed"], spec.config["model"]["crop"]
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    probed = replace(stage1, probe=replace(stage1.probe, images=images))
    parts = clean_parts(source, probed, seed)
    if len(parts.fit) < 2 or not parts.test:
        return None
    fit, test = (
        clean_views(source, ids, stage1, crop=crop, seed=seed, clean=True)
        for ids in (parts.fit, parts.test)
    )
    device = next(encoder.parameters()).device
    unseen = stage1.held_out > 0
    return fit_degradation_probe(encoder, fit, test, unseen=unseen, device=device)


def image_names(source: Source) -> Callable[[Sequence[int]], list[str]]:
    """Looks up names of images by id, for messages."""

    def names(ids: Sequence[int]) -> list[str]:
        reader = source.open()
        return [str(reader.row(image_id)["name"]) for image_id in ids]

    return names
