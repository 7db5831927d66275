"""The one artefact format of a trained model: a folder with `config.json` and `model.safetensors`.

Nothing in a bundle executes when it is loaded, and nothing about the model is left to the reader's
memory: architecture, score scale, crop policy, versions and a digest of the weights are all inside.
A score can therefore be traced to the exact bytes that made it, and a bundle that is not exactly
what was written is refused with the name of what is wrong.

    config.json        format_version, model (ModelConfig), score (ScoreScale), scoring, parts,
                       tensors (file, count, sha256), versions, meta, sha256 (of all the above)
    model.safetensors  every parameter and buffer of the parts that were kept
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from dri_iqa.config import ConfigError, ModelConfig, StrictConfig, from_dict, to_dict

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"
EXTRACTOR_KIND = "extractor"
"""`kind` in the config.json of a stage-1 extractor (`dri_iqa/extractor.py`); scoring bundles have none."""
URI_GROUP = "dri_iqa.model_uris"
"""Entry-point group: entry name = URI scheme, object = callable(uri) -> local bundle folder."""


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the bundle and what is wrong with it."""


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
class _Tensors(StrictConfig):
    file: str
    count: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _BundleConfig(StrictConfig):
    """The schema of config.json."""

    format_version: int
    model: ModelConfig
    score: ScoreScale
    scoring: ScoringPolicy
    parts: tuple[str, ...]
    tensors: _Tensors
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded bundle. `digest` (SHA-256, hex) covers configuration, scale, meta and weights."""

    config: ModelConfig
    model: nn.Module
    score: ScoreScale
    scoring: ScoringPolicy
    parts: tuple[str, ...]
    versions: dict[str, str]
    meta: dict[str, Any]
    digest: str
    uri: str


def save_bundle(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    model_config: ModelConfig,
    score: ScoreScale,
    meta: dict[str, Any],
    scoring: ScoringPolicy | None = None,
    parts: Iterable[str] | None = None,
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

    Raises:
        BundleError: a non-finite weight, meta that is not JSON, an unknown part, or a folder that
            holds something else.
    """
    tensors = _tensors(model, parts)
    data = safetensors.torch.save(tensors)
    head = {
        "format_version": FORMAT_VERSION,
        "model": to_dict(model_config),
        "score": to_dict(score),
        "scoring": to_dict(scoring or ScoringPolicy()),
        "parts": _parts(tensors),
        "tensors": {"file": TENSOR_FILE, "count": len(tensors), "sha256": _sha256(data)},
        "versions": _versions(),
        "meta": meta,
    }
    return _seal(directory, head, data)


def _seal(directory: str | os.PathLike[str], head: dict[str, Any], data: bytes) -> str:
    """Publish configuration and tensors under the configuration's digest, and return it."""
    try:
        digest = _config_digest(head)
    except (TypeError, ValueError) as error:
        raise BundleError(f"meta must be plain JSON data: {error}") from None
    text = json.dumps({**head, "sha256": digest}, indent=2, allow_nan=False) + "\n"
    _publish(str(directory), {TENSOR_FILE: data, CONFIG_FILE: text.encode()})
    return digest


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
    data = _read(uri, config.tensors.file)
    if _sha256(data) != config.tensors.sha256:
        raise BundleError(
            f"{uri}: {config.tensors.file} is not the file that was written (SHA-256 differs)\n"
            "copy the bundle again from where it was made"
        )
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        raise BundleError(f"{uri}: {config.tensors.file}: {error}") from None
    model = build_model(config.model, backbone_weights=False)
    for name in [name for name, _ in model.named_children() if name not in config.parts]:
        setattr(model, name, None)  # better absent than silently at its random initial weights
    _check_tensors(uri, tensors, model.state_dict())
    model.load_state_dict(tensors, strict=True)
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
    )


def resolve_uri(uri: str) -> str:
    """A local path or an `s3://` URI of a bundle's folder, whatever scheme was asked for."""
    scheme = _scheme(uri)
    if scheme is None or scheme == "s3":
        return uri
    if scheme == "file":
        return _local_path(uri)
    found = {entry.name: entry for entry in metadata.entry_points(group=URI_GROUP)}
    if scheme not in found:
        known = ", ".join(f"{name}:" for name in ("file", "s3", *sorted(found)))
        raise BundleError(
            f"cannot open model {uri!r}: nothing installed reads {scheme}: URIs\n"
            f"expected the folder of a bundle, or a URI that starts with one of {known}"
        )
    try:
        fetch = cast("Callable[[str], str | os.PathLike[str]]", found[scheme].load())
    except ImportError as error:
        raise BundleError(
            f"cannot open model {uri!r}: reading {scheme}: URIs needs {error.name or error}\n"
            "install it, for example with pip install 'dri-iqa[pipelines]'"
        ) from None
    return str(fetch(uri))


def _scheme(uri: str) -> str | None:
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", uri)
    return None if match is None or Path(uri).exists() else match[1].lower()


def _local_path(uri: str) -> str:
    if not uri.startswith("file:"):
        return uri
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(uri).path)


def _read(uri: str, name: str) -> bytes:
    if name != Path(name).name:
        raise BundleError(f"{uri}: {name!r} is not a file name")
    try:
        if _scheme(uri) == "s3":
            from dri_iqa import storage

            return storage.read_bytes(storage.join(uri, name))
        return (Path(uri).expanduser() / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"no model at {uri!r}: {name} not found\n"
            "expected the folder of a bundle, with config.json and model.safetensors in it"
        ) from None


def read_config_file(uri: str) -> dict[str, Any]:
    """The plain data of a config.json of the right version.

    Raises:
        BundleError: no such file, not JSON, or another format version.
    """
    try:
        values = json.loads(_read(uri, CONFIG_FILE))
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{uri}: {CONFIG_FILE} is not JSON: {error}") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{uri}: bundle format version {version!r}, expected {FORMAT_VERSION}\n"
            "update dri-iqa, or export the model again with this version"
        )
    return values


def _check_config_digest(uri: str, values: dict[str, Any]) -> None:
    content = {key: value for key, value in values.items() if key != "sha256"}
    if _config_digest(content) != values["sha256"]:
        raise BundleError(
            f"{uri}: {CONFIG_FILE} was changed after it was written (SHA-256 differs)\n"
            "copy the bundle again from where it was made"
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
    _check_config_digest(uri, values)
    return config


def _check_tensors(uri: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        words = [f"missing tensor {_few(missing)}"] if missing else []
        words += [f"extra tensor {_few(extra)}"] if extra else []
        raise BundleError(f"{uri}: " + "; ".join(words))
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise BundleError(
                f"{uri}: tensor {name}: got {_kind(found[name])}, expected {_kind(tensor)}"
            )


def _few(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _tensors(model: nn.Module, parts: Iterable[str] | None) -> dict[str, Tensor]:
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if parts is not None:
        wanted = set(parts)
        if unknown := wanted - set(_parts(state)):
            raise BundleError(f"unknown part {sorted(unknown)[0]!r}, got {_parts(state)}")
        state = {name: value for name, value in state.items() if name.split(".")[0] in wanted}
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BundleError(f"tensor {name} holds non-finite values: not saved")
    # Clones, because safetensors refuses tensors that share memory.
    return {name: value.clone().contiguous() for name, value in state.items()}


def _parts(tensors: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in tensors})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("dri-iqa", "torch", "timm", "numpy", "pillow", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _config_digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _sha256(canonical.encode())


def _publish(uri: str, files: dict[str, bytes]) -> None:
    """Write the files so that a reader sees the whole bundle or none."""
    if _scheme(uri) not in (None, "file"):
        from dri_iqa import storage

        for name, data in files.items():  # in order: config.json last makes the bundle visible
            storage.write_bytes(storage.join(uri, name), data)
        return
    target = Path(_local_path(uri)).expanduser().absolute()
    if target.exists() and not _replaceable(target):
        raise BundleError(f"{target} holds something that is not a bundle\nchoose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    fresh = target.with_name(f".{target.name}.new-{mark}")
    stale = target.with_name(f".{target.name}.old-{mark}")
    try:
        fresh.mkdir()
        for name, data in files.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            target.rename(stale)
        fresh.rename(target)
    except BaseException:
        if stale.exists() and not target.exists():
            stale.rename(target)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _replaceable(target: Path) -> bool:
    """Whether a path is an older bundle or an empty folder."""
    return target.is_dir() and ((target / CONFIG_FILE).is_file() or not any(target.iterdir()))
