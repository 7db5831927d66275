"""What a variant of stage 2 is made of, as plain data: terms, parts and streams of images.

The paper's Table 3 builds the method up: V1 one representation, V2 both, V3 with restoration,
Proposed with the representation loss. Nothing is built here, so that pipelines can plan their data
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dri_iqa.config import CompanionConfig, ConfigError, ModelConfig, Stage2Config


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Which images a step of stage 2 reads, besides labelled crops and their scores."""

    reference: bool
    """The reference's crop at the same place (`reference_BCHW`)."""
    views: bool
    """Four crops of a labelled image and its sibling (`views_B4CHW` and their metadata)."""
    aux: bool
    """Degraded crops of unlabelled images with their clean counterparts (`aux_*`)."""
    aux_images: Literal["clean", "labelled"] = "clean"
    """Where those come from: the pristine set of stage 1, or (`ref_source = self`) the labelled
    images themselves.
    """
    order: bool = False
    """Crops of clean images at two neighbouring levels of one degradation (`order_crops_P2CHW`)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The active parts of one variant with one kind of data."""

    extractor: bool
    """Whether there is an extractor at all (not in the MANIQA baseline)."""
    halves: tuple[str, ...]
    """Halves with a contrastive loss: ("up", "low"), ("low",) or none."""
    nce: Literal["iqa", "iqa_pair", "aux", "none"]
    """Whose crops carry the contrastive losses."""
    reference: Literal["dataset", "aux", "self", "none"]
    """Where restoration targets come from; `none` without restoration."""
    pixel: bool
    """Whether the pixel and perceptual terms of Eq. 3 are active."""
    perceptual: bool
    """Whether the perceptual term is."""
    representation: bool
    """Whether the representation loss of Eq. 6 is."""
    order: bool = False
    """Whether scores are asked to fall along levels of a degradation (not in the paper)."""

    @property
    def restoration(self) -> bool:
        """Whether the restoration network exists."""
        return self.pixel or self.representation

    @property
    def streams(self) -> Streams:
        """The images that a step reads."""
        return Streams(
            reference=self.reference == "dataset",
            views=self.nce in ("iqa", "iqa_pair"),
            aux=self.nce == "aux" or self.reference in ("aux", "self"),
            aux_images="labelled" if self.reference == "self" else "clean",
            order=self.order,
        )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the active loss terms, as they appear among the metrics (`loss_` + name)."""
        contrast = {"up": "deg", "low": "qual"}
        return (
            "mos",
            *(("order",) if self.order else ()),
            *(("pixel",) if self.pixel else ()),
            *(("perceptual",) if self.perceptual else ()),
            *(("representation",) if self.representation else ()),
            *(contrast[half] for half in self.halves),
        )


def stage2_plan(stage2: Stage2Config, has_references: bool) -> Plan:
    """What this configuration trains on this kind of data set.

    Args:
        stage2: variant, weights and sources.
        has_references: whether the data set has a pristine reference for every image.

    Raises:
        ConfigError: a source that the data set cannot give, or a weight that leaves the predictor
            untrained.
    """
    variant = stage2.variant
    if stage2.w_mos <= 0:
        raise ConfigError(
            f"w_mos={stage2.w_mos} must be positive: nothing else trains the predictor"
        )
    order = stage2.order_batch > 0 and stage2.w_order > 0
    if variant == "maniqa":
        return Plan(
            order=order,
            extractor=False,
            halves=(),
            nce="none",
            reference="none",
            pixel=False,
            perceptual=False,
            representation=False,
        )
    reference = stage2.ref_source if variant in ("v3", "proposed") else "none"
    if reference == "auto":
        reference = "dataset" if has_references else "aux"
    if reference == "dataset" and not has_references:
        raise ConfigError(
            "ref_source=dataset, but the data set has no references: use auto, aux, self or none"
        )
    pixel = reference != "none" and stage2.w_res > 0
    representation = reference != "none" and variant == "proposed" and stage2.w_rs > 0
    nce = stage2.nce_source
    if nce == "auto":
        nce = "iqa" if has_references else "aux"
    if nce == "iqa" and not has_references:
        raise ConfigError(
            "nce_source=iqa needs siblings of the same reference, and the data set has none: "
            "use auto, aux or iqa_pair"
        )
    contrast = stage2.w_nce > 0
    return Plan(
        order=order,
        extractor=True,
        halves=() if not contrast else ("low",) if variant == "v1" else ("up", "low"),
        nce=nce if contrast else "none",
        reference=reference if pixel or representation else "none",
        pixel=pixel,
        perceptual=pixel and stage2.lambda_perceptual > 0 and stage2.perceptual.backbone != "none",
        representation=representation,
    )


def stage2_streams(stage2: Stage2Config, has_references: bool) -> Streams:
    """The images that a step of stage 2 reads, without building anything; raises as `stage2_plan`."""
    return stage2_plan(stage2, has_references).streams


def model_of_variant(model: ModelConfig, stage2: Stage2Config) -> ModelConfig:
    """The sizes of what trains, with the predictor that the variant has: `maniqa` is the baseline without an extractor.

    A companion is left out: it is fitted when the training has ended.

    Raises:
        ConfigError: the baseline's predictor in another variant.
    """
    model = replace(model, companion=CompanionConfig())
    if stage2.variant == "maniqa":
        return replace(model, predictor=replace(model.predictor, baseline="maniqa"))
    if model.predictor.baseline == "maniqa":
        raise ConfigError(
            f"predictor.baseline=maniqa trains with variant=maniqa, got variant={stage2.variant}"
        )
    return model
