"""The one artefact format of a trained model: a folder with `config.json` and `model.safetensors`.

Nothing in a bundle executes when it is loaded, and nothing about the model is left to the reader's
memory: architecture, score scale, crop policy, versions and a digest of the weights are all inside.
A score can therefore be traced to the exact bytes that made it, and a bundle that is not exactly
what was written is refused with the name of what is wrong.

    config.json        format_version, model (ModelConfig), score (ScoreScale), scoring, parts,
                       tensors (file, count, sha256), versions, meta, probe (ProbeFacts, optional),
                       graph (file, sha256; optional), sha256 (of all the above)
    model.safetensors  every parameter and buffer of the parts that were kept, and `probe.*`
    graph.onnx         optional: the network as ONNX, with its weights where they lie in model.safetensors

A bundle is written under the lowest format version that can describe it, so that whoever can read
it is told that they can: 1 without a probe of degradations (`dri_iqa/probe.py`), 2 with one, 3 with a
graph. This package reads them all; one that only knows 1 says that it expects 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dri_iqa.bundle_files import (
    CONFIG_FILE,
    FORMAT_VERSION,
    GRAPH_FILE,
    GRAPH_VERSION,
    PROBE_VERSION,
    TENSOR_FILE,
    URI_GROUP,
    BundleError,
    check_tensors,
    pack,
    parse_tensors,
    read_config_file,
    resolve_uri,
    seal,
    sha256,
    versions,
)
from dri_iqa.bundle_head import (
    EXTRACTOR_KIND,
    BundleFiles,
    BundleHead,
    GraphFile,
    ScoreScale,
    ScoringPolicy,
    read_bundle,
)
from dri_iqa.config import ModelConfig, to_dict
from dri_iqa.probe import DegradationProbe

__all__ = [
    "CONFIG_FILE",
    "EXTRACTOR_KIND",
    "FORMAT_VERSION",
    "TENSOR_FILE",
    "URI_GROUP",
    "Bundle",
    "BundleError",
    "BundleFiles",
    "ScoreScale",
    "ScoringPolicy",
    "build_bundle",
    "load_bundle",
    "read_bundle",
    "read_config_file",
    "resolve_uri",
    "save_bundle",
]


@dataclass(frozen=True, kw_only=True)
class Bundle(BundleHead):
    """A loaded bundle: what it says, and its network."""

    model: nn.Module
    probe: DegradationProbe | None = None
    """Names the degradations that the extractor sees; tensors on the CPU."""
    graph: bytes | None = None
    """The network as ONNX, by which a CPU scores without torch (`dri_iqa/graph.py`)."""


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
    graph: bool | bytes = False,
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
        graph: also write the network as ONNX, so that a CPU can score with it without torch; takes up to a minute.
            Or the one of a bundle of the same network, which is checked against this one.

    Raises:
        BundleError: a non-finite weight, meta that is not JSON, an unknown part, a folder that
            holds something else, or a graph that is not the network's.
        ValueError: `graph` without the packages that write it.
    """
    tensors = _tensors(model, parts)
    data, file = pack(tensors | (probe.tensors() if probe else {}))
    head: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": to_dict(model_config),
        "score": to_dict(score),
        "scoring": to_dict(scoring or ScoringPolicy()),
        "parts": _parts(tensors),
        "tensors": to_dict(file),
        "versions": versions(),
        "meta": meta,
    }
    files = {}
    if probe:
        head |= {"format_version": PROBE_VERSION, "probe": to_dict(probe.facts)}
    if graph:
        from dri_iqa.export import graph_beside

        given = graph if isinstance(graph, bytes) else None
        files[GRAPH_FILE] = graph_beside(data, file.file, model, model_config.crop, given)
        stated = GraphFile(file=GRAPH_FILE, sha256=sha256(files[GRAPH_FILE]))
        head |= {"format_version": GRAPH_VERSION, "graph": to_dict(stated)}
    return seal(directory, head, data, files)


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
    return build_bundle(read_bundle(str(directory)), device=device)


def build_bundle(files: BundleFiles, *, device: str | torch.device = "cpu") -> Bundle:
    """The network of a bundle's bytes, in evaluation mode on `device`.

    Raises:
        BundleError: tensors that are not those of its configuration; by name.
    """
    from dri_iqa.models import build_model

    head = files.head
    tensors = parse_tensors(f"{head.uri}: {files.tensor_file}", files.tensors)
    model = build_model(head.config, backbone_weights=False)
    for name in [name for name, _ in model.named_children() if name not in head.parts]:
        setattr(model, name, None)  # better absent than silently at its random initial weights
    expected = model.state_dict() | _probe_tensors(files)
    check_tensors(head.uri, tensors, expected)
    probe = DegradationProbe.from_tensors(files.probe, tensors) if files.probe else None
    model.load_state_dict({name: tensors[name] for name in model.state_dict()}, strict=True)
    said = {field.name: getattr(head, field.name) for field in fields(head)}
    return Bundle(**said, model=model.to(device).eval(), probe=probe, graph=files.graph)


def _tensors(model: nn.Module, parts: Iterable[str] | None) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if parts is not None:
        wanted = set(parts)
        if unknown := wanted - set(_parts(state)):
            raise BundleError(f"unknown part {sorted(unknown)[0]!r}, got {_parts(state)}")
        state = {name: value for name, value in state.items() if name.split(".")[0] in wanted}
    return state


def _probe_tensors(files: BundleFiles) -> dict[str, Tensor]:
    """What the tensors of the probe must look like, if there is one."""
    if files.probe is None:
        return {}
    dre = files.head.config.dre
    half = dre.width * 2 ** (len(dre.strides) - 1) // 2
    return DegradationProbe.empty_tensors(len(files.probe.kinds), half)


def _parts(tensors: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in tensors})
