"""One self-contained report from plain data: an HTML page, the same in Markdown, tables as CSV.

The page needs no network and runs no script: pictures are inlined, and its content policy forbids
everything else. Sections without data are left out.

Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dri_iqa.evaluation import page

Rows = Sequence[Mapping[str, Any]]
RESULTS, SUBSETS, WORST = "Results", "By subset", "Worst images"
"""Titles of sections that every report has, as far as there is something to show."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure file (PNG or JPEG) with its section's title and a caption."""

    path: str | Path
    title: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A picture whose prediction is far off; scores in label units."""

    name: str
    predicted: float
    given: float
    image_HWC: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report shows; everything but the title is optional.

    Tables and figures of one title share a section, figures first.
    """

    title: str
    summary: str = ""
    """A few sentences under the title."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Headline numbers, shown as tiles, e.g. {"SROCC (test)": 0.91}."""
    notes: Sequence[str] = ()
    """What a reader must know before believing a number, e.g. that scores are pseudo scores."""
    results: Rows = ()
    """One row for each model or variant, any columns."""
    subsets: Rows = ()
    """Rows of `evaluate_table`."""
    tables: Mapping[str, Rows] = field(default_factory=dict)
    """Further tables by title."""
    figures: Sequence[Drawing] = ()
    """Scatter, curves, strips, maps, galleries."""
    outliers: Sequence[Outlier] = ()
    """Worst images, worst first."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, nested."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """See `environment`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What to say under a section's title, by title."""
    order: Sequence[str] = ()
    """Titles in the order of the page; sections that are not named follow."""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written; `tables` holds one CSV file for each table."""

    html: Path
    markdown: Path
    tables: tuple[Path, ...]


def write_report(report: Report, directory: str | os.PathLike[str]) -> ReportFiles:
    """Write report.html, report.md (figures copied to figures/) and one CSV file a table.

    Raises:
        FileNotFoundError: a figure that does not exist.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    names = _slugs([drawing.title for drawing in report.figures])
    pictures = [
        _copy(drawing.path, root / "figures" / (name + Path(drawing.path).suffix))
        for drawing, name in zip(report.figures, names, strict=True)
    ]
    (root / "report.html").write_text(render_html(report), encoding="utf-8")
    links = [path.relative_to(root).as_posix() for path in pictures]
    (root / "report.md").write_text(render_markdown(report, links), encoding="utf-8")
    shown = [("results", report.results), ("subsets", report.subsets), *report.tables.items()]
    shown = [(name, rows) for name, rows in shown if rows]
    tables = tuple(
        write_csv(rows, root / f"{name}.csv")
        for name, (_, rows) in zip(_slugs([name for name, _ in shown]), shown, strict=True)
    )
    return ReportFiles(html=root / "report.html", markdown=root / "report.md", tables=tables)


def render_html(report: Report) -> str:
    """The page as one string."""
    sections = _sections(report)
    links, body = "", ""
    for mark, (title, parts) in zip(_slugs(list(sections)), sections.items(), strict=True):
        links += f'<a href="#{mark}">{page.text(title)}</a>'
        text = f"<p>{page.text(report.texts[title])}</p>" if title in report.texts else ""
        body += f'<section id="{mark}"><h2>{page.text(title)}</h2>{text}'
        drawn = any(isinstance(part, Drawing) for part in parts)
        body += "".join(_html(part, fold=drawn) for part in parts) + "</section>"
    tiles = "".join(
        f'<div class="tile"><b>{page.text(page.number(value))}</b><span>{page.text(name)}</span>'
        "</div>"
        for name, value in report.facts.items()
    )
    notes = "".join(f"<li>{page.text(note)}</li>" for note in report.notes)
    head = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    head += f'<div class="tiles">{tiles}</div>' if tiles else ""
    head += f'<ul class="notes">{notes}</ul>' if notes else ""
    legend = "Brackets hold 95 % bootstrap intervals over scenes or references."
    return page.document(report.title, report.summary, head + body, legend=legend)


def render_markdown(report: Report, links: Sequence[str] | None = None) -> str:
    """The same as Markdown; `links` are the figures' paths as the page should name them."""
    if links is None:
        links = [str(drawing.path) for drawing in report.figures]
    parts = [f"# {page.markdown(report.title)}", page.markdown(report.summary)]
    parts += [f"> {page.markdown(note)}" for note in report.notes]
    parts += [
        f"- **{page.markdown(name)}**: {page.markdown(page.number(value))}"
        for name, value in report.facts.items()
    ]
    named = dict(zip(report.figures, links, strict=True))
    for title, contents in _sections(report).items():
        parts += [f"## {page.markdown(title)}", page.markdown(report.texts.get(title, ""))]
        parts += [_markdown(part, named) for part in contents]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def write_csv(rows: Rows, path: str | os.PathLike[str]) -> Path:
    """Rows as CSV with full precision; nan is written as nan, a missing value as nothing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(dict(row) for row in rows)
    return target


def environment() -> dict[str, Any]:
    """What the numbers were made on: versions, processor, accelerator."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    for package in ("dri-iqa", "torch", "timm", "numpy", "pillow", "opencv-python-headless"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class _Cards:
    items: Sequence[Outlier]

    def __len__(self) -> int:
        return len(self.items)


LONG = 12
"""Rows from which a table beside a figure is folded."""
_Part = Rows | Drawing | _Cards | Mapping[str, Any]
"""What a section shows: a table, a figure, pictures with scores, or settings."""


def _sections(report: Report) -> dict[str, list[_Part]]:
    """What each section shows, by title, in the order of the page."""
    named: list[tuple[str, _Part]] = [(drawing.title, drawing) for drawing in report.figures]
    named += [(RESULTS, report.results), (SUBSETS, report.subsets), *report.tables.items()]
    named += [(WORST, _Cards(report.outliers))]
    named += [("Configuration", report.configuration), ("Environment", report.environment)]
    titles = (*report.order, RESULTS, SUBSETS, *report.tables)
    found: dict[str, list[_Part]] = {title: [] for title in titles}
    for title, part in named:
        if part:
            found.setdefault(title, []).append(part)
    return {title: parts for title, parts in found.items() if parts}


def _html(part: _Part, *, fold: bool) -> str:
    if isinstance(part, Drawing):
        return _figure(part)
    if isinstance(part, Mapping):
        return _settings(part)
    if isinstance(part, _Cards):
        return f'<div class="gallery">{"".join(map(_card, part.items))}</div>'
    table = page.table(part)
    if fold and len(part) > LONG:
        return f"<details><summary>as a table</summary>{table}</details>"
    return table


def _markdown(part: _Part, links: Mapping[Drawing, str]) -> str:
    if isinstance(part, Drawing):
        picture = f"![{page.markdown(part.title)}]({links[part]})"
        return f"{picture}\n\n{page.markdown(part.caption)}"
    if isinstance(part, Mapping):
        return page.markdown_table(page.pairs(page.flatten(part)))
    return page.markdown_table(_outlier_rows(part.items) if isinstance(part, _Cards) else part)


def _figure(drawing: Drawing) -> str:
    source, size = page.inline_file(drawing.path), page.size_attributes(drawing.path)
    picture = f'<img src="{source}" {size} alt="{page.text(drawing.title)}">'
    caption = f"<figcaption>{page.text(drawing.caption)}</figcaption>" if drawing.caption else ""
    return f'<figure><div class="scroll">{picture}</div>{caption}</figure>'


def _settings(values: Mapping[str, Any]) -> str:
    """Flat settings as a table; nested ones are many and are shown when asked for."""
    if not any(isinstance(value, Mapping) for value in values.values()):
        return page.table(page.pairs(values))
    raw = page.text(json.dumps(values, indent=2, default=str))
    return f"<details><summary>show all settings</summary><pre>{raw}</pre></details>"


def _card(item: Outlier) -> str:
    picture = ""
    if item.image_HWC is not None:
        source = page.inline_image(item.image_HWC)
        picture = f'<img src="{source}" alt="{page.text(item.name)}">'
    scores = f"predicted {page.number(item.predicted)}, given {page.number(item.given)}"
    note = f"<br>{page.text(item.note)}" if item.note else ""
    caption = f"<b>{page.text(item.name)}</b><br>{page.text(scores)}{note}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _outlier_rows(outliers: Sequence[Outlier]) -> list[dict[str, Any]]:
    return [
        {"image": item.name, "predicted": item.predicted, "given": item.given, "note": item.note}
        for item in outliers
    ]


def _copy(source: str | Path, target: Path) -> Path:
    if target.resolve() != Path(source).resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(source).read_bytes())
    return target


def _slugs(titles: Sequence[str]) -> list[str]:
    """File names and anchors for titles, unique among themselves."""
    found: list[str] = []
    for title in titles:
        letters = "".join(char if char.isalnum() else "-" for char in title.lower())
        slug = "-".join(part for part in letters.split("-") if part) or "section"
        same = sum(other == slug or other.startswith(f"{slug}--") for other in found)
        found.append(f"{slug}--{same + 1}" if same else slug)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
