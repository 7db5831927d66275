"""What `dri-iqa score` and `monotonicity` put out: rows as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dri_iqa.terminal import console

if TYPE_CHECKING:
    from dri_iqa.evaluation.monotonicity import Falls
    from dri_iqa.scoring import Scorer


class Format(StrEnum):
    """Output formats of `score`."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def format_of(out: str | None) -> Format:
    """By the ending of a file's name; a table where it says nothing."""
    ending = Path(out).suffix.lower().removeprefix(".") if out else "table"
    return Format(ending) if ending in {form.value for form in Format} else Format.table


def write_rows(rows: list[dict[str, Any]], form: Format, out: str | None) -> None:
    """To a file or URI, whole or not at all, else to stdout."""
    if form is Format.table and out is None and sys.stdout.isatty():
        console().print(_score_table(rows))
        return
    data = _encode(rows, form)
    if out is None:
        sys.stdout.write(data.decode())
        sys.stdout.flush()
        return
    from dri_iqa import storage

    storage.write_bytes(out, data)


def _encode(rows: list[dict[str, Any]], form: Format) -> bytes:
    if form is Format.table:  # aligned, never cut: for pipes and files
        width = max((len(row["image"]) for row in rows), default=0)
        return "".join(f"{row['image']:<{width}}  {_result(row)}\n" for row in rows).encode()
    if form is Format.json:
        plain = [
            {key: None if value != value else value for key, value in row.items()} for row in rows
        ]
        return (json.dumps(plain, indent=1) + "\n").encode()
    import pandas as pd

    table = pd.DataFrame(rows, columns=["image", "score", "std", "error", "model"])
    if form is Format.csv:
        return table.to_csv(index=False).encode()
    buffer = io.BytesIO()
    # An error column without errors would otherwise get a type of its own.
    table.astype({"error": "string"}).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _result(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    return f"{row['score']:.4f} ± {row['std']:.4f}"


def _score_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("image")
    table.add_column("score", justify="right")
    table.add_column("± over crops", justify="right")
    if any(row["error"] is not None for row in rows):
        table.add_column("error", style="red")
    for row in rows:
        good = row["error"] is None
        cells = [f"{row['score']:.4f}", f"{row['std']:.4f}"] if good else ["", ""]
        table.add_row(row["image"], *cells, row["error"])
    return table


def write_falls(table: list[Falls], out: str | None) -> None:
    """How scores follow each operator: to stdout, and as CSV to a file or URI."""
    names = ["operator", "steps", "falling", "share", "as it is"]
    names += [f"level {level}" for level in range(1, len(table[0].scores_L))]
    drawn = Table()
    for number, name in enumerate(names):
        drawn.add_column(name, justify="right" if number else "left")
    for row in table:
        if row.operator == "all":
            drawn.add_section()
        scores = (f"{score:.4g}" for score in row.scores_L)
        drawn.add_row(row.operator, f"{row.steps}", f"{row.falling}", f"{row.share:.0%}", *scores)
    console().print(drawn)
    if out is None:
        return
    import csv

    from dri_iqa import storage

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(
        [row.operator, row.steps, row.falling, row.share, *row.scores_L] for row in table
    )
    storage.write_bytes(out, text.getvalue().encode())


def caption(scorer: Scorer, count: int, failed: int, crops: str | None, out: str | None) -> str:
    """How many, on which scale, by which model."""
    scale = scorer.head.score
    direction = "higher" if scale.higher_is_better else "lower"
    parts = [
        f"{count} picture{'' if count == 1 else 's'}" + (f", {failed} failed" if failed else ""),
        f"{scale.name} ({scale.kind} scores, {scale.lo:.4g} to {scale.hi:.4g}, {direction} is "
        "better)",
        f"crops {crops or scorer.head.scoring.crops}",
        f"model {scorer.head.digest[:12]}",
    ]
    return " · ".join([*parts, *([f"written to {out}"] if out else [])])
