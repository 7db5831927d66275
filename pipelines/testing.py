"""Testing one trained model on references or scenes it never saw: correlations with intervals, figures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dri_iqa import storage
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.splits import load_splits
from dri_iqa.evaluation.figures import curves, scatter
from dri_iqa.evaluation.metrics import evaluate_table, srocc
from pipelines.runtime.console import Meter
from pipelines.runtime.fit import Inputs, untrained_bundle
from pipelines.runtime.job import Job, Result
from pipelines.runtime.tasks import run_tasks


def evaluate(job: Job, inputs: Inputs, trained: Result, *, label: str = "test") -> Result:
    """Score the test part and compare; returns rows of metrics and where the predictions lie."""
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = source.open().manifest
    table = manifest.images().to_pandas().set_index("image_id")
    ids = load_splits(inputs.split_uri)[0].test
    with job.console.progress(
        f"{len(ids)} test images x {job.config.evaluate.crops} crops"
    ) as meter:
        predicted = score_ids(job, trained["uri"], source, ids, meter)
    frame = predicted.join(
        table[["name", "group", "type", "level", "subset", "score"]].rename(
            columns={"score": "given"}
        )
    )
    frame = frame.dropna(subset=["score"])
    rows = correlations(job, manifest, frame)
    uri = storage.join(job.directory, f"predictions-{label}.csv")
    storage.write_bytes(uri, frame.reset_index().to_csv(index=False).encode())
    result = {
        "rows": rows,
        "srocc": rows[0]["srocc"],
        "plcc": rows[0]["plcc"],
        "predictions": uri,
        "kind": manifest.score_kind,
        "failed": int(np.count_nonzero(predicted["error"].notna())),
        "example": _example(frame),
    }
    _record(job, result, frame, trained, manifest.score_kind, label)
    return result


def correlations(job: Job, manifest: Manifest, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of metrics with intervals, over all and by subset.

    Args:
        job: gives seed and number of resamples.
        manifest: gives the scores' direction.
        frame: `score` (predicted), `given`, `group` and `subset` of the test images.
    """
    sign = 1.0 if manifest.higher_is_better else -1.0
    subsets = frame["subset"].fillna("all").to_numpy()
    return evaluate_table(
        sign * frame["score"].to_numpy(),
        sign * frame["given"].to_numpy(),
        groups=frame["group"].to_numpy(),
        subsets=subsets if len(set(subsets)) > 1 else None,
        seed=job.config.seed,
        n=job.config.evaluate.bootstrap,
    )


def evaluate_untrained(
    job: Job, inputs: Inputs, trained: Result, example: dict[str, Any]
) -> Result:
    """The same model before its first step on the same test part: what training brought."""
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = source.open().manifest
    given = manifest.images().to_pandas().set_index("image_id")["score"]
    ids = load_splits(inputs.split_uri)[0].test
    with job.console.progress("the untrained model on the same images") as meter:
        frame = score_ids(job, untrained_bundle(trained), source, ids, meter).dropna(
            subset=["score"]
        )
    sign = 1.0 if manifest.higher_is_better else -1.0
    value = srocc(sign * frame["score"].to_numpy(), sign * given.loc[frame.index].to_numpy())
    job.tracker.metrics(job.name, {"untrained_srocc": value})
    return {
        "srocc": value,
        "example": float(frame["score"].to_dict().get(example["image_id"], float("nan"))),
    }


def score_ids(
    job: Job,
    bundle: str,
    source: Source,
    ids: Sequence[int],
    meter: Meter | None = None,
    *,
    crops: int | str | None = None,
) -> pd.DataFrame:
    """Scores of ingested images by Ray tasks; a score depends on pixels only, not on how the ids are dealt."""
    crops = job.config.evaluate.crops if crops is None else crops
    chunks = max(1, min(len(ids), int(4 * job.plan.total_cpus)))
    calls = [
        (bundle, source, part.tolist(), crops) for part in np.array_split(np.array(ids), chunks)
    ]
    tables: list[pd.DataFrame] = []
    for table in run_tasks(_score_chunk, calls, cpus=min(1.0, job.plan.total_cpus)):
        tables.append(table)
        if meter is not None:
            meter.update(len(tables), len(calls))
    return pd.concat(tables).sort_index()


def _score_chunk(bundle: str, source: Source, ids: list[int], crops: int | str) -> pd.DataFrame:
    import torch

    from dri_iqa import load_model

    torch.set_num_threads(1)
    reader = source.open()
    table = load_model(bundle).score((row["bytes"] for row in reader.read_each(ids)), crops=crops)
    table.index = pd.Index(ids, name="image_id")
    return table.drop(columns="image")


def _example(frame: pd.DataFrame) -> dict[str, Any]:
    """The test image whose prediction is the median one: a picture to show, not the best one."""
    ordered = frame.sort_values("score")
    row = ordered.iloc[len(ordered) // 2]
    return {
        "image_id": int(str(row.name)),
        "name": row["name"],
        "score": float(row["score"]),
        "given": float(row["given"]),
    }


def _record(
    job: Job, result: Result, frame: pd.DataFrame, trained: Result, kind: str, label: str
) -> None:
    """Metrics and figures into MLflow."""
    job.tracker.metrics(job.name, {f"{label}_{name}": result[name] for name in ("srocc", "plcc")})
    job.tracker.json(job.name, result["rows"], f"{label}.json")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / f"scatter-{label}.png"
        scatter(frame["score"], frame["given"], picture, kind=kind, title=f"{job.name}, {label}")
        job.tracker.file(job.name, str(picture), "figures")
        history = trained.get("history") or []
        if history:
            names = [name for name in ("loss", "val_srocc") if name in history[0]]
            panels = {name: {name: [row[name] for row in history]} for name in names}
            picture = curves(panels, Path(folder) / "stage2.png", title="stage 2")
            job.tracker.file(job.name, str(picture), "figures")


def show(job: Job, result: Result, what: str | None = None) -> None:
    """The table of correlations, with intervals over references or scenes."""
    rows = [
        [
            row["subset"],
            row["images"],
            row["groups"],
            interval(row, "srocc"),
            interval(row, "plcc"),
            row["note"],
        ]
        for row in result["rows"]
    ]
    what = what or f"Test: {result['kind']} scores, {job.config.evaluate.crops} crops"
    title = f"{what}, 95 % intervals over references or scenes"
    job.console.table(title, ["subset", "images", "groups", "SROCC", "PLCC", "note"], rows)


def interval(row: dict[str, Any], name: str) -> str:
    """A metric of a row with its interval."""
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
