"""Batch scoring: a folder or a bucket of images in, Parquet tables out; resumable, bad files are rows with a reason."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.config import ConfigError
from dri_iqa.data.records import DataError
from dri_iqa.images import EXTENSIONS
from pipelines.runtime.config import digest
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.tasks import run_tasks

FILES_PER_PART = 256
SCHEMA = pa.schema(
    [("image", pa.string()), ("score", pa.float64()), ("std", pa.float64()), ("error", pa.string())]
)


def score(job: Job) -> Result:
    """Score every image below `score.input`; a part that lies in `score.output` already is not scored again."""
    config = job.config.score
    if not config.input or not config.output:
        raise ConfigError(
            "score.input and score.output are not set\nadd score.input=FOLDER score.output=FOLDER"
        )
    model = config.model or _champion(job)
    if not storage.exists(config.input):
        raise DataError(
            f"{config.input} does not exist\nset score.input to a folder or bucket prefix of images"
        )
    files = [uri for uri in storage.list_files(config.input) if uri.lower().endswith(EXTENSIONS)]
    if not files:
        raise DataError(
            f"no images below {config.input}\nset score.input to a folder or bucket prefix of images"
        )
    storage.check_writable(config.output)
    parts = [
        files[start : start + FILES_PER_PART] for start in range(0, len(files), FILES_PER_PART)
    ]
    calls = [
        (
            model,
            part,
            storage.join(config.output, _part_name(model, part, job)),
            job.config.evaluate.crops,
        )
        for part in parts
    ]
    done: list[dict[str, int]] = []
    with job.console.progress(f"{len(files)} images") as meter:
        for result in run_tasks(_score_part, calls, cpus=min(1.0, job.plan.total_cpus)):
            done.append(result)
            meter.update(sum(item["rows"] for item in done), len(files))
    rows, failed = (sum(item[name] for item in done) for name in ("rows", "failed"))
    return {"rows": rows, "failed": failed, "output": config.output, "model": model}


def _part_name(model: str, part: list[str], job: Job) -> str:
    return f"scores-{digest([model, part, job.config.evaluate.crops])}.parquet"


def _champion(job: Job) -> str:
    pointer = storage.join(job.output, "champion.json")
    if not storage.exists(pointer):
        raise ConfigError(
            f"no champion in {job.output}\nset score.model=BUNDLE, or run `make run` first"
        )
    return json.loads(storage.read_bytes(pointer))["bundle"]


def _score_part(model: str, files: list[str], uri: str, crops: int) -> dict[str, int]:
    import torch

    from dri_iqa import load_model

    if storage.exists(uri):
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
    else:
        torch.set_num_threads(1)
        frame = load_model(model).score(files, crops=crops)
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
    rows = [
        ["images", result["rows"]],
        ["failed", result["failed"]],
        ["tables", result["output"]],
        ["model", result["model"]],
    ]
    job.console.table("Scored", ["what", "value"], rows)


if __name__ == "__main__":
    main("score", steps)
