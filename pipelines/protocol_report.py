"""A protocol's results for people: tables on the console, one page with figures, CSV files, MLflow."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dri_iqa.config import to_dict
from dri_iqa.evaluation.assembly import Evidence
from dri_iqa.evaluation.page import with_intervals
from pipelines.protocol import Cell, Grid, policies, predictions, predictions_uri
from pipelines.report import gather
from pipelines.report import publish as write
from pipelines.runtime.fit import finished
from pipelines.runtime.job import Job, Result
from pipelines.testing import correlations

TITLES = {
    "variants": "Variants: means over trainings",
    "subsets": "Mean SROCC by subset",
    "differences": "Paired differences between variants",
    "cross": "Trained on (rows), tested on (columns): SROCC",
    "runs": "Every test",
}
TABLES = ("differences", "subsets", "cross", "runs")
"""Below the results, in this order."""
UNSHOWN = ("splits", "krocc", "rmse", "plcc_crops", "plcc_median")
"""Columns for which a console is too narrow; the report has them."""
NOTES = (
    "Intervals (95 %) of differences: over several splits by the corrected resampled t-test (Nadeau and Bengio 2003), "
    "as splits share images; of a single split, over resampled scenes or references.",
)


def show(job: Job, result: Result) -> None:
    """The tables that fit a console."""
    for name in ("variants", "differences", "cross"):
        if rows := with_intervals(result["tables"].get(name) or []):
            columns = [column for column in sorted(rows[0], key=_place) if column not in UNSHOWN]
            cells = [[_cell(row[column]) for column in columns] for row in rows]
            job.console.table(TITLES[name], columns, cells)
    if result["failures"]:
        rows = [[row["run"], row["attempts"], row["error"]] for row in result["failures"]]
        job.console.table("Failed", ["run", "attempts", "error"], rows)
    job.console.say(f"report    {result['report']}")


def publish(job: Job, grid: Grid, trained: dict[Cell, Result], result: Result) -> str:
    """Write page, Markdown and CSV files into the job's folder and MLflow; returns the page's URI.

    Pictures are those of one model: the last variant's on the first split.
    """
    protocol, found = job.config.protocol, result["tables"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        evidence = _one_model(job, grid, trained, folder)
        notes = [*evidence.notes, *NOTES]
        notes += [f"failed: {row['run']}: {row['error']}" for row in result["failures"]]
        rows = [
            {"model": row["variant"], "data": f"{grid.main}, protocol {protocol.name}", **row}
            for row in found["variants"]
        ]
        evidence = replace(
            evidence,
            title=f"DRI-IQA on {grid.main}: protocol {protocol.name}",
            summary=f"Job {job.name}: {len(trained)} trained models, {len(found['runs'])} tests. "
            f"Pictures, curves and subsets below the tables are of one of them: {evidence.summary}",
            facts={f"mean SROCC, {row['variant']}": row["srocc"] for row in found["variants"]},
            notes=notes,
            results=[{k: v for k, v in row.items() if k != "variant"} for row in rows],
            tables={TITLES[name]: found[name] for name in TABLES if found.get(name)},
            protocol={row["what"]: row["value"] for row in result["facts"]},
            configuration=to_dict(job.config),
        )
        written = write(job, evidence, folder)
    job.tracker.metrics(
        job.name,
        {
            f"{row['variant']}_{name}": row[name]
            for row in found["variants"]
            for name in ("srocc", "plcc", "srocc_median")
        },
    )
    return written["html"]


def _one_model(job: Job, grid: Grid, trained: dict[Cell, Result], folder: Path) -> Evidence:
    """What the report of the last variant's model of the first split is made of."""
    own = [cell for cell in trained if cell.trained_on == grid.main]
    wanted = [name for name in grid.config.protocol.variants if any(c.variant == name for c in own)]
    cell = next(cell for cell in own if cell.variant == wanted[-1])
    policy = next(iter(policies(grid.config).values()))
    frame, manifest = predictions(job, grid, cell, grid.main, policy, trained[cell])
    rows = correlations(job, manifest, frame.dropna(subset=["score"]))
    first = grid.stage1(cell)
    tested = {
        "rows": rows,
        "srocc": rows[0]["srocc"],
        "plcc": rows[0]["plcc"],
        "kind": manifest.score_kind,
        "failed": int(np.count_nonzero(frame["error"].notna())),
        "predictions": predictions_uri(grid, cell, grid.main, policy, trained[cell]),
    }
    made = {
        "stage1": finished(first, job.output) if first else None,
        "stage2": trained[cell],
        "test": tested,
    }
    shown = copy.copy(job)
    shown.config = grid.cell_config(cell)
    return gather(shown, grid.inputs(cell), made, folder)


def _place(column: str) -> tuple[int, str]:
    """Names first, then counts, then figures: stored rows come back in the alphabet's order."""
    known = ("variant", "difference", "trained_on", "trainings", "splits", "better_in")
    return (known.index(column) if column in known else len(known), column)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
