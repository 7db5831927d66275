"""From a run's description to what the loop needs: the stage, its batches, its validation, its export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dri_iqa import storage
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.config import (
    ConfigError,
    ModelConfig,
    OptimConfig,
    Stage1Config,
    Stage2Config,
    from_dict,
    to_dict,
)
from dri_iqa.data.batches import Source, Stage1Batches, Stage2Batches
from dri_iqa.data.samples import Streams, score_range, shuffled_scores
from dri_iqa.data.schedule import Schedule, choose
from dri_iqa.data.splits import Split
from dri_iqa.extractor import ExtractorConfig, load_extractor, save_extractor
from dri_iqa.models.table import model_table
from dri_iqa.seeds import Purpose
from dri_iqa.stages import PretrainStage, TrainStage, stage2_streams
from dri_iqa.stages.base import Stage
from pipelines.runtime.fit import Inputs, Result, RunSpec
from pipelines.runtime.loop import Training
from pipelines.runtime.probing import Probe, clean_parts, degradation_probe, image_names
from pipelines.runtime.streams import stream
from pipelines.runtime.validation import selection, validation

Describe = dict[str, Any]
Setup = Callable[[RunSpec, dict[str, Any], int, int], tuple[Training, Describe]]


def setup_pretrain(
    spec: RunSpec, settings: dict[str, Any], rank: int, world: int
) -> tuple[Training, Describe]:
    """Stage 1: clean images, four crops each, the contrastive stage."""
    seed = spec.config["seed"]
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    parts = clean_parts(source, stage1, seed)
    batches = pretrain_batches(spec, rank, world)
    check_batch(stage1.optim, batches.schedule.batch_size, world, "stage1")
    stage = PretrainStage(model, stage1, seed=seed, global_batch=batches.schedule.batch_size)
    training = Training(
        stage=stage,
        stream=partial(stream, batches, settings=settings),
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
    spec: RunSpec, settings: dict[str, Any], rank: int, world: int
) -> tuple[Training, Describe]:
    """Stage 2: scored images (and clean ones where the variant reads them), the joint stage."""
    seed, inputs = spec.config["seed"], spec.inputs
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    stage2 = from_dict(Stage2Config, spec.config["stage2"], "stage2")
    scored = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = scored.open().manifest
    split = _load_split(inputs)
    table = manifest.table()
    low, high = score_range(table, split.train)
    has_references = manifest.counts["references"] > 0
    wanted = stage2_streams(stage2, has_references)
    train_ids = choose(split.train, stage2.max_images, seed)
    steps = _steps_per_epoch(len(train_ids), stage2.optim.batch_size)
    auxiliary = None
    if wanted.aux:
        auxiliary = _auxiliary(
            spec, model, stage1, stage2, steps * stage2.optim.epochs, rank, world
        )
    batches = Stage2Batches(
        scored=scored,
        schedule=Schedule(
            ids=train_ids,
            batch_size=stage2.optim.batch_size,
            epochs=stage2.optim.epochs,
            run_seed=seed,
            remainder="wrap",  # every rank brings the same number of keys to the queues at every step
        ),
        streams=Streams(reference=wanted.reference, views=wanted.views),
        crop=model.crop,
        run_seed=seed,
        score_lo=low,
        score_hi=high,
        higher_is_better=manifest.higher_is_better,
        train_ids=train_ids,
        scores=_control_scores(inputs, table, split, seed),
        auxiliary=auxiliary,
        rank=rank,
        world=world,
        quarter_turns=stage2.augment == "dihedral",
    )
    check_batch(stage2.optim, batches.schedule.batch_size, world, "stage2")
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
        stream=partial(stream, batches, settings=settings),
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
        lo=low,
        hi=high,
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
    stage: Stage, spec: RunSpec, target: str, describe: Describe, *, probe: bool = True
) -> Result:
    """Write what a finished run leaves: stage 1 its whole state, stage 2 a bundle that scores pictures and, with
    `probe`, explains what its extractor sees.

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
        digest = save_bundle(
            stage.inference_model(),
            uri,
            model_config=stage.model_config,  # a variant's, where that differs from the configured one
            score=from_dict(ScoreScale, describe["scale"]),
            meta=meta,
            probe=degradation_probe(stage, spec) if probe else None,
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


def check_batch(optim: OptimConfig, batch: int, world: int, stage: str) -> None:
    """Whether a step's images can be dealt evenly to workers and micro-batches.

    Raises:
        ConfigError: naming the numbers that clash. Ranks with unequal rows would weigh images
            unequally, and could not exchange their keys.
    """
    parts = world * optim.accumulate
    if batch % parts:
        raise ConfigError(
            f"a batch of {batch} images ({stage}.optim.batch_size={optim.batch_size}) cannot be dealt "
            f"evenly to {world} worker(s) x {optim.accumulate} micro-batch(es)\n"
            f"use a batch that is a multiple of {parts}, or fewer workers"
        )


def _identity(spec: RunSpec) -> dict[str, Any]:
    """What a checkpoint must agree on to be resumed: settings and data, not places or workers."""
    inputs = spec.inputs
    data: dict[str, Any] = {"clean_manifest": inputs.clean_digest}
    if spec.stage == "train":
        data |= {"scored_manifest": inputs.scored_digest, "split": inputs.split_digest}
        data["extractor"] = spec.pretrained["sha256"] if spec.pretrained else None
    return {**spec.config, "data": data}


def pretrain_batches(spec: RunSpec, rank: int, world: int) -> Stage1Batches:
    """Stage 1's batches as a function of the step, for one rank."""
    seed = spec.config["seed"]
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    ids = clean_parts(source, stage1, seed).train
    schedule = Schedule(
        ids=ids,
        batch_size=min(stage1.optim.batch_size, len(ids)),
        epochs=stage1.optim.epochs,
        run_seed=seed,
        remainder="drop",  # the queues want the same number of keys at every step
    )
    return Stage1Batches(
        clean=source,
        schedule=schedule,
        degrade=stage1.degrade,
        crop=spec.config["model"]["crop"],
        run_seed=seed,
        rank=rank,
        world=world,
        share_recipes=stage1.moco.deg_positive == "cross_content",
    )


def _auxiliary(
    spec: RunSpec,
    model: ModelConfig,
    stage1: Stage1Config,
    stage2: Stage2Config,
    total_steps: int,
    rank: int,
    world: int,
) -> Stage1Batches:
    """The clean stream of stage 2: as many steps as stage 2 has, in epochs of its own."""
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    seed = spec.config["seed"]
    ids = clean_parts(source, stage1, seed).train
    batch = min(stage2.aux_batch, len(ids))
    per_epoch = len(ids) // batch
    schedule = Schedule(
        ids=ids,
        batch_size=batch,
        epochs=-(-total_steps // per_epoch),
        run_seed=seed,
        purpose=Purpose.AUXILIARY,
        remainder="drop",
    )
    return Stage1Batches(
        clean=source,
        schedule=schedule,
        degrade=stage1.degrade,
        crop=model.crop,
        run_seed=seed,
        rank=rank,
        world=world,
        with_clean=True,
        share_recipes=stage1.moco.deg_positive == "cross_content",
    )


def _steps_per_epoch(images: int, batch: int) -> int:
    return -(-images // batch)


def _load_split(inputs: Inputs) -> Split:
    from dri_iqa.data.records import DataError
    from dri_iqa.data.splits import load_splits

    split = load_splits(inputs.split_uri)[0]
    if split.digest != inputs.split_digest:
        raise DataError(
            f"{inputs.split_uri} holds the split {split.digest[:12]}, expected {inputs.split_digest[:12]}\n"
            "The data were split again since; start a new run."
        )
    return split


def _control_scores(inputs: Inputs, table: Any, split: Split, seed: int) -> dict[int, float] | None:
    if not inputs.shuffle_scores:
        return None
    # Validation scores choose among trials, so the control must not see the true ones there either.
    return shuffled_scores(table, split.train, seed) | shuffled_scores(table, split.val, seed + 1)


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
