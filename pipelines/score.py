"""Batch scoring: a folder or a bucket of images in, Parquet tables out; resumable, bad files are rows with a reason.

What a model has scored once is never scored again: not after a kill, and not when images were added since.
"""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.config import ConfigError
from dri_iqa.data.records import DataError
from dri_iqa.images import EXTENSIONS
from pipelines.runtime.config import digest
from pipelines.runtime.console import duration
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.tasks import run_tasks

SCHEMA = pa.schema(
    [("image", pa.string()), ("score", pa.float64()), ("std", pa.float64()), ("error", pa.string())]
)


def score(job: Job) -> Result:
    """Score every image below `score.input` that no table in `score.output` holds yet."""
    config = job.config.score
    if not config.input or not config.output:
        raise ConfigError(
            "score.input and score.output are not set\nadd score.input=FOLDER score.output=FOLDER"
        )
    files = _pictures(config.input)
    storage.check_writable(config.output)
    model, crops = _model(job), job.config.evaluate.crops
    # The model by its content: an alias, or a folder, may hold another one tomorrow.
    content = storage.sha256(storage.join(model, "config.json"))
    network = (config.precision, config.compile)
    prefix = storage.join(config.output, f"scores-{digest([content, crops, *network])}-")
    scored, failed = _scored(config.output, prefix)
    rows = len(scored)
    missing = [uri for uri in files if uri not in scored]
    size = config.images_per_table
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    calls = [(model, part, f"{prefix}{digest(part)}.parquet", crops, *network) for part in parts]
    started, new = time.monotonic(), 0
    with job.console.progress(f"{len(missing)} images") as meter:
        for table in run_tasks(_score_part, calls, cpus=min(1.0, job.plan.total_cpus)):
            new += table["rows"]
            failed += table["failed"]
            meter.update(new, len(missing))
    return {
        "rows": rows + new,
        "before": rows,
        "failed": failed,
        "seconds": time.monotonic() - started,
        "output": config.output,
        "model": model,
    }


def show_scored(job: Job, result: Result) -> None:
    """How many, how fast, and what a million would cost on this cluster."""
    new, seconds = result["rows"] - result["before"], result["seconds"]
    rows = [
        ["images", result["rows"]],
        ["failed", result["failed"]],
        ["scored before", result["before"]],
    ]
    if new:
        cores = job.plan.total_cpus
        rows += [
            ["time", duration(seconds)],
            ["images a second", f"{new / seconds:.1f} on {cores:g} cores"],
            ["core hours per million", f"{seconds / new * cores * 1e6 / 3600:.1f}"],
        ]
    rows += [["tables", result["output"]], ["model", result["model"]]]
    job.console.table("Scored", ["what", "value"], rows)


def _pictures(place: str) -> list[str]:
    if not storage.exists(place):
        raise DataError(
            f"{place} does not exist\nset score.input to a folder or bucket prefix of images"
        )
    files = [uri for uri in storage.list_files(place) if uri.lower().endswith(EXTENSIONS)]
    if not files:
        raise DataError(
            f"no images below {place}\nset score.input to a folder or bucket prefix of images"
        )
    return files


def _scored(output: str, prefix: str) -> tuple[set[str], int]:
    """Images in the tables of this model and these crops, and how many of them have an error."""
    images: set[str] = set()
    failed = 0
    for uri in storage.list_files(output, suffix=".parquet"):
        if uri.startswith(prefix):
            data = io.BytesIO(storage.read_bytes(uri))
            table = pq.read_table(data, columns=["image", "error"])
            images.update(table["image"].to_pylist())
            failed += table.num_rows - table["error"].null_count
    return images, failed


def _model(job: Job) -> str:
    """The bundle that `score.model` names, or the champion's, where every node can read it.

    Raises:
        ConfigError: there is no champion.
        DataError: no bundle at that place.
    """
    named = job.config.score.model
    if named and named.startswith("models:/"):
        from pipelines.runtime.registry import fetch_bundle

        local = fetch_bundle(named, job.tracker.uri)
        copy = storage.join(job.directory, "models", storage.sha256(f"{local}/config.json")[:12])
        storage.upload_directory(Path(local), copy)
        return copy
    model = named or _champion(job)
    if not storage.exists(storage.join(model, "config.json")):
        raise DataError(f"{model} holds no bundle\nset score.model to one, or to a models:/ URI")
    return model


def _champion(job: Job) -> str:
    pointer = storage.join(job.output, "champion.json")
    if not storage.exists(pointer):
        raise ConfigError(
            f"no champion in {job.output}\nset score.model=BUNDLE, or run `make run` first"
        )
    return json.loads(storage.read_bytes(pointer))["bundle"]


def _score_part(
    model: str, files: list[str], uri: str, crops: int | str, precision: str, compile: bool
) -> dict[str, int]:
    import torch

    from pipelines.runtime.models import loaded

    torch.set_num_threads(1)
    frame = loaded(model, precision, compile).score(files, crops=crops)
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return {"rows": table.num_rows, "failed": table.num_rows - table["error"].null_count}


def steps(job: Job) -> None:
    """The job: score, and say how many failed."""
    job.console.headline("score")
    with job.connect():
        result = score(job)
    show_scored(job, result)


if __name__ == "__main__":
    main("score", steps)
