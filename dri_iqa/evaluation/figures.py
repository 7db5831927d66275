"""The figures of a report as PNG files: scatter, curves, strips and maps.

Plain arrays in, a file out. Figures are drawn on their own Agg canvas, never through pyplot, so
they work without a display and leave no global state behind.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dri_iqa.evaluation.metrics import logistic_fit, plcc, rmse, srocc

# Drawing libraries wait for the first picture: a job that ends at its options needs none.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F4B8B", "#7F7F7F")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "legend.frameon": False,
    "image.interpolation": "nearest",
}
_DPI = 140
_LINE = 28
"""Letters of a caption that fit above a picture."""
_CELL = 1.75
"""Width of a picture in a strip, in inches."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """One column of the restoration strip; images are uint8 (H, W, 3) of one size."""

    degraded_HWC: np.ndarray
    restored_HWC: np.ndarray
    reference_HWC: np.ndarray | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One row of the map figure: a uint8 picture and its two activation maps (floats, any size)."""

    image_HWC: np.ndarray
    degradation_HW: np.ndarray
    quality_HW: np.ndarray
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One picture of a quality strip (paper Fig. 5) with both scores in label units."""

    image_HWC: np.ndarray
    given: float | None = None
    predicted: float | None = None
    name: str = ""


def scatter(
    pred: ArrayLike,
    true: ArrayLike,
    path: str | os.PathLike[str],
    *,
    label: str = "score",
    kind: str = "human",
    subsets: Sequence[Any] | None = None,
    title: str = "",
) -> Path:
    """Predicted against given scores with the identity line and the 4-parameter logistic fit.

    Args:
        pred, true: N numbers each, in label units; pairs that are not finite are left out and
            counted in the title.
        label: what the scores are called.
        kind: `human` or `pseudo`, written on the axis so that nobody takes one for the other.
        subsets: N names that colour the points; beyond eight, the smallest share one colour.
    """
    pred_N = np.asarray(pred, dtype=np.float64).reshape(-1)
    true_N = np.asarray(true, dtype=np.float64).reshape(-1)
    finite_N = np.isfinite(pred_N) & np.isfinite(true_N)
    figure = _figure(5.2, 5.0)
    with _style():
        axes = figure.add_subplot()
        x_N, y_N = pred_N[finite_N], true_N[finite_N]
        for colour, (name, here) in zip(COLOURS, _coloured(subsets, finite_N), strict=False):
            dots = axes.scatter(x_N[here], y_N[here], s=16, alpha=0.7, linewidths=0, color=colour)
            dots.set_label(name or None)
        if len(x_N):
            ends = (min(x_N.min(), y_N.min()), max(x_N.max(), y_N.max()))
            axes.plot(ends, ends, color="#999999", linewidth=1, linestyle=":", label="identity")
            fit = logistic_fit(x_N, y_N)
            if fit.parameters is not None:
                grid = np.linspace(x_N.min(), x_N.max(), 200)
                axes.plot(grid, fit(grid), color="#222222", linewidth=1.6, label="logistic fit")
            axes.legend(loc="best", fontsize=8)
        axes.set_xlabel(f"predicted {label}")
        axes.set_ylabel(f"{kind} {label}")
        facts = f"SROCC {srocc(x_N, y_N):.3f}   PLCC {plcc(x_N, y_N):.3f}"
        facts += f"   RMSE {rmse(x_N, y_N):.3g}   {len(x_N)} images"
        if not finite_N.all():
            facts += f"   ({int((~finite_N).sum())} not finite, left out)"
        axes.set_title((f"{title}\n" if title else "") + facts)
        return _save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float] | Mapping[int, float]]],
    path: str | os.PathLike[str],
    *,
    x_label: str = "epoch",
    log: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Training curves, one panel for each quantity.

    Args:
        panels: panel title -> line name -> one value an epoch (or step), or values by epoch; nan
            leaves a gap.
        log: titles of panels with a logarithmic axis; ignored where values are not positive.
    """
    if not panels:
        raise ValueError("curves: got no panel, expected {'loss': {'train': [...]}}")
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(10.5 if columns > 1 else 5.0, 2.6 * rows + (0.3 if title else 0))
    with _style():
        for index, (name, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, index + 1)
            positive = True
            for colour, (line, values) in zip(COLOURS * 9, lines.items(), strict=False):
                if not isinstance(values, Mapping):
                    values = dict(enumerate(values, start=1))
                value_E = np.array(list(values.values()), dtype=np.float64)
                finite_E = value_E[np.isfinite(value_E)]
                positive &= bool(len(finite_E)) and bool((finite_E > 0).all())
                marker = "o" if len(value_E) < 25 else None
                epochs = list(values)
                axes.plot(epochs, value_E, color=colour, label=line, marker=marker, markersize=3)
            if name in log and positive:
                axes.set_yscale("log")
            if len(lines) > 3:  # they leave no free corner
                axes.set_ymargin(0.45)
                axes.legend(fontsize=7, ncols=3, loc="upper center", columnspacing=1.0)
            elif len(lines) > 1:
                axes.legend(fontsize=8)
            axes.set_title(name)
            axes.set_xlabel(x_label)
            from matplotlib.ticker import MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if title:
            figure.suptitle(title)
        return _save(figure, path)


def subset_bars(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """SROCC of each subset with its interval, from the rows of `evaluate_table`."""
    if not rows:
        raise ValueError("subset_bars: got no rows, expected those of evaluate_table")
    figure = _figure(6.0, 0.9 + 0.32 * len(rows))
    with _style():
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            colour = COLOURS[7] if row["subset"] == "all" else COLOURS[0]
            value = row["srocc"]
            axes.barh(place, 0.0 if np.isnan(value) else value, color=colour, height=0.62)
            low, high = row.get("srocc_low", np.nan), row.get("srocc_high", np.nan)
            if np.isfinite([low, high]).all():
                axes.plot((low, high), (place, place), color="#222222", linewidth=1.4)
            text = "undefined" if np.isnan(value) else f"{value:.3f}"
            end = np.nanmax([0.0, value, high])
            axes.text(end + 0.015, place, text, va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [f"{row['subset']} ({row['images']})" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("SROCC with bootstrap interval")
        axes.set_xlim(right=max(1.12, axes.get_xlim()[1]))
        return _save(figure, path)


def error_bars(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Root mean square and mean error of each distortion type, from the rows of `type_rows`."""
    if not rows:
        raise ValueError("error_bars: got no rows, expected those of type_rows")
    figure = _figure(6.0, 0.9 + 0.24 * len(rows))
    with _style():
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.barh(
            places, [row["rmse"] for row in rows], color=COLOURS[5], height=0.62, label="RMSE"
        )
        means = [row["mean_error"] for row in rows]
        axes.scatter(means, places, color=COLOURS[1], s=18, zorder=3, label="mean error")
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(places, [f"{row['type']} ({row['images']})" for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("predicted minus given, in label units")
        axes.legend(loc="lower right", fontsize=8)
        return _save(figure, path)


def restoration_strip(images: Sequence[Restored], path: str | os.PathLike[str]) -> Path:
    """A column for each image: degraded, restored, reference, with PSNR in dB where there is a
    reference.
    """
    lines: list[list[tuple[np.ndarray | None, str]]] = [[], [], []]
    for image in images:
        before, after = f"degraded  {image.name}".strip(), "restored"
        if image.reference_HWC is not None:
            before += f"\n{psnr(image.degraded_HWC, image.reference_HWC):.1f} dB"
            after += f"  {psnr(image.restored_HWC, image.reference_HWC):.1f} dB"
        lines[0].append((image.degraded_HWC, before))
        lines[1].append((image.restored_HWC, after))
        lines[2].append((image.reference_HWC, "reference"))
    return _grid(lines, path)


def quality_strip(rows: Sequence[Sequence[Judged]], path: str | os.PathLike[str]) -> Path:
    """Paper Fig. 5: versions of one scene in a row, each with its given and predicted score."""
    cells: list[list[tuple[np.ndarray | None, str]]] = []
    for row in rows:
        line: list[tuple[np.ndarray | None, str]] = []
        for item in row:
            scores = [f"GT {item.given:.2f}"] if item.given is not None else []
            scores += [f"predicted {item.predicted:.2f}"] if item.predicted is not None else []
            line.append((item.image_HWC, "\n".join([item.name, " · ".join(scores)]).strip()))
        cells.append(line)
    return _grid(cells, path)


def map_figure(
    rows: Sequence[Mapped], path: str | os.PathLike[str], *, shared_scale: bool = True
) -> Path:
    """Paper Fig. 6: picture, degradation map and quality map in each row.

    Args:
        rows: at least one.
        shared_scale: one colour scale for each column of maps, so that rows can be compared;
            otherwise every map is stretched to its own range.
    """
    if not rows:
        raise ValueError("map_figure: got no rows, expected at least one picture with its maps")
    figure = _figure(8.4, 2.35 * len(rows) + 0.3)
    with _style(grid=False):
        all_axes = figure.subplots(len(rows), 3, squeeze=False)
        halves = [[row.degradation_HW for row in rows], [row.quality_HW for row in rows]]
        for index, row in enumerate(rows):
            picture: Axes = all_axes[index, 0]
            picture.imshow(row.image_HWC)
            name = row.name or ("picture" if index == 0 else "")
            picture.set_title(textwrap.fill(name, _LINE), fontsize=8)
            for column, maps in enumerate(halves, start=1):
                axes: Axes = all_axes[index, column]
                here = maps if shared_scale else [maps[index]]
                limits = (min(map(np.nanmin, here)), max(map(np.nanmax, here)))
                height, width = row.image_HWC.shape[:2]
                drawn = axes.imshow(
                    maps[index],
                    cmap="viridis",
                    vmin=float(limits[0]),
                    vmax=float(limits[1]),
                    interpolation="bilinear",
                    extent=(0, width, height, 0),
                )
                figure.colorbar(drawn, ax=axes, fraction=0.035, pad=0.02)
                if index == 0:
                    axes.set_title(("degradation map", "quality map")[column - 1])
            for axes in all_axes[index]:
                axes.set_axis_off()
        return _save(figure, path)


def psnr(image_HWC: np.ndarray, reference_HWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; inf where they are equal."""
    error = np.mean((image_HWC.astype(np.float64) - reference_HWC.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _grid(
    cells: Sequence[Sequence[tuple[np.ndarray | None, str]]], path: str | os.PathLike[str]
) -> Path:
    if not cells or not any(len(line) for line in cells):
        raise ValueError("strip: got no pictures, expected at least one row with one picture")
    columns = max(len(line) for line in cells)
    height = sum(_row_height(line) for line in cells)
    figure = _figure(_CELL * columns, height)
    with _style(grid=False):
        all_axes = figure.subplots(
            len(cells), columns, squeeze=False, height_ratios=[_row_height(line) for line in cells]
        )
        for axes in all_axes.flat:
            axes.set_axis_off()
        for line_axes, line in zip(all_axes, cells, strict=True):
            for axes, (image_HWC, caption) in zip(line_axes, line, strict=False):
                if image_HWC is not None:
                    axes.imshow(image_HWC)
                    lines = (textwrap.fill(line, _LINE) for line in caption.splitlines())
                    axes.set_title("\n".join(lines), fontsize=8)
        return _save(figure, path)


def _row_height(line: Sequence[tuple[np.ndarray | None, str]]) -> float:
    shown = [(image.shape, text) for image, text in line if image is not None]
    heights = [shape[0] / shape[1] for shape, _ in shown]
    lines = [sum(-(-len(part) // _LINE) for part in text.splitlines()) for _, text in shown]
    return _CELL * max(heights, default=1.0) + 0.2 + 0.15 * max(lines, default=0)


def _coloured(
    subsets: Sequence[Any] | None, keep_N: np.ndarray
) -> list[tuple[str, np.ndarray | slice]]:
    if subsets is None:
        return [("", slice(None))]
    name_N = np.asarray([str(item) for item in subsets])[keep_N]
    names, counts = np.unique(name_N, return_counts=True)
    kept = names[np.argsort(-counts, kind="stable")][: 8 if len(names) <= 8 else 7]
    found: list[tuple[str, np.ndarray | slice]] = [(name, name_N == name) for name in sorted(kept)]
    if len(names) > len(kept):
        found.append(("others", ~np.isin(name_N, kept)))
    return found


def _style(grid: bool = True) -> AbstractContextManager[None]:
    from matplotlib import rc_context

    settings: Any = {**_STYLE, "axes.grid": grid}
    return rc_context(settings)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # No software name or date inside, so that the same numbers give the same bytes.
    figure.savefig(target, format="png", metadata={"Software": None})
    return target
