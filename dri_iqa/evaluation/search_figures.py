"""The figures of a search: every trial as a line through its dials, and how much each dial decides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dri_iqa.evaluation.figures import COLOURS, _figure, _save, _style


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One axis: a searched value."""

    name: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies on the axis, in [0, 1]."""
        low, high, value = (
            np.log(number) if self.log else number for number in (self.low, self.high, value)
        )
        return float((value - low) / (high - low)) if high > low else 0.5


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line: the values of the dials in their order, what it reached, and whether it was stopped before its end."""

    values: tuple[float, ...]
    reached: float
    stopped: bool


def parallel_coordinates(
    dials: Sequence[Dial],
    trials: Sequence[Trial],
    path: str | os.PathLike[str],
    *,
    metric: str,
    title: str = "",
) -> Path:
    """Every trial as a line through its values to what it reached; the best is thick, stopped ones are dashed.

    Args:
        dials: at least one.
        trials: at least one; those that reached nothing are left out before.
        path: of the PNG file.
        metric: name of the last axis; larger is better.
        title: above it.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    reached_N = np.array([trial.reached for trial in trials])
    low, high = float(reached_N.min()), float(reached_N.max())
    last = Dial(name=metric, low=low, high=high)
    norm, colours = Normalize(low, high if high > low else low + 1), colormaps["viridis_r"]
    finished = [number for number, trial in enumerate(trials) if not trial.stopped]
    best = max(finished or range(len(trials)), key=lambda number: reached_N[number])
    with _style(grid=False):
        figure = _figure(2.2 + 1.7 * len(dials), 4.0)
        axes = figure.add_subplot()
        for number in sorted(range(len(trials)), key=lambda one: (one == best, reached_N[one])):
            trial = trials[number]
            heights = [dial.place(v) for dial, v in zip(dials, trial.values, strict=True)]
            axes.plot(
                [*heights, last.place(trial.reached)],
                color=colours(norm(trial.reached)),
                linewidth=3.0 if number == best else 1.2,
                linestyle="--" if trial.stopped else "-",
                marker="o",
                markersize=5 if number == best else 3,
                clip_on=False,
            )
        for place, dial in enumerate([*dials, last]):
            axes.axvline(place, color="#888888", linewidth=0.8, zorder=0)
            for height, value in ((0.0, dial.low), (1.0, dial.high)):
                axes.annotate(
                    f"{value:.3g}",
                    (place, height),
                    xytext=(0, 9 if height else -9),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if height else "top",
                    fontsize=8,
                    color="#555555",
                )
        names = [f"{dial.name}\n(log)" if dial.log else dial.name for dial in [*dials, last]]
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", length=0, pad=20)
        axes.set_yticks([])
        axes.set_ylim(-0.02, 1.02)
        axes.spines[["left", "bottom"]].set_visible(False)
        stopped = len(trials) - len(finished)
        below = f"{len(trials)} trials, {stopped} stopped early (dashed); the best one is thick"
        axes.set_title(f"{title}\n{below}".strip(), pad=22)
        if high > low:
            figure.colorbar(
                ScalarMappable(norm, colours), ax=axes, label=metric, fraction=0.04, pad=0.06
            )
        return _save(figure, path)


def importance_bars(
    importance: Mapping[str, float], path: str | os.PathLike[str], *, title: str = ""
) -> Path:
    """Share of the differences between trials that each dial explains.

    Args:
        importance: name -> share in [0, 1].
        path: of the PNG file.
        title: above it.
    """
    names = sorted(importance, key=lambda name: importance[name])
    with _style():
        figure = _figure(5.6, 1.2 + 0.4 * len(names))
        axes = figure.add_subplot()
        bars = axes.barh(names, [importance[name] for name in names], color=COLOURS[0], height=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("share of the variance that it explains (fANOVA)")
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        return _save(figure, path)
