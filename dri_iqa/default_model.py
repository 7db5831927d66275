"""Which model is used when none is named; needs nothing but the standard library."""

from __future__ import annotations

import json
import os
from pathlib import Path

MODEL_VARIABLE = "DRI_IQA_MODEL"
SHIPPED = "biq2021"
"""Folder of the bundle that comes along: trained on human scores of photographs, see its README.md."""


def default_model() -> str:
    """The environment's DRI_IQA_MODEL; else the champion of the newest run; else the model that comes along.

    Runs are those in ./runs, in this checkout and in ~/dri-iqa/runs, each with a champion.json. A champion that was
    trained on pseudo scores, as the built-in sample's is, does not stand before a model of human scores.

    Raises:
        ValueError: there is none; the message says how to get one.
    """
    if named := os.environ.get(MODEL_VARIABLE):
        return named
    shipped = shipped_model()
    homes = (Path.cwd(), Path(__file__).resolve().parents[1], Path.home() / "dri-iqa")
    files = [home / "runs" / "champion.json" for home in homes]
    there = [file for file in dict.fromkeys(files) if file.is_file()]
    for file in sorted(there, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        bundle, pseudo = _champion(file)
        if not (pseudo and shipped):
            return bundle
    if shipped is None:
        raise ValueError(
            f"no model: neither --model nor {MODEL_VARIABLE} is given and no run has made one\n"
            "Train one with 'make run', or pass --model FOLDER."
        )
    return str(shipped)


def shipped_model() -> Path | None:
    """The bundle that comes along as package data, `models/` of a checkout; None where it was left out."""
    place = Path(__file__).resolve().parent / "shipped" / SHIPPED
    return place if (place / "config.json").is_file() else None


def _champion(file: Path) -> tuple[str, bool]:
    """The bundle that a champion.json names, and whether its scores are pseudo scores."""
    try:
        pointer = json.loads(file.read_text(encoding="utf-8"))
        bundle, pseudo = str(pointer["bundle"]), pointer.get("scores") == "pseudo"
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{file} does not name a bundle\nRun 'make run' again, or pass --model FOLDER."
        ) from None
    local = "://" not in bundle and not Path(bundle).is_absolute() and ":/" not in bundle
    return str(file.parent / bundle) if local else bundle, pseudo
