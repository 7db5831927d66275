"""The mark to beat: a regression on a frozen backbone's pooled features, on the job's own data and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.config import BackboneConfig
from dri_iqa.data.batches import Source
from dri_iqa.data.splits import load_splits
from pipelines.ingest import ingest
from pipelines.runtime import config as configuration
from pipelines.runtime.config import JobConfig
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.tasks import run_tasks
from pipelines.testing import correlations, show

_CHUNK = 64
"""Images whose features are computed, and kept, together."""


def yardstick(job: Job, inputs: Inputs) -> Result:
    """Correlations of the regression on the test part, as `evaluate` gives them."""
    from dri_iqa.evaluation.yardstick import fit_yardstick

    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = source.open().manifest
    table = manifest.images().to_pandas().set_index("image_id")
    split = load_splits(inputs.split_uri)[0]
    parts = [np.array(ids, dtype=np.int64) for ids in (split.train, split.val, split.test)]
    with job.console.progress(f"pooled features of {sum(map(len, parts))} images") as meter:
        features_NF = _features(job, source, np.concatenate(parts), meter)
    train_NF, val_NF, test_NF = np.split(features_NF, np.cumsum([len(ids) for ids in parts])[:-1])
    train_N, val_N = (table["score"].loc[ids].to_numpy(np.float64) for ids in parts[:2])
    fitted = fit_yardstick((train_NF, train_N), (val_NF, val_N), test_NF)
    frame = table.loc[parts[2], ["name", "group", "subset", "score"]]
    frame = frame.rename(columns={"score": "given"}).assign(score=fitted.predicted_N)
    rows = correlations(job, manifest, frame)
    result = {
        "rows": rows,
        "srocc": rows[0]["srocc"],
        "plcc": rows[0]["plcc"],
        "kind": manifest.score_kind,
        "cost": fitted.cost,
        "val_srocc": fitted.val_srocc,
    }
    job.tracker.metrics(job.name, {f"yardstick_{name}": result[name] for name in ("srocc", "plcc")})
    job.tracker.json(job.name, result, "yardstick.json")
    return result


def show_yardstick(job: Job, result: Result) -> None:
    """Its table of correlations."""
    backbone, size = job.config.model.backbone, job.config.evaluate.yardstick_size
    network = f"{backbone.name}{' with random weights' if backbone.weights == 'none' else ''}"
    show(job, result, f"Yardstick: regression on pooled features of {network} at {size} pixels")


def _features(job: Job, source: Source, ids: np.ndarray, meter: Any) -> np.ndarray:
    """One row for each of `ids`. Features depend on no split and no score, so they are kept, a chunk of images at a
    time: a killed job goes on, and other splits of the same images read them.
    """
    how = pooling(job.config)
    in_order = np.sort(ids)
    name = configuration.digest([source.digest, asdict(how), in_order.tolist()])
    folder = storage.join(job.output, "features", name)
    chunks = np.array_split(in_order, max(1, len(ids) // _CHUNK))
    calls = [
        (number, storage.join(folder, f"{number:05d}.parquet"), source, part.tolist(), how)
        for number, part in enumerate(chunks)
    ]
    found: dict[int, np.ndarray] = {}
    for number, rows_NF in run_tasks(_pooled, calls, cpus=min(1.0, job.plan.total_cpus)):
        found[number] = rows_NF
        meter.update(len(found), len(calls))
    rows_NF = np.concatenate([found[number] for number in range(len(calls))])
    return rows_NF[np.searchsorted(in_order, ids)]


@dataclass(frozen=True)
class Pooling:
    """What features follow from, the images aside."""

    backbone: BackboneConfig
    size: int
    seed: int


def pooling(config: JobConfig) -> Pooling:
    """How a job pools; its seed matters only where the backbone's weights are drawn."""
    from dri_iqa.models.weights import RANDOM

    backbone = config.model.backbone
    seed = config.seed if backbone.weights in RANDOM else 0
    return Pooling(backbone, config.evaluate.yardstick_size, seed)


def _pooled(
    number: int, uri: str, source: Source, ids: Sequence[int], how: Pooling
) -> tuple[int, np.ndarray]:
    if storage.exists(uri):
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        return number, np.stack(table["features"].to_numpy())
    import torch

    from dri_iqa.evaluation.yardstick import pooled_features

    torch.set_num_threads(1)
    reader = source.open()
    images = (row["bytes"] for row in reader.read_each(ids))
    rows_NF = pooled_features(images, how.backbone, seed=how.seed, size=how.size)
    column = pa.FixedSizeListArray.from_arrays(rows_NF.ravel(), rows_NF.shape[1])
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"image_id": ids, "features": column}), stream)
    storage.write_bytes(uri, stream.getvalue().to_pybytes())
    return number, rows_NF


def steps(job: Job) -> None:
    """The job: data, then the regression."""
    job.console.steps = 2
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        inputs = Inputs(**data["inputs"])
        result = job.step(
            "yardstick", "regression on pooled features", lambda: yardstick(job, inputs)
        )
        show_yardstick(job, result)


if __name__ == "__main__":
    main("yardstick", steps)
