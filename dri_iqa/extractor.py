"""The artefact of stage 1: the trained extractor with everything that stage 2 carries on.

The same two files as a scoring bundle, with the same guarantees (digests, no code, refused by name
if anything differs), but for an extractor, which cannot score yet:

    config.json        format_version, kind = extractor, extractor (crop, dre), tensors, versions,
                       meta, sha256 (of all the above)
    model.safetensors  query encoder and heads, key encoder, queues with their metadata
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dri_iqa.bundle_files import (
    CONFIG_FILE,
    FORMAT_VERSION,
    BundleError,
    TensorFile,
    check_config_digest,
    check_tensors,
    pack,
    read_config_file,
    read_tensors,
    resolve_uri,
    seal,
    versions,
)
from dri_iqa.bundle_head import EXTRACTOR_KIND
from dri_iqa.config import ConfigError, DREConfig, StrictConfig, from_dict, to_dict
from dri_iqa.models.dre import DRE

_QUERY = "query."
"""What the query's tensors begin with in a stage-1 state."""


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig(StrictConfig):
    """What decides the extractor's shapes."""

    crop: int
    """Side of the crops it was trained on, in pixels."""
    dre: DREConfig
    """Widths, strides, normalisation, heads."""


@dataclass(frozen=True, kw_only=True)
class _File(StrictConfig):
    """The schema of config.json."""

    format_version: int
    kind: Literal["extractor"]
    extractor: ExtractorConfig
    tensors: TensorFile
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A loaded extractor. `digest` (SHA-256, hex) covers configuration, meta and weights."""

    config: ExtractorConfig
    model: DRE
    """Encoder and heads, in evaluation mode."""
    state: dict[str, Tensor]
    """The whole stage-1 state: what stage 2 starts from."""
    meta: dict[str, Any]
    versions: dict[str, str]
    digest: str
    uri: str


def save_extractor(
    state: Mapping[str, Tensor],
    directory: str | os.PathLike[str],
    *,
    config: ExtractorConfig,
    meta: dict[str, Any],
) -> str:
    """Write the state of a finished stage 1 and return its digest.

    Args:
        state: `PretrainStage.state_dict()`.
        directory: local path, `file://` or `s3://` URI of the folder; appears when complete.
        config: of the extractor.
        meta: plain JSON data to keep with it (data digests, settings, commit, ...).

    Raises:
        BundleError: a non-finite weight, meta that is not JSON, or a folder that holds something
            else.
    """
    data, file = pack(state)
    head = {
        "format_version": FORMAT_VERSION,
        "kind": EXTRACTOR_KIND,
        "extractor": to_dict(config),
        "tensors": to_dict(file),
        "versions": versions(),
        "meta": meta,
    }
    return seal(directory, head, data)


def load_extractor(
    directory: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> Extractor:
    """Load an extractor and check that it is exactly what was written.

    Args:
        directory: as for `load_bundle`.
        device: for encoder and heads; `state` stays on the CPU.

    Raises:
        BundleError: nothing there, a scoring bundle, another format, or a changed, missing or extra
            tensor; always by name.
    """
    uri = resolve_uri(str(directory))
    values = read_config_file(uri)
    if values.get("kind") != EXTRACTOR_KIND:
        raise BundleError(
            f"{uri} holds a whole scoring model, not a stage-1 extractor\n"
            "load it with dri_iqa.load_model, or name the folder that stage 1 wrote"
        )
    try:
        file = from_dict(_File, values)
    except ConfigError as error:
        raise BundleError(f"{uri}: {CONFIG_FILE}: {error}") from None
    check_config_digest(uri, values)
    state = read_tensors(uri, file.tensors)
    model = DRE(file.extractor.dre)
    query = {
        name.removeprefix(_QUERY): tensor
        for name, tensor in state.items()
        if name.startswith(_QUERY)
    }
    check_tensors(uri, query, model.state_dict())
    model.load_state_dict(query)
    return Extractor(
        config=file.extractor,
        model=model.to(device).eval(),
        state=state,
        meta=file.meta,
        versions=file.versions,
        digest=file.sha256,
        uri=uri,
    )
