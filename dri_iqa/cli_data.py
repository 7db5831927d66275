"""`dri-iqa data`: look at a data set before a job reads it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

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
    group_scenes: Annotated[
        bool, typer.Option("--group-scenes", help="Find near-duplicate photographs as well.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(help="With --group-scenes: a CSV file for the labels with their scenes."),
    ] = None,
) -> None:
    """Verify a data set: counts, missing and surplus files, scores, duplicates by content, scenes."""
    from dri_iqa import storage
    from dri_iqa.data.check import check_dataset, largest_scenes, scene_table
    from dri_iqa.data.datasets import read_dataset

    if out and not group_scenes:
        raise ValueError("--out needs --group-scenes\nAdd --group-scenes.")
    dataset = read_dataset(name, root)
    found = check_dataset(dataset, scenes=group_scenes, passing=with_progress)
    table = Table(
        "check",
        "found",
        title=f"{dataset.name}: {dataset.root or 'built in'}",
        title_justify="left",
    )
    table.add_row("images", _of(found.images, dataset.whole))
    table.add_row("references", _of(found.references, dataset.whole_references))
    table.add_row(
        "groups (scenes or references)", f"{len({record.group for record in dataset.records})}"
    )
    for field in ("subset", "split"):
        counts = Counter(getattr(r, field) for r in dataset.records if getattr(r, field))
        if counts:
            joined = ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))
            table.add_row(f"{field}s", joined)
    if found.span:
        direction = "higher" if dataset.higher_is_better else "lower"
        span = f"{found.span[0]:.4g} to {found.span[1]:.4g}"
        table.add_row("scores", f"{dataset.score_kind}, {span}, {direction} is better")
    if dataset.scale:
        low, high = dataset.scale
        table.add_row(f"scores outside {low:g} to {high:g}", listed(list(found.off_scale)))
    table.add_row("missing files", listed(list(found.missing)))
    table.add_row("surplus files", listed(list(found.surplus)))
    table.add_row("missing or non-finite scores", listed(list(found.unscored)))
    table.add_row("identical files", listed([" = ".join(names) for names in found.copies]))
    table.add_row("identical across groups", listed([" = ".join(n) for n in found.crossing]))
    if found.scenes is not None:
        largest = ", ".join(map(str, largest_scenes(found.scenes)))
        table.add_row("unreadable", listed(list(found.unreadable)))
        table.add_row(
            "scenes by content",
            f"{len(set(found.scenes.values()))} of {len(found.scenes)} images, the largest: {largest}",
        )
    if dataset.notes:
        table.add_row("note", dataset.notes)
    console().print(table)
    if out and found.scenes is not None:
        storage.write_bytes(out, scene_table(dataset, found.scenes).encode())
        console().print(f"{out}: labels with scenes; read it with data=csv data.options.file=...")
    if found.faulty:
        raise typer.Exit(SOME_FAILED)


def _of(count: int, whole: tuple[int, ...]) -> str:
    return f"{count}" + (f" of {' or '.join(map(str, whole))}" if whole else "")
