"""A protocol's results for people: tables on the console, one page with figures, CSV files, MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dri_iqa import storage
from dri_iqa.config import to_dict
from dri_iqa.evaluation.figures import scatter
from dri_iqa.evaluation.page import with_intervals
from dri_iqa.evaluation.protocols import Outcome
from dri_iqa.evaluation.report import Drawing, Report, environment, write_report
from pipelines.protocol import Grid
from pipelines.runtime.job import Job, Result

TITLES = {
    "variants": "Variants: means over trainings",
    "subsets": "Mean SROCC by subset",
    "differences": "Paired differences between variants",
    "cross": "Trained on (rows), tested on (columns): SROCC",
    "runs": "Every test",
}
UNSHOWN = ("splits", "krocc", "rmse", "plcc_crops", "plcc_median")
"""Columns for which a console is too narrow; the report has them."""
NOTES = (
    "Intervals (95 %) of differences resample scenes or references, paired, and average over trainings; splits share "
    "images, so they are not independent repetitions.",
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


def publish(job: Job, grid: Grid, outcomes: Sequence[Outcome], result: Result) -> str:
    """Write page, Markdown and CSV files into the job's folder and MLflow; returns the page's URI."""
    protocol, found = job.config.protocol, result["tables"]
    target = storage.join(job.directory, "report")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "report"
        report = Report(
            title=f"{grid.main}: protocol {protocol.name}",
            summary=f"{len(found['runs'])} tests of {len(protocol.variants)} variant(s).",
            facts={f"SROCC {row['variant']}": row["srocc"] for row in found["variants"]},
            notes=[
                *NOTES,
                *(f"failed: {row['run']}: {row['error']}" for row in result["failures"]),
            ],
            results=found["variants"],
            tables={
                TITLES[name]: found[name]
                for name in ("differences", "subsets", "cross", "runs")
                if found.get(name)
            }
            | {"Protocol and digests": result["facts"]},
            figures=_scatters(grid, outcomes, Path(place)),
            configuration=to_dict(job.config),
            environment=environment(),
        )
        write_report(report, folder)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                storage.write_bytes(storage.join(target, name), file.read_bytes())
                inside = f"report/{name}".rpartition("/")[0]
                job.tracker.file(job.name, str(file), inside)
    job.tracker.metrics(
        job.name,
        {
            f"{row['variant']}_{name}": row[name]
            for row in found["variants"]
            for name in ("srocc", "plcc", "srocc_median")
        },
    )
    return storage.join(target, "report.html")


def _scatters(grid: Grid, outcomes: Sequence[Outcome], folder: Path) -> list[Drawing]:
    """Predicted against given scores of every variant on split 0."""
    drawn = []
    for variant in grid.config.protocol.variants:
        own = [
            one
            for one in outcomes
            if one.variant == variant and one.trained_on == one.tested_on == grid.main
        ]
        if not own:
            continue
        first = own[0]
        path = folder / f"scatter-{variant}.png"
        scatter(first.predicted_N, first.given_N, path, subsets=first.subset_N.tolist())
        caption = f"Split {first.split}, training seed {first.seed}; higher is better on both axes."
        drawn.append(Drawing(path=path, title=f"Predicted and given: {variant}", caption=caption))
    return drawn


def _place(column: str) -> tuple[int, str]:
    """Names first, then counts, then figures: stored rows come back in the alphabet's order."""
    known = ("variant", "difference", "trained_on", "trainings", "splits", "better_in")
    return (known.index(column) if column in known else len(known), column)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
