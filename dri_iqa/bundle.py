"""The one artefact format of a trained model: a folder with `config.json` and `model.safetensors`.

Nothing in a bundle executes when it is loaded, and nothing about the model is left to the reader's
memory: architecture, score scale, crop policy, versions and a digest of the weights are all inside.
A score can therefore be traced to the exact bytes that made it, and a bundle that is not exactly
what was written is refused with the name of what is wrong.

    config.json        format_version, model (ModelConfig), score (ScoreScale), scoring, parts,
                       tensors (file, count, sha256), versions, meta, probe (ProbeFacts, optional),
                       sha256 (of all the above)
    model.safetensors  every parameter and buffer of the parts that were kept, and `probe.*`

A bundle is written under the lowest format version that can describe it, so that whoever can read
it is told that they can: 1 without a probe of degradations (`dri_iqa/probe.py`), 2 with one. This
package reads both; one that only knows 1 says that it expects 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dri_iqa.bundle_files import (
    CONFIG_FILE,
    FORMAT_VERSION,
    PROBE_VERSION,
    TENSOR_FILE,
    URI_GROUP,
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
from dri_iqa.config import ConfigError, ModelConfig, StrictConfig, from_dict, to_dict
from dri_iqa.probe import DegradationProbe, ProbeFacts

__all__ = [
    "CONFIG_FILE",
    "EXTRACTOR_KIND",
    "FORMAT_VERSION",
    "TENSOR_FILE",
    "URI_GROUP",
    "Bundle",
    "BundleError",
    "ScoreScale",
    "ScoringPolicy",
    "load_bundle",
    "read_config_file",
    "resolve_uri",
    "save_bundle",
]

EXTRACTOR_KIND = "extractor"
"""`kind` in the config.json of a stage-1 extractor (`dri_iqa/extractor.py`); scoring bundles have none."""


@dataclass(frozen=True, kw_only=True)
class ScoreScale(StrictConfig):
    """The label scale that the model's [0, 1] output (higher = better) stands for (paper 4.2)."""

    lo: float = 0.0
    """Smallest label of the training split, in label units."""
    hi: float = 1.0
    """Largest label of the training split, in label units."""
    higher_is_better: bool = True
    """False for scales such as DMOS, where a large label means a bad picture."""
    name: str = "score"
    """What the labels are called, e.g. "MOS (koniq10k)"."""
    kind: Literal["human", "pseudo"] = "human"
    """Whether people gave the labels or a full-reference measure computed them."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.lo < self.hi):
            raise ConfigError(f"score scale: got lo={self.lo}, hi={self.hi}, expected lo < hi")

    def normalise(self, label: Any) -> Any:
        """Labels (number or array) in label units -> [0, 1] on the training split, 1 = best."""
        unit = (label - self.lo) / (self.hi - self.lo)
        return unit if self.higher_is_better else 1.0 - unit

    def to_label(self, unit: Any) -> Any:
        """The inverse of `normalise`; values outside [0, 1] extrapolate."""
        value = unit if self.higher_is_better else 1.0 - unit
        return self.lo + value * (self.hi - self.lo)

    @property
    def span(self) -> float:
        """Label units per unit of normalised score; turns a spread into label units."""
        return self.hi - self.lo


@dataclass(frozen=True, kw_only=True)
class ScoringPolicy(StrictConfig):
    """How a picture becomes crops; part of the artefact because a score depends on it."""

    crops: str = "random25"
    """Crop policy of the published numbers: randomN, uniformN (N a square) or whole."""
    exif_transpose: bool = False
    """Turn pictures upright as EXIF says; off, as the stored pixels are what raters were shown."""


@dataclass(frozen=True, kw_only=True)
class _BundleConfig(StrictConfig):
    """The schema of config.json."""

    format_version: int
    model: ModelConfig
    score: ScoreScale
    scoring: ScoringPolicy
    parts: tuple[str, ...]
    tensors: TensorFile
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    probe: ProbeFacts | None = None


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded bundle. `digest` (SHA-256, hex) covers configuration, scale, meta, probe and weights."""

    config: ModelConfig
    model: nn.Module
    score: ScoreScale
    scoring: ScoringPolicy
    parts: tuple[str, ...]
    versions: dict[str, str]
    meta: dict[str, Any]
    digest: str
    uri: str
    probe: DegradationProbe | None = None
    """Names the degradations that the extractor sees; tensors on the CPU."""


def save_bundle(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    model_config: ModelConfig,
    score: ScoreScale,
    meta: dict[str, Any],
    scoring: ScoringPolicy | None = None,
    parts: Iterable[str] | None = None,
    probe: DegradationProbe | None = None,
) -> str:
    """Write a model as a bundle and return its digest.

    A local folder appears under its name only when it is complete (an older bundle there is
    replaced; anything else is refused). On object storage `config.json` is written last.

    Args:
        model: the whole model; parameters and buffers are stored as they are.
        directory: local path, `file://` or `s3://` URI of the bundle's folder.
        meta: plain JSON data to keep with the model (data digests, metrics, commit, ...).
        parts: top-level modules to keep, e.g. without a training-only restoration network; a part
            that is left out is absent after loading. Default: all.
        probe: of the degradations, fitted on this model's extractor.

    Raises:
        BundleError: a non-finite weight, meta that is not JSON, an unknown part, or a folder that
            holds something else.
    """
    tensors = _tensors(model, parts)
    data, file = pack(tensors | (probe.tensors() if probe else {}))
    head: dict[str, Any] = {
        "format_version": PROBE_VERSION if probe else FORMAT_VERSION,
        "model": to_dict(model_config),
        "score": to_dict(score),
        "scoring": to_dict(scoring or ScoringPolicy()),
        "parts": _parts(tensors),
        "tensors": to_dict(file),
        "versions": versions(),
        "meta": meta,
    }
    if probe:
        head["probe"] = to_dict(probe.facts)
    return seal(directory, head, data)


def load_bundle(directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Bundle:
    """Load a bundle and check that it is exactly what was written.

    Args:
        directory: local path, `file://`, `s3://`, or a URI whose scheme an installed package has
            registered under the entry-point group `dri_iqa.model_uris`.

    Returns:
        The bundle, its model in evaluation mode on `device`.

    Raises:
        BundleError: no bundle there, unknown scheme, wrong format version, unknown or ill-typed
            configuration key, changed byte, missing, extra or misshapen tensor; always by name.
    """
    from dri_iqa.models import build_model

    uri = resolve_uri(str(directory))
    config = _read_config(uri)
    tensors = read_tensors(uri, config.tensors)
    model = build_model(config.model, backbone_weights=False)
    for name in [name for name, _ in model.named_children() if name not in config.parts]:
        setattr(model, name, None)  # better absent than silently at its random initial weights
    expected = model.state_dict() | _probe_tensors(uri, config)
    check_tensors(uri, tensors, expected)
    probe = DegradationProbe.from_tensors(config.probe, tensors) if config.probe else None
    model.load_state_dict({name: tensors[name] for name in model.state_dict()}, strict=True)
    return Bundle(
        config=config.model,
        model=model.to(device).eval(),
        score=config.score,
        scoring=config.scoring,
        parts=config.parts,
        versions=config.versions,
        meta=config.meta,
        digest=config.sha256,
        uri=uri,
        probe=probe,
    )


def _read_config(uri: str) -> _BundleConfig:
    values = read_config_file(uri)
    if values.get("kind") == EXTRACTOR_KIND:
        raise BundleError(
            f"{uri} holds a stage-1 extractor, which cannot score yet\n"
            "train stage 2 on it first, or load it with dri_iqa.extractor.load_extractor"
        )
    try:
        config = from_dict(_BundleConfig, values)
    except ConfigError as error:
        raise BundleError(f"{uri}: {CONFIG_FILE}: {error}") from None
    check_config_digest(uri, values)
    return config


def _tensors(model: nn.Module, parts: Iterable[str] | None) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if parts is not None:
        wanted = set(parts)
        if unknown := wanted - set(_parts(state)):
            raise BundleError(f"unknown part {sorted(unknown)[0]!r}, got {_parts(state)}")
        state = {name: value for name, value in state.items() if name.split(".")[0] in wanted}
    return state


def _probe_tensors(uri: str, config: _BundleConfig) -> dict[str, Tensor]:
    """What the tensors of the probe must look like, if there is one."""
    if config.probe is None:
        return {}
    if "dre" not in config.parts:
        raise BundleError(f"{uri}: {CONFIG_FILE}: a probe of degradations without an extractor")
    dre = config.model.dre
    half = dre.width * 2 ** (len(dre.strides) - 1) // 2
    return DegradationProbe.empty_tensors(len(config.probe.kinds), half)


def _parts(tensors: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in tensors})
