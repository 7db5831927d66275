"""A picture of what the two halves hold: every view a dot, coloured by degradation and by content.

The paper's Figure 6 shows two feature maps and claims that the halves differ; `probe.py` has the
numbers, this is the view of them.

Shapes: N views, F features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from dri_iqa.degradations import GROUPS
from dri_iqa.evaluation.figures import COLOURS, _figure, _save, _style
from dri_iqa.evaluation.probe import TYPES, Views

SHOWN_IMAGES = 24
"""Images whose views are drawn; eight of them get a colour in the plots by content."""
_TITLES = {"up": "upper half", "low": "lower half"}


def halves_figure(
    views: Views, features: Mapping[str, Tensor], path: str | os.PathLike[str], title: str = ""
) -> Path:
    """Draw both halves in the plane, once by group of degradation types, once by image.

    Args:
        views: of held-out images.
        features: {"up", "low"}, (N, F) each.
        path: of the PNG.
        title: above the plots.
    """
    image_N = np.unique(views.image_N.numpy(), return_inverse=True)[1]
    keep_N = image_N < SHOWN_IMAGES
    image_N = image_N[keep_N]
    group_of = {name: number for number, names in enumerate(GROUPS.values()) for name in names}
    group_N = np.array([group_of[name] for name in TYPES])[views.type_N.numpy()[keep_N]]
    figure = _figure(9, 8)
    with _style(grid=False):
        all_axes = figure.subplots(2, 2)
        for row, (half, features_NF) in zip(all_axes, features.items(), strict=True):
            points_N2, method = embed(features_NF.numpy()[keep_N])
            for axes, by in zip(row, ("type", "content"), strict=True):
                if by == "type":
                    for number, name in enumerate(GROUPS):
                        dots_N2 = points_N2[group_N == number]
                        axes.scatter(*dots_N2.T, s=6, color=COLOURS[number], label=name)
                else:
                    axes.scatter(*points_N2[image_N >= 8].T, s=5, color="#d0d0d0")
                    for number in range(8):
                        axes.scatter(*points_N2[image_N == number].T, s=6, color=COLOURS[number])
                axes.set(title=f"{_TITLES[half]} by {by} ({method})", xticks=[], yticks=[])
        handles, labels = all_axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7, markerscale=2)
        figure.suptitle(title or "Every dot a view; by content: eight images in colour")
        return _save(figure, path)


def embed(features_NF: np.ndarray) -> tuple[np.ndarray, str]:
    """Features in the plane, (N, 2), and the name of the method: t-SNE where scikit-learn is
    installed, else the first two principal components.
    """
    centred_NF = features_NF - features_NF.mean(0)
    scaled_NF = centred_NF / np.maximum(centred_NF.std(0), 1e-8)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        axes_FF = np.linalg.svd(scaled_NF, full_matrices=False)[2]
        return scaled_NF @ axes_FF[:2].T, "PCA"
    perplexity = min(30.0, (len(scaled_NF) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled_NF), "t-SNE"
