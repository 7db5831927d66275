"""Ingest: a data set as distributed becomes Parquet shards, a manifest and a split; so do its clean companions."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dri_iqa import storage
from dri_iqa.config import to_dict
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.manifest import Manifest, ShardReader
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataError
from dri_iqa.data.rules import check_rules
from dri_iqa.data.shards import FORMAT, ShardResult, plan_shards, write_shard
from dri_iqa.data.splits import Split, make_splits, official_split, save_splits
from dri_iqa.data.summary import CONTACT_SHEET, contact_sheet, summary
from pipelines.runtime.config import DataConfig, digest
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.tasks import run_tasks


def ingest(job: Job) -> Result:
    """Both data sets of a job; returns `inputs` (see `Inputs`) and `counts`."""
    data = job.config.data
    scored = _ingest(job, data.name, data.root, data.limit, data.options, clean=False)
    clean_options = {"exclude": data.clean.exclude} if data.clean.exclude else {}
    if data.clean.name == data.name == "sample":
        # Its clean photographs are those that its scored part trains on, however that is split.
        clean_options |= data.options
    clean = _ingest(
        job, data.clean.name, data.clean.root, data.clean.limit, clean_options, clean=True
    )
    check_rules(scored, **to_dict(data.rules))
    split = make_split(job, scored)
    uri = store_split(scored, split)
    inputs = Inputs(
        scored_uri=scored.directory,
        scored_digest=scored.digest,
        split_uri=uri,
        split_digest=split.digest,
        clean_uri=clean.directory,
        clean_digest=clean.digest,
        shuffle_scores=data.shuffle_scores,
    )
    parts = {part: len(getattr(split, part)) for part in ("train", "val", "test")}
    counts = {"scored": scored.counts | parts, "clean": clean.counts}
    _show(job, [scored, clean], parts)
    job.tracker.json(job.name, asdict(inputs) | {"counts": counts}, "inputs.json")
    return {"inputs": asdict(inputs), "counts": counts, "score_kind": scored.score_kind}


def make_split(job: Job, scored: Manifest, index: int = 0) -> Split:
    """The data set's own split where it has one, else the seeded one of this number, by reference or scene.

    Raises:
        DataError: a further split is asked of a data set that brings its own.
    """
    table = scored.images().select(["image_id", "group", "split"]).to_pydict()
    ids, groups, parts = table["image_id"], table["group"], table["split"]
    data = job.config.data
    if data.split == "official" or (data.split == "auto" and {"train", "test"} <= set(parts)):
        if index:
            raise DataError(
                f"{scored.name} has a split of its own, {index + 1} were asked for\n"
                "set protocol.splits=1, or data.split=random"
            )
        return official_split(ids, groups, parts, seed=data.split_seed, val=data.val_fraction)
    return make_splits(
        ids,
        groups,
        seed=data.split_seed,
        index=index,
        train=1 - data.test_fraction,
        val=data.val_fraction,
    )


def store_split(scored: Manifest, split: Split) -> str:
    """Keep a split beside its data; returns its URI."""
    uri = storage.join(scored.directory, f"split-{split.digest[:12]}.json")
    save_splits(uri, [split])
    return uri


def ingest_scored(job: Job, data: DataConfig) -> Manifest:
    """A further scored data set, as it stands: nothing of it is split or trained on."""
    manifest = _ingest(job, data.name, data.root, data.limit, data.options, clean=False)
    check_rules(manifest, **to_dict(data.rules))
    return manifest


def _show(job: Job, manifests: list[Manifest], parts: dict[str, int]) -> None:
    """A table and a picture of what was ingested."""
    scored, clean = (summary(manifest) for manifest in manifests)
    scored["split"] = ", ".join(f"{count} {part}" for part, count in parts.items())
    job.console.table(
        "Ingested",
        ["", f"scored: {manifests[0].name}", f"clean: {manifests[1].name}"],
        [[name, scored.get(name, ""), clean.get(name, "")] for name in scored],
    )
    for role, manifest in zip(("scored", "clean"), manifests, strict=True):
        uri = storage.join(manifest.directory, CONTACT_SHEET)
        picture = contact_sheet(ShardReader(manifest))
        storage.write_bytes(uri, picture)
        job.console.say(f"    {role} images: {uri}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{role}_{CONTACT_SHEET}"
            file.write_bytes(picture)
            job.tracker.file(job.name, str(file))


def _ingest(
    job: Job,
    name: str,
    root: str | None,
    limit: int | None,
    options: dict[str, Any],
    *,
    clean: bool,
) -> Manifest:
    data = job.config.data
    if name == "sample":
        options = {**options, "part": "clean" if clean else "scored"}
    if root and not storage.is_remote(root):
        root = os.path.abspath(root)
    own = [data.sub_image, job.config.seed] if clean else []  # what clean shards depend on as well
    identity = digest([FORMAT, name, root, limit, options, data.rows_per_shard, clean, *own])
    directory = storage.join(job.output, "data", f"{name}-{identity}")
    if name == "sample" and storage.exists(storage.join(directory, "manifest.json")):
        # Its pixels are computed: nothing outside could have changed.
        return Manifest.load(directory)
    dataset = read_dataset(name, root, limit=limit, **options)
    if not clean and dataset.score_kind == "none":
        raise DataError(
            f"data={name} has no scores to train on\nuse it as data.clean.name, or give a scored set"
        )
    if clean:  # whatever scores its images have
        dataset = replace(dataset, score_kind="none")
    plans = plan_shards(
        dataset,
        data.rows_per_shard,
        cut=(data.sub_image or None) if clean else None,
        seed=job.config.seed,
    )
    with job.console.progress(f"{name} -> shards") as meter:
        calls = [(plan, directory) for plan in plans]
        results: list[ShardResult] = []
        for result in run_tasks(write_shard, calls, cpus=job.plan.cpus_per_data_task):
            results.append(result)
            meter.update(len(results), len(plans), f"{len(results)}/{len(plans)} shards")
    return publish(directory, dataset, results, max_bad=data.max_bad)


def steps(job: Job) -> None:
    """The job: ingest, and say where it lies."""
    job.console.steps = 1
    with job.connect():
        result = job.step("ingest", "ingest", lambda: ingest(job))
    rows = [[name, uri] for name, uri in result["inputs"].items()]
    job.console.table("Where it lies", ["what", "where"], rows)


if __name__ == "__main__":
    main("ingest", steps)
