"""What a protocol will cost: pilots of each kind of training, measured here, times what is still to be done."""

from __future__ import annotations

import time

from dri_iqa import storage
from dri_iqa.config import MOST_HELD_OUT
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.splits import load_splits
from pipelines.protocol import Cell, Grid, policies
from pipelines.runtime.console import duration
from pipelines.runtime.estimate import companion_images, measure
from pipelines.runtime.fit import RunSpec, finished
from pipelines.runtime.job import Job, Result
from pipelines.testing import score_ids

FEW, MORE = 8, 32
"""Images that scoring is timed on: the first time with the start of processes, the second without."""


def estimate(job: Job, grid: Grid) -> Result:
    """Measure one pilot of every kind of training, and scoring; returns rows and totals, in seconds."""
    rows, scored = [], ""
    cells = grid.cells()
    try:
        for kind, members in _kinds(grid, cells).items():
            todo = [spec for spec in members if finished(spec, job.output) is None]
            if not todo:
                continue
            job.console.say(f"    pilot: {kind}")
            cost, result = measure(job, todo[0])
            scored = result["uri"] if todo[0].stage == "train" else scored
            each = [cost.seconds(**_work(grid, spec)) for spec in todo]
            rows.append({"what": kind, "runs": len(todo), "seconds": sum(each)})
        if scored:
            rows.append(_scoring(job, grid, cells, scored))
    finally:
        storage.delete(storage.join(job.output, "pilots"))
    at_once = job.plan.concurrent_trials
    trainings = sum(row["seconds"] for row in rows if row["what"] != "tests")
    tests = sum(row["seconds"] for row in rows if row["what"] == "tests")
    gpus = job.plan.workers * job.plan.gpus_per_worker
    return {
        "rows": rows,
        "at_once": at_once,
        "seconds": trainings / at_once + tests,
        "gpu_hours": trainings * gpus / 3600,
    }


def show_cost(job: Job, cost: Result) -> None:
    """The estimate as a table."""
    rows = [
        [row["what"], row["runs"], duration(row["seconds"] / row["runs"]), duration(row["seconds"])]
        for row in cost["rows"]
    ]
    total = f"{duration(cost['seconds'])}, {cost['gpu_hours']:.1f} accelerator hours"
    rows.append(["all", "", f"{cost['at_once']} at a time", total])
    job.console.table(
        "Estimated cost of what is not done yet", ["what", "runs", "each", "in all"], rows
    )


def _kinds(grid: Grid, cells: list[Cell]) -> dict[str, list[RunSpec]]:
    """The distinct trainings by what makes their cost differ."""
    kinds: dict[str, dict[str, RunSpec]] = {}
    for cell in cells:
        first = grid.stage1(cell)
        pretrained = None
        if first:
            halves = first.config["stage1"]["halves"]
            kinds.setdefault(f"stage 1, {halves}", {})[first.name] = first
            pretrained = finished(first, grid.config.output)
        second = grid.stage2(cell, pretrained)
        kinds.setdefault(f"stage 2, {cell.variant} on {cell.trained_on}", {})[second.name] = second
    ordered = sorted(kinds)  # stage 1 before stage 2
    return {kind: list(kinds[kind].values()) for kind in ordered}


def _work(grid: Grid, spec: RunSpec) -> dict[str, int]:
    """Epochs, steps of an epoch, validations of a training, and images of its companion."""
    if spec.stage == "pretrain":
        stage, counts = spec.config["stage1"], Manifest.load(spec.inputs.clean_uri).counts
        held = min(stage["held_out"], MOST_HELD_OUT / counts["groups"])
        images = round(counts["images"] * (1 - held))
        images = min(images, stage["n_clean"] or images)
        epochs, batch = stage["optim"]["epochs"], min(stage["optim"]["batch_size"], images)
        every = stage["probe"]["epochs"]
        probes = -(-epochs // every) if every else 0
        return {"epochs": epochs, "steps": images // batch, "validations": probes}
    stage, split = spec.config["stage2"], load_splits(spec.inputs.split_uri)[0]
    images = min(len(split.train), stage["max_images"] or len(split.train))
    epochs, batch = stage["optim"]["epochs"], stage["optim"]["batch_size"]
    return {
        "epochs": epochs,
        "steps": -(-images // batch),
        "validations": epochs if split.val else 0,
        "companion": companion_images(spec),
    }


def _scoring(job: Job, grid: Grid, cells: list[Cell], bundle: str) -> Result:
    """Seconds of all tests, from scoring a few images of the first split's test part."""
    inputs, tests, images = grid.sets[grid.main], 0, 0
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    crops = next(iter(policies(grid.config).values()))
    times = []
    for count in (FEW, MORE):
        ids = load_splits(grid.splits[grid.main][0][0])[0].test[:count]
        begun = time.monotonic()
        score_ids(job, bundle, source, ids, crops=crops)
        times.append((time.monotonic() - begun, len(ids)))
    each = times[1][0] / times[1][1]
    start = max(0.0, times[0][0] - times[0][1] * each)
    sizes = {
        name: Manifest.load(found.scored_uri).counts["images"] for name, found in grid.sets.items()
    }
    for cell in cells:
        split = load_splits(grid.splits[cell.trained_on][cell.split][0])[0]
        others = [sizes[name] for name in grid.sets if name != cell.trained_on]
        found = [len(split.test), *(others if cell.split == 0 else [])]
        tests += len(found) * len(policies(grid.config))
        images += sum(found) * len(policies(grid.config))
    return {"what": "tests", "runs": tests, "seconds": tests * start + images * each}
