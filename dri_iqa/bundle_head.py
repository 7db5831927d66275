"""What a bundle says of the model in it, and its verified bytes: all that scoring needs before a network is built.

Nothing here imports torch; `bundle.py` builds the network, `graph.py` runs the bundle's graph without one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dri_iqa.bundle_files import (
    CONFIG_FILE,
    BundleError,
    TensorFile,
    check_config_digest,
    read_config_file,
    read_verified,
    resolve_uri,
)
from dri_iqa.config import ConfigError, ModelConfig, StrictConfig, from_dict

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
class ProbeFacts(StrictConfig):
    """What a degradation probe tells apart and how often it is right; lies in config.json."""

    kinds: tuple[str, ...]
    """Names of the classes, in order: single operators, and `none` for clean pictures."""
    accuracy: float
    """Share of right answers on views, one crop each, of photographs it was not fitted on."""
    fitted_on: int
    """Photographs (or sub-images of them) that it was fitted on, each under every kind."""
    tested_on: int
    """Others that the accuracy was measured on, likewise."""
    unseen: bool
    """Whether the extractor never trained on the tested photographs either."""

    @property
    def chance(self) -> float:
        """What guessing would get: every kind is asked equally often."""
        return 1 / len(self.kinds)


@dataclass(frozen=True, kw_only=True)
class GraphFile(StrictConfig):
    """What config.json says about the graph beside it."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundleConfig(StrictConfig):
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
    graph: GraphFile | None = None


@dataclass(frozen=True, kw_only=True)
class BundleHead:
    """What a bundle says of its model. `digest` (SHA-256, hex) covers all of it, weights, probe and graph."""

    config: ModelConfig
    score: ScoreScale
    scoring: ScoringPolicy
    parts: tuple[str, ...]
    versions: dict[str, str]
    meta: dict[str, Any]
    digest: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class BundleFiles:
    """A bundle whose bytes are exactly those that were written; its network is not built yet."""

    head: BundleHead
    probe: ProbeFacts | None
    tensors: bytes
    """A safetensors file."""
    tensor_file: str
    """Its name, by which the graph refers to it."""
    graph: bytes | None
    """The network as ONNX, its weights those of the safetensors file; None where there is none."""


def read_bundle(directory: str) -> BundleFiles:
    """The bytes of a bundle, verified; see `bundle.load_bundle`, which builds its network as well.

    Raises:
        BundleError: no bundle there, unknown scheme, wrong format version, unknown or ill-typed configuration key, or a
            changed byte.
    """
    uri = resolve_uri(directory)
    values = read_config_file(uri)
    if values.get("kind") == EXTRACTOR_KIND:
        raise BundleError(
            f"{uri} holds a stage-1 extractor, which cannot score yet\n"
            "train stage 2 on it first, or load it with dri_iqa.extractor.load_extractor"
        )
    try:
        config = from_dict(BundleConfig, values)
    except ConfigError as error:
        raise BundleError(f"{uri}: {CONFIG_FILE}: {error}") from None
    check_config_digest(uri, values)
    if config.probe is not None and "dre" not in config.parts:
        raise BundleError(f"{uri}: {CONFIG_FILE}: a probe of degradations without an extractor")
    graph = config.graph
    return BundleFiles(
        head=BundleHead(
            config=config.model,
            score=config.score,
            scoring=config.scoring,
            parts=config.parts,
            versions=config.versions,
            meta=config.meta,
            digest=config.sha256,
            uri=uri,
        ),
        probe=config.probe,
        tensors=read_verified(uri, config.tensors.file, config.tensors.sha256),
        tensor_file=config.tensors.file,
        graph=None if graph is None else read_verified(uri, graph.file, graph.sha256),
    )
