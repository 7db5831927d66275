"""A training stage as a step of a job: progress on the console, a nested run in MLflow, the result as plain data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dri_iqa import storage
from pipelines.runtime.cluster import Plan
from pipelines.runtime.fit import Result, RunSpec, fit
from pipelines.runtime.job import Job
from pipelines.runtime.streams import STEPS_PER_TASK
from pipelines.runtime.tracking import PICTURES


def run_stage(job: Job, spec: RunSpec, name: str) -> Result:
    """Train one stage at full budget.

    Args:
        job: connected.
        spec: what to train.
        name: `stage1` or `stage2`; the nested run's name and the metrics' key.
    """
    key = f"{job.name}/{name}"
    job.tracker.run(key, name, parent=job.name, params=spec.config)
    if advice := store_advice(spec, job.plan):
        job.console.say(f"    {advice}")
    with job.console.progress(name) as meter:

        def handle(record: dict[str, Any]) -> None:
            if record["run"] != key:
                return
            if "say" in record:
                job.console.say(f"    {record['say']}")
                return
            if "parts" in record:
                columns = ["part", "state", "parameters", "MAC per crop"]
                job.console.table("What trains", columns, record["parts"])
                job.tracker.json(key, [columns, *record["parts"]], "parts.json")
                return
            if "figures" in record:
                job.tracker.metrics(
                    key, {f"step/{k}": v for k, v in record["figures"].items()}, record["step"]
                )
                return
            note = record.get("note", "")
            if metrics := record.get("metrics"):
                job.tracker.epoch(key, record["epoch"], metrics)
                note = f"epoch {record['epoch']}: " + _brief(metrics)
            meter.update(record["done"], record["total"], note)

        with job.journal.watch(handle):
            result = fit(
                spec,
                job.plan,
                job.output,
                journal=job.journal.name,
                key=key,
                untrained=spec.stage == "train",
            )
    for row in result["history"]:  # what a killed run could not deliver, or another job has trained
        job.tracker.epoch(key, int(row["epoch"]), row)
    job.tracker.tags(key, {"weights": result["uri"], "sha256": result["sha256"]})
    job.tracker.json(key, result["history"], "history.json")
    with tempfile.TemporaryDirectory() as folder:
        for path in fetch_pictures(result, Path(folder)):
            job.tracker.file(key, str(path), PICTURES)
    job.tracker.end(key)
    return result


def store_advice(spec: RunSpec, plan: Plan) -> str | None:
    """What to say where Ray's object store is too small for batches to be made ahead: half the speed was measured."""
    # Pixels of a row: four views, or those with an image and its reference.
    images = {"pretrain": 4, "train": 6}[spec.stage]
    batch = spec.config["stage1" if spec.stage == "pretrain" else "stage2"]["optim"]["batch_size"]
    task = STEPS_PER_TASK * batch * images * 3 * spec.config["model"]["crop"] ** 2
    if not plan.object_store_bytes or plan.object_store_bytes >= 2 * task:
        return None
    return (
        f"a task of batches takes {task / 1e6:.0f} MB, Ray's object store has "
        f"{plan.object_store_bytes / 1e6:.0f} MB: cluster.object_store_mb={8 * task / 1e6:.0f} holds eight of them"
    )


def fetch_pictures(result: Result, folder: Path) -> list[Path]:
    """Local copies of what a run's workers drew, sorted by name."""
    place = storage.join(result["uri"].rpartition("/")[0], PICTURES)
    copies = []
    for uri in storage.list_files(place, suffix=".png"):
        copies.append(folder / uri.rpartition("/")[2])
        copies[-1].write_bytes(storage.read_bytes(uri))
    return copies


def _brief(metrics: dict[str, float]) -> str:
    shown = [
        name
        for name in ("loss", "val_srocc", "val_psnr_input", "val_psnr_restored", "data_wait_share")
        if name in metrics
    ]
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in shown)
