"""From a run's description to what the loop needs: the stage, its batches, its validation, its export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dri_iqa import storage
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.config import (
    ModelConfig,
    Stage1Config,
    Stage2Config,
    from_dict,
    to_dict,
)
from dri_iqa.data.batches import Source, Stage1Batches, Stage2Batches
from dri_iqa.extractor import ExtractorConfig, load_extractor, save_extractor
from dri_iqa.models.companion import check_companion
from dri_iqa.models.table import model_table
from dri_iqa.stages import PretrainStage, TrainStage
from dri_iqa.stages.base import Stage
from pipelines.runtime.companion import with_companion
from pipelines.runtime.feeds import Batches, Feed, clean_parts, load_split
from pipelines.runtime.fit import Result, RunSpec
from pipelines.runtime.loop import Training
from pipelines.runtime.probing import Probe, degradation_probe, image_names
from pipelines.runtime.validation import selection, validation

Describe = dict[str, Any]
Setup = Callable[[RunSpec, dict[str, Any], Batches, Feed], tuple[Training, Describe]]


def setup_pretrain(
    spec: RunSpec, settings: dict[str, Any], batches: Batches, feed: Feed
) -> tuple[Training, Describe]:
    """Stage 1: clean images, four crops each, the contrastive stage."""
    seed = spec.config["seed"]
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    parts = clean_parts(source, stage1, seed)
    assert isinstance(batches, Stage1Batches)
    stage = PretrainStage(model, stage1, seed=seed, global_batch=batches.schedule.batch_size)
    training = Training(
        stage=stage,
        stream=feed,
        steps_per_epoch=batches.schedule.steps_per_epoch,
        optim=stage1.optim,
        seed=seed,
        identity=_identity(spec),
        validate=Probe(
            source=source,
            parts=parts,
            stage1=stage1,
            crop=model.crop,
            seed=seed,
            target=settings["target"],
        ),
        image_names=image_names(source),
    )
    return training, {}


def setup_train(
    spec: RunSpec, settings: dict[str, Any], batches: Batches, feed: Feed
) -> tuple[Training, Describe]:
    """Stage 2: scored images (and clean ones where the variant reads them), the joint stage."""
    seed, inputs = spec.config["seed"], spec.inputs
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    stage2 = from_dict(Stage2Config, spec.config["stage2"], "stage2")
    scored = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    assert isinstance(batches, Stage2Batches)
    manifest = scored.open().manifest
    split = load_split(inputs)
    has_references = manifest.counts["references"] > 0
    check_companion(model)
    stage = TrainStage(
        model,
        stage1,
        stage2,
        seed=seed,
        has_references=has_references,
        global_batch=batches.schedule.batch_size,
        pretrained=_pretrained(spec),
    )
    training = Training(
        stage=stage,
        stream=feed,
        steps_per_epoch=batches.schedule.steps_per_epoch,
        optim=stage2.optim,
        seed=seed,
        identity=_identity(spec),
        validate=validation(batches, split, model, stage2) if split.val else None,
        best=selection(stage, stage2, split),
        # where an image id is its reference's, the reference is named
        image_names=image_names(scored),
    )
    scale = ScoreScale(
        lo=batches.score_lo,
        hi=batches.score_hi,
        higher_is_better=manifest.higher_is_better,
        name=f"{'pseudo score' if manifest.score_kind == 'pseudo' else 'MOS'} ({manifest.name})",
        kind="pseudo" if manifest.score_kind == "pseudo" else "human",
    )
    return training, {
        "scale": to_dict(scale),
        "data": manifest.name,
        "notes": manifest.notes,
        "has_references": has_references,
    }


SETUPS: dict[str, Setup] = {"pretrain": setup_pretrain, "train": setup_train}


def export(
    stage: Stage,
    spec: RunSpec,
    target: str,
    describe: Describe,
    *,
    finished: bool = True,
    say: Callable[[str], object] = lambda words: None,
) -> Result:
    """Write what a run leaves: stage 1 its whole state, stage 2 a bundle that scores pictures.

    Args:
        target: URI of the run's results.
        finished: False keeps stage 2's model as it is; True gives it its companion, where one is asked for, and a probe
            that explains what its extractor sees.
        say: hears what takes long.

    Returns:
        `uri` and `sha256` of what was written.
    """
    if isinstance(stage, TrainStage):
        meta = {
            "data": describe["data"],
            "notes": describe["notes"],
            "scored_manifest": spec.inputs.scored_digest,
            "clean_manifest": spec.inputs.clean_digest,
            "split": spec.inputs.split_digest,
            "run": spec.name,
            "config": spec.config,
        }
        uri = storage.join(target, "bundle")
        model = with_companion(stage, spec, say) if finished else stage.inference_model()
        digest = save_bundle(
            model,
            uri,
            model_config=model.config,  # a variant's, where that differs from the configured one
            score=from_dict(ScoreScale, describe["scale"]),
            meta=meta,
            probe=degradation_probe(stage, spec) if finished else None,
        )
        return {"uri": uri, "sha256": digest}
    uri = storage.join(target, "extractor")
    model = from_dict(ModelConfig, spec.config["model"])
    digest = save_extractor(
        stage.state_dict(),
        uri,
        config=ExtractorConfig(crop=model.crop, dre=model.dre),
        meta={
            "clean_manifest": spec.inputs.clean_digest,
            "run": spec.name,
            "config": spec.config,
        },
    )
    return {"uri": uri, "sha256": digest}


def parts_table(spec: RunSpec, describe: Describe) -> list[list[str]]:
    """What trains, is frozen or absent in stage 2, with parameters and multiply-accumulates of a crop."""
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage2 = from_dict(Stage2Config, spec.config["stage2"], "stage2")
    rows = model_table(model, stage2, describe["has_references"])
    return [[row.part, row.state, f"{row.parameters:,}", f"{row.macs:,}"] for row in rows]


def _identity(spec: RunSpec) -> dict[str, Any]:
    """What a checkpoint must agree on to be resumed: settings and data, not places or workers."""
    inputs = spec.inputs
    data: dict[str, Any] = {"clean_manifest": inputs.clean_digest}
    if spec.stage == "train":
        data |= {"scored_manifest": inputs.scored_digest, "split": inputs.split_digest}
        data["extractor"] = spec.pretrained["sha256"] if spec.pretrained else None
    return {**spec.config, "data": data}


def _pretrained(spec: RunSpec) -> dict[str, torch.Tensor] | None:
    if spec.pretrained is None:
        return None
    extractor = load_extractor(spec.pretrained["uri"])
    if extractor.digest != spec.pretrained["sha256"]:
        raise storage.StorageError(
            f"{spec.pretrained['uri']} has the digest {extractor.digest[:12]}, expected "
            f"{spec.pretrained['sha256'][:12]}\nRemove its folder and train stage 1 again."
        )
    return extractor.state
