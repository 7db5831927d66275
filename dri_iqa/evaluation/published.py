"""What the paper and MANIQA's authors published, to stand beside a run's own numbers."""

from __future__ import annotations

from typing import Any

NAMES = {
    "live": "LIVE",
    "kadid10k": "KADID-10k",
    "koniq10k": "KonIQ-10k",
    "livec": "CLIVE",
    "pipal": "PIPAL",
}
"""Data sets of the tables below, by their names here."""

PUBLISHED: tuple[tuple[str, str, str, float, float], ...] = (
    ("paper, Table 2", "DRI-IQA", "live", 0.982, 0.984),
    ("paper, Table 2", "DRI-IQA", "kadid10k", 0.941, 0.943),
    ("paper, Table 2", "DRI-IQA", "koniq10k", 0.936, 0.948),
    ("paper, Table 2", "DRI-IQA", "livec", 0.861, 0.886),
    ("paper, Table 3", "V1", "pipal", 0.690, 0.714),
    ("paper, Table 3", "V2", "pipal", 0.693, 0.720),
    ("paper, Table 3", "V3", "pipal", 0.696, 0.723),
    ("paper, Table 3", "proposed", "pipal", 0.698, 0.730),
    ("paper, Table 3", "V1", "koniq10k", 0.931, 0.945),
    ("paper, Table 3", "V2", "koniq10k", 0.934, 0.947),
    ("paper, Table 3", "V3", "koniq10k", 0.934, 0.948),
    ("paper, Table 3", "proposed", "koniq10k", 0.936, 0.948),
    ("MANIQA's README", "MANIQA", "kadid10k", 0.939, 0.939),
    ("MANIQA's README", "MANIQA", "koniq10k", 0.930, 0.946),
)
"""Source, model, data set, SROCC, PLCC."""


def published_rows(data: str) -> list[dict[str, Any]]:
    """The published values as rows of a results table.

    Args:
        data: the data set of the numbers that they will stand beside, e.g. `koniq10k`.

    Returns:
        Rows with source, model, data, srocc, plcc and comparable, which says whether the data set
        is the same; even then splits and seeds are others.
    """
    return [
        {
            "source": source,
            "model": model,
            "data": NAMES[name],
            "srocc": srocc,
            "plcc": plcc,
            "comparable": "same data set, other splits" if name == data else "no: other data",
        }
        for source, model, name, srocc, plcc in PUBLISHED
    ]
