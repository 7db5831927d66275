"""What a job's configuration names that must be there before it starts: weights and data."""

from __future__ import annotations

import os
from typing import Any

from dri_iqa import storage
from dri_iqa.config import ConfigError
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.records import DataError
from pipelines.runtime.config import JobConfig

HUB = "pretrained"
DRAWN = ("none", "random")
"""Weights that are drawn from the seed; `dri_iqa.models.weights.RANDOM` without importing torch."""
WITHOUT_STAGE2 = ("ingest", "pretrain", "score")
"""Jobs that build neither the backbone nor the perceptual network."""


def weights_needed(config: JobConfig) -> dict[str, str]:
    """Configuration key -> file or URI of weights, where one is named."""
    return {key: name for key, name in _weights(config).items() if name not in (HUB, *DRAWN)}


def hub_problem(config: JobConfig) -> str | None:
    """Why weights that are to come from a hub are in no registry; nothing is downloaded.

    Training says by itself where a hub cannot be reached. The perceptual networks are torchvision's own.
    """
    if _weights(config).get("model.backbone.weights") != HUB:
        return None
    import timm

    name = config.model.backbone.name
    if timm.models.is_model_pretrained(name):
        return None
    has = "no pretrained weights" if timm.is_model(name) else "no such model"
    return f"model.backbone.name={name}: timm {timm.__version__} has {has}"


def bf16_wanted(config: JobConfig) -> str | None:
    """The first configuration key that wants bf16 of processors, where one does."""
    if config.cluster.gpus_per_worker:
        return None
    wanted = {
        "stage1.optim.precision": config.stage1.optim.precision,
        "stage2.optim.precision": config.stage2.optim.precision,
    }
    if config.job == "score":
        wanted = {"score.precision": config.score.precision}
    return next((key for key, precision in wanted.items() if precision == "bf16"), None)


def model_problem(config: JobConfig) -> str | None:
    """Why the networks of stage 2 cannot be built as configured; nothing is loaded or allocated.

    Stage 2 says so as well, but only after stage 1, which may take days.
    """
    if config.job in (*WITHOUT_STAGE2, "yardstick"):
        return None
    import torch

    from dri_iqa.models import build_model

    try:
        with torch.device("meta"):
            build_model(config.model, backbone_weights=False)
    except ConfigError as error:
        return str(error)
    except (RuntimeError, NotImplementedError):
        return None  # a network that computes while it is built, which it cannot without memory
    return None


def data_needed(config: JobConfig, directory: str) -> dict[str, str]:
    """Configuration key -> folder or URI of data that the job still has to read."""
    if config.job == "score":
        named = {"score.input": config.score.input, "score.model": config.score.model}
        return {key: uri for key, uri in named.items() if uri and not uri.startswith("models:/")}
    if _ingested(directory):
        return {}
    clean = config.data.clean
    named = {
        "data.root": config.data.root,
        "data.clean.root": clean.root,
        "data.clean.exclude": clean.exclude,
    }
    return {
        key: uri if storage.is_remote(uri) else os.path.abspath(uri)
        for key, uri in named.items()
        if uri
    }


def stale_data(directory: str) -> str | None:
    """Why data that this job ingested before can no longer be used; two lines, or None."""
    ingested = _ingested(directory)
    if ingested is None:
        return None
    inputs = ingested["result"]["inputs"]
    record = storage.join(directory, "steps", "ingest.json")
    try:
        for role in ("scored", "clean"):
            found = Manifest.load(inputs[f"{role}_uri"]).digest
            if found != inputs[f"{role}_digest"]:
                return (
                    f"{inputs[f'{role}_uri']} holds the data {found[:12]}, this job ingested "
                    f"{inputs[f'{role}_digest'][:12]}\nstart a new run (run=NAME)"
                )
        if not storage.exists(inputs["split_uri"]):
            return f"{inputs['split_uri']} is missing\nremove {record} to ingest again"
    except DataError as error:
        return f"{str(error).splitlines()[0]}\nrestore it, or remove {record} to ingest again"
    return None


def _ingested(directory: str) -> dict[str, Any] | None:
    uri = storage.join(directory, "steps", "ingest.json")
    return storage.read_json(uri) if storage.exists(uri) else None


def _weights(config: JobConfig) -> dict[str, str]:
    """Configuration key -> what it names, of the networks that this job builds."""
    if config.job in WITHOUT_STAGE2:
        return {}
    found = {"model.backbone.weights": config.model.backbone.weights}
    perceptual = config.stage2.perceptual.weights
    if perceptual not in DRAWN and config.job != "yardstick":
        from dri_iqa.plan import stage2_plan

        if stage2_plan(config.stage2, has_references=True).perceptual:
            found["stage2.perceptual.weights"] = perceptual
    return found
