"""A bundle to pass on: with a crop policy of its own, and without the paths of the machine that made it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dri_iqa.bundle import Bundle, save_bundle
from dri_iqa.crops import parse_crops


def repack(
    bundle: Bundle, directory: str, *, crops: str | None = None, graph: bool | None = None
) -> str:
    """Write the same model as another bundle; scores of the same crops stay the same.

    Files that initial weights came from are kept by their name alone.

    Args:
        bundle: loaded, on the CPU.
        directory: local path, `file://` or `s3://` URI of the new bundle's folder.
        crops: the policy that is used where none is asked for; None keeps the old one.
        graph: with one (see `save_bundle`) or without; None: as the old one.

    Returns:
        The new bundle's digest. `meta["repacked"]` names the old one.

    Raises:
        ValueError: no such policy, or a graph without the packages that write it.
        BundleError: a folder that holds something else.
    """
    scoring = bundle.scoring
    if crops is not None:
        parse_crops(crops)
        scoring = replace(scoring, crops=crops)
    backbone = bundle.config.backbone
    return save_bundle(
        bundle.model,
        directory,
        model_config=replace(
            bundle.config, backbone=replace(backbone, weights=_name(backbone.weights))
        ),
        score=bundle.score,
        meta={**_without_paths(bundle.meta), "repacked": bundle.digest},
        scoring=scoring,
        probe=bundle.probe,
        graph=False if graph is False else bundle.graph or bool(graph),
    )


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(item, name) for name, item in value.items()}
    return _name(value) if key == "weights" and isinstance(value, str) else value


def _name(weights: str) -> str:
    """Last part of a path or URI; words such as `pretrained` are their own."""
    return weights.rstrip("/").rpartition("/")[2]
