"""From what a job found, as plain data, to a report: its sections, their order and their figures.

Whatever is missing is left out, so the report of one run and that of many variants are made alike.

Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dri_iqa.evaluation import figures
from dri_iqa.evaluation.choosing import type_rows
from dri_iqa.evaluation.figures import Judged, Mapped
from dri_iqa.evaluation.page import pairs
from dri_iqa.evaluation.published import published_rows
from dri_iqa.evaluation.report import RESULTS, SUBSETS, WORST, Drawing, Outlier, Report, Rows

History = Sequence[Mapping[str, float]]
"""One row of metrics an epoch."""

SCATTER = "Predicted against given"
TYPES = "Error by distortion type"
STRIPS = "From best to worst"
MAPS = "Degradation and quality maps"
RESTORATION = "Restoration before and after"
STAGE1, STAGE2 = "Training: stage 1", "Training: stage 2"
PROBES = "What the two halves hold"
GALLERY = "Degradations"
CHAINS = "Random chains"
TRIALS = "Search"
PROTOCOL = "Data and protocol"

TEXTS = {
    RESULTS: "This job's models above, published values below. Values of other data sets are there "
    "for orientation; they cannot be compared.",
    SCATTER: "Every dot is a test image. The fit is the four-parameter logistic function before "
    "which PLCC is often reported; PLCC here is raw.",
    WORST: "The largest errors of all test images. What is wrong with them says more than a mean.",
    TYPES: "In label units. A mean error above zero means that this type is scored too high.",
    STRIPS: "The paper's Figure 5: a reference and versions of it, or images of one subset where "
    "there are no references. They are chosen by their given scores (GT), evenly over the range, "
    "not by how well they were predicted.",
    MAPS: "The paper's Figure 6: mean magnitude of the last layer's upper and lower half. Each "
    "column has one colour scale.",
    RESTORATION: "By the network that assists training, and is not part of the model: test images "
    "and their references, or clean images under random chains where there are no references. "
    "PSNR is to the reference.",
    STAGE1: "The contrastive losses of both halves; top-1 is how often the positive is the nearest "
    "key.",
    STAGE2: "Every term of the loss before its weight, validation, and how strongly each term "
    "pulls the extractor.",
    PROBES: "Linear classifiers on frozen features of held-out views: the share of wrong answers, "
    "lower is better. The paper shows this with maps only.",
    CHAINS: "Drawn as for training; the operators of a chain are applied from top to bottom.",
    TRIALS: "Trials are compared on validation images; none has seen the test part.",
}

_STAGE1_PANELS = {
    "loss": {"degradation half": "loss_deg", "quality half": "loss_qual"},
    "top-1 of the contrast": {"degradation half": "top1_deg", "quality half": "top1_qual"},
    "probes: error of type": {"upper half": "probe_type_up", "lower half": "probe_type_low"},
    "probes: error of content": {
        "upper half": "probe_content_up",
        "lower half": "probe_content_low",
    },
}
_STAGE2_PANELS = {
    "score loss": {"train": "loss_mos"},
    "restoration losses": {
        "pixel": "loss_pixel",
        "perceptual": "loss_perceptual",
        "representation": "loss_representation",
    },
    "contrastive losses": {"degradation half": "loss_deg", "quality half": "loss_qual"},
    "validation": {"SROCC": "val_srocc", "PLCC": "val_plcc"},
    "validation PSNR in dB": {"degraded": "val_psnr_input", "restored": "val_psnr_restored"},
    "gradient on the extractor": {
        name: f"grad_dre_{name}"
        for name in ("mos", "pixel", "perceptual", "representation", "deg", "qual")
    },
}
_SUBSET_COLUMNS = (
    *("subset", "images", "groups", "srocc", "srocc_low", "srocc_high"),
    *("plcc", "plcc_low", "plcc_high", "plcc_fit", "krocc", "rmse", "note"),
)
_LOGARITHMIC = ("score loss", "restoration losses", "gradient on the extractor")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a report is made of; everything but title and data set is optional."""

    title: str
    data: str
    """Name of the data set that `results` were measured on, as in `conf/data`."""
    summary: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    results: Rows = ()
    """One row for each model or variant: model, data, srocc, plcc, ..."""
    tables: Mapping[str, Rows] = field(default_factory=dict)
    """Further tables by title, shown after the results."""
    subsets: Rows = ()
    """Rows of `evaluate_table`."""
    images: Rows = ()
    """The test images with their scores, as in `choosing`."""
    kind: str = "human"
    """`human` or `pseudo` scores."""
    worst: Sequence[Outlier] = ()
    strips: Sequence[Sequence[Judged]] = ()
    maps: Sequence[Mapped] = ()
    stage1: History = ()
    stage2: History = ()
    restoration: Path | None = None
    """What the training run drew: degraded, restored, reference."""
    halves: Path | None = None
    """What stage 1 drew: the features of both halves in the plane."""
    gallery_HWC: np.ndarray | None = None
    """Every degradation at five levels."""
    chains_HWC: np.ndarray | None = None
    """Random chains of them."""
    trials: Rows = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Protocol, counts and digests of manifest, split and weights."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def assemble(evidence: Evidence, folder: str | os.PathLike[str]) -> Report:
    """Draw the figures and put the sections together.

    Args:
        evidence: what was found.
        folder: where figures are drawn to; the report refers to files there.
    """
    probes = probe_rows(evidence.stage1)
    types = type_rows(evidence.images)
    results = [{"source": "this job", **row} for row in evidence.results]
    tables = {
        **evidence.tables,
        TYPES: types,
        PROBES: probes,
        TRIALS: evidence.trials,
        PROTOCOL: pairs(evidence.protocol),
    }
    return Report(
        title=evidence.title,
        summary=evidence.summary,
        facts=evidence.facts,
        notes=evidence.notes,
        results=[*results, *published_rows(evidence.data)] if results else [],
        subsets=_ordered(evidence.subsets, _SUBSET_COLUMNS),
        tables={title: rows for title, rows in tables.items() if rows},
        figures=_draw(evidence, types, Path(folder)),
        outliers=evidence.worst,
        configuration=evidence.configuration,
        environment=evidence.environment,
        texts=TEXTS,
        order=(
            *(RESULTS, *evidence.tables, SUBSETS, SCATTER, WORST, TYPES, STRIPS, MAPS, RESTORATION),
            *(STAGE2, STAGE1, PROBES, GALLERY, CHAINS, TRIALS, PROTOCOL),
        ),
    )


def probe_rows(history: History) -> list[dict[str, Any]]:
    """The last probes of stage 1 as rows with what, upper_half and lower_half (error rates)."""
    probed = [row for row in history if "probe_type_up" in row]
    return [
        {
            "what is asked": what,
            "upper half": probed[-1][f"probe_{name}_up"],
            "lower half": probed[-1][f"probe_{name}_low"],
        }
        for name, what in (
            ("type", "type of degradation (guessing: 0.958)"),
            ("level", "level of degradation (guessing: 0.800)"),
            ("content", "which photograph it is"),
        )
        if probed
    ]


def _draw(evidence: Evidence, types: Rows, folder: Path) -> list[Drawing]:
    drawings: list[Drawing] = []

    def add(title: str, path: Path, caption: str = "") -> None:
        drawings.append(Drawing(path=path, title=title, caption=caption))

    if len(evidence.subsets) > 1:
        add(SUBSETS, figures.subset_bars(evidence.subsets, folder / "subsets.png"))
    if evidence.images:
        subsets = [image["subset"] or "other" for image in evidence.images]
        picture = figures.scatter(
            [image["score"] for image in evidence.images],
            [image["given"] for image in evidence.images],
            folder / "scatter.png",
            kind=evidence.kind,
            subsets=subsets if len(set(subsets)) > 1 else None,
        )
        add(SCATTER, picture)
    if types:
        add(TYPES, figures.error_bars(types, folder / "types.png"))
    if evidence.strips:
        add(STRIPS, figures.quality_strip(evidence.strips, folder / "strips.png"))
    if evidence.maps:
        add(MAPS, figures.map_figure(evidence.maps, folder / "maps.png"))
    if evidence.restoration is not None:
        add(RESTORATION, evidence.restoration)
    for title, history, known, name in (
        (STAGE2, evidence.stage2, _STAGE2_PANELS, "stage2.png"),
        (STAGE1, evidence.stage1, _STAGE1_PANELS, "stage1.png"),
    ):
        if panels := _panels(history, known):
            add(title, figures.curves(panels, folder / name, log=_LOGARITHMIC))
    if evidence.halves is not None:
        add(PROBES, evidence.halves)
    for title, picture_HWC, name in (
        (GALLERY, evidence.gallery_HWC, "gallery.jpg"),
        (CHAINS, evidence.chains_HWC, "chains.jpg"),
    ):
        if picture_HWC is not None:
            Image.fromarray(picture_HWC).save(folder / name, quality=85)
            add(title, folder / name)
    return drawings


def _panels(
    history: History, known: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, dict[int, float]]]:
    """The known panels with what the history holds, by epoch; one point is no curve."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for title, lines in known.items():
        values = {
            line: {int(row["epoch"]): row[name] for row in history if name in row}
            for line, name in lines.items()
        }
        if there := {line: points for line, points in values.items() if len(points) > 1}:
            found[title] = there
    return found


def _ordered(rows: Rows, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with their columns in this order; others follow."""
    return [{name: row[name] for name in columns if name in row} | dict(row) for row in rows]
