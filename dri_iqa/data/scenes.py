"""Scenes: near-duplicate photographs that a split must keep together.

Two photographs are of one scene where the correlation of their mean-removed 32 x 32 grey thumbnails
exceeds .95; scenes are the connected components of that relation. BIQ2021's public split, for
example, has 12 % of its test images in scenes that it also trains on.

Shape suffixes: N images, D the pixels of a thumbnail, H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 32
THRESHOLD = 0.95


def thumbnail(image_HWC: np.ndarray) -> np.ndarray:
    """A picture's mean-removed grey thumbnail of unit length, float32 of 32 * 32 = D numbers.

    Products of two of them are correlations. A picture of one colour gives zeros: it is like none.
    """
    grey_HW = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey_HW, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    centred_D = small.ravel() - small.mean()
    length = float(np.linalg.norm(centred_D))
    return centred_D / length if length > 1e-3 else np.zeros_like(centred_D)


def group_scenes(
    thumbnails_ND: np.ndarray, threshold: float = THRESHOLD, rows: int = 1024
) -> np.ndarray:
    """The scene of every photograph: int64 numbers in the order of first appearance.

    Args:
        thumbnails_ND: as `thumbnail` makes them.
        threshold: correlation above which two photographs are of one scene.
        rows: photographs compared with all others at a time; memory is rows x N numbers.
    """
    count = len(thumbnails_ND)
    pairs = [
        np.add(
            np.argwhere(thumbnails_ND[start : start + rows] @ thumbnails_ND.T > threshold),
            (start, 0),
        )
        for start in range(0, count, rows)
    ]
    left, right = np.concatenate(pairs).T if count else (np.empty(0, int), np.empty(0, int))
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, scene = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[scene]
