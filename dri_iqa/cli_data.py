"""`dri-iqa data`: look at a data set before a job reads it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from dri_iqa.terminal import SOME_FAILED, console, friendly, listed, with_progress

app = typer.Typer(no_args_is_help=True, help="Look at data sets.")


@app.callback()
def main() -> None:
    """Look at data sets."""


@app.command()
@friendly("dri-iqa data check")
def check(
    name: Annotated[str, typer.Argument(help="Data set, e.g. koniq10k, kadid10k, csv, folder.")],
    root: Annotated[
        str | None, typer.Argument(help="Its folder or s3:// URI; the built-in sample has none.")
    ] = None,
) -> None:
    """Verify a data set: counts, missing files, score range, duplicates by content."""
    from dri_iqa.data.datasets import read_dataset

    dataset = read_dataset(name, root)
    records = dataset.records
    missing = [r.name for r in records if r.data is None and r.size is None]
    scores = [r.score for r in records if r.score is not None]
    unscored = [r.name for r in records if scores and not _finite(r.score)]
    present = [r for r in (*records, *dataset.references) if r.data is not None or r.size]
    copies = _copies(with_progress(_digests(dataset.root or "", present), len(present)))
    crossing = [names for names, groups in copies if len(groups) > 1]

    table = Table(
        "check",
        "found",
        title=f"{dataset.name}: {dataset.root or 'built in'}",
        title_justify="left",
    )
    table.add_row("images", f"{len(records)}")
    table.add_row("references", f"{len(dataset.references)}")
    table.add_row("groups (scenes or references)", f"{len({r.group for r in records})}")
    for field in ("subset", "split"):
        counts = Counter(getattr(r, field) for r in records if getattr(r, field))
        if counts:
            joined = ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))
            table.add_row(f"{field}s", joined)
    finite = [value for value in scores if _finite(value)]
    if finite:
        direction = "higher" if dataset.higher_is_better else "lower"
        span = f"{min(finite):.4g} to {max(finite):.4g}"
        table.add_row("scores", f"{dataset.score_kind}, {span}, {direction} is better")
    table.add_row("missing files", listed(missing))
    table.add_row("missing or non-finite scores", listed(unscored))
    table.add_row("identical files", listed([" = ".join(names) for names, _ in copies]))
    table.add_row("identical across groups", listed([" = ".join(names) for names in crossing]))
    if dataset.notes:
        table.add_row("note", dataset.notes)
    console().print(table)
    if missing or unscored or crossing:
        raise typer.Exit(SOME_FAILED)


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _digests(root: str, records: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    from dri_iqa import storage

    for record in records:
        data = record.data
        if data is None:
            data = storage.read_bytes(storage.join(root, record.path))
        yield hashlib.sha256(data).hexdigest(), record.name, record.group


def _copies(rows: Iterable[tuple[str, str, str]]) -> list[tuple[list[str], set[str]]]:
    """Names and groups of the files that share their content."""
    names: dict[str, list[str]] = defaultdict(list)
    groups: dict[str, set[str]] = defaultdict(set)
    for digest, name, group in rows:
        names[digest].append(name)
        groups[digest].add(group)
    return [(names[digest], groups[digest]) for digest in names if len(names[digest]) > 1]
