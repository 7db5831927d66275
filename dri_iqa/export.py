"""The inference part for runtimes without this package: a torch.export program, or an ONNX model.

Shapes: B crops, C the three RGB channels, H = W = the model's crop.
"""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from dri_iqa import storage
from dri_iqa.bundle import Bundle
from dri_iqa.bundle_files import BundleError
from dri_iqa.config import to_dict
from dri_iqa.models.dri_iqa import evaluating

if TYPE_CHECKING:
    import onnx_ir

ABOUT = "dri_iqa.json"
"""Extra file of the program, or metadata of the ONNX model: side of the crops, scores' scale, the bundle's digest."""
MAX_BATCH = 1024
INPUT, OUTPUT = "image_BCHW", "score_B"
TOLERANCE = 1e-4
"""How far scores, 0 to 1, of a graph may be from the network's before it is refused; rounding makes some 1e-7."""


def export_program(bundle: Bundle) -> ExportedProgram:
    """`image_BCHW` (float32 RGB in [0, 1]) -> normalised scores (B,), for 1 to `MAX_BATCH` crops.

    Graph and weights of the inference model alone: no training part, no Python of this package.
    Scores are normalised; the bundle's scale turns them into those of its data set.
    """
    return _program(bundle.model, bundle.config.crop)


def _program(model: nn.Module, side: int) -> ExportedProgram:
    # An example of one crop would fix the batch at one.
    example_BCHW = torch.zeros(2, 3, side, side, device=next(model.parameters()).device)
    batch = Dim("batch", min=1, max=MAX_BATCH)
    with evaluating(model), torch.no_grad():
        return torch.export.export(
            model, (example_BCHW,), dynamic_shapes={"image_BCHW": {0: batch}}
        )


def save_program(bundle: Bundle, uri: str) -> None:
    """Write the program for `torch.export.load`, whole or not at all.

    Args:
        bundle: what is exported.
        uri: the file, by custom `.pt2`; local or `s3://`.
    """
    target = io.BytesIO()
    torch.export.save(export_program(bundle), target, extra_files={ABOUT: _about(bundle)})
    storage.write_bytes(uri, target.getvalue())


def save_onnx(bundle: Bundle, uri: str) -> None:
    """Write the same function as an ONNX model with its weights, whole or not at all.

    Args:
        bundle: what is exported, on the CPU; one with a graph in a second, another in a minute.
        uri: the file, by custom `.onnx`; local or `s3://`.

    Raises:
        ValueError: without the packages that write it.
    """
    ir = import_onnx_ir()
    if bundle.graph is None:
        model = _onnx(bundle.model, bundle.config.crop)
    else:
        model = _with_weights(ir.serde.deserialize_model(_parse(bundle.graph)), bundle.model)
    model.metadata_props[ABOUT] = _about(bundle)
    storage.write_bytes(uri, _bytes(model))


def _about(bundle: Bundle) -> str:
    about = {
        "crop": bundle.config.crop,
        "input": "RGB crops (B, 3, crop, crop), float32 in [0, 1]",
        "output": "normalised scores (B,); score = lo + (hi - lo) x, lo and hi swapped where lower is better",
        "score": to_dict(bundle.score),
        "bundle": bundle.digest,
    }
    return json.dumps(about)


def graph_beside(
    tensors: bytes, tensor_file: str, model: nn.Module, side: int, graph: bytes | None = None
) -> bytes:
    """The network as an ONNX model whose weights are those of a safetensors file beside it.

    Args:
        tensors: the safetensors file's bytes; every parameter and buffer of the network is in it by name.
        tensor_file: its name.
        model: in evaluation mode, on the CPU.
        side: of its crops.
        graph: what was made for the same network before; only checked then.

    Raises:
        BundleError: a tensor that the file lacks, or a graph whose scores are not the network's.
        ValueError: without the packages that write it.
    """
    data = _make_graph(tensors, tensor_file, model, side) if graph is None else graph
    _check(data, tensors, tensor_file, model, side)
    return data


def _make_graph(tensors: bytes, tensor_file: str, model: nn.Module, side: int) -> bytes:
    ir = import_onnx_ir()
    places, own = _places(tensors), model.state_dict()
    if missing := sorted(own.keys() - places.keys()):
        raise BundleError(f"no graph of a part of a network: {missing[0]} is not kept")
    made = _onnx(model, side)
    for name, value in made.graph.initializers.items():
        if name in own:  # others are tables of the architecture, such as a window's mask
            offset, length = places[name]
            value.const_value = ir.ExternalTensor(
                tensor_file, offset, length, value.dtype, shape=value.shape, name=name
            )
    return _bytes(made)


def _parse(graph: bytes) -> Any:
    import onnx

    return onnx.ModelProto.FromString(graph)


def _with_weights(graph: onnx_ir.Model, model: nn.Module) -> onnx_ir.Model:
    import onnx_ir as ir

    own = model.state_dict()
    for name, value in graph.graph.initializers.items():
        if name in own:
            value.const_value = ir.tensor(own[name].numpy(), name=name)
    return graph


def import_onnx_ir() -> Any:
    """What writes ONNX models.

    Raises:
        ValueError: it is not installed; the message says how to.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ValueError(
            f"writing ONNX needs {error.name}\nInstall it with pip install 'dri-iqa[onnx]'."
        ) from None
    return onnx_ir


def _onnx(model: nn.Module, side: int) -> onnx_ir.Model:
    """The network in ONNX, with every tensor of its state under its own name, unchanged."""
    from onnxscript import optimizer

    with evaluating(model), torch.no_grad():
        program = torch.onnx.export(
            _program(model, side),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    assert program is not None
    made, own = program.model, model.state_dict()
    # Constants become tables once; what depends on weights is left to the runtime, or they would be kept twice.
    optimizer.inline(made)
    optimizer.fold_constants(
        made,
        should_fold=lambda node: (
            False if any(value is not None and value.name in own for value in node.inputs) else None
        ),
    )
    optimizer.remove_unused_nodes(made)
    _forget_sources(made)
    return made


def _forget_sources(model: onnx_ir.Model) -> None:
    """Drop where in which file each node comes from: four fifths of the bytes, and paths of this machine."""
    graph = model.graph
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()


def _bytes(model: onnx_ir.Model) -> bytes:
    import onnx_ir

    return onnx_ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def _places(tensors: bytes) -> dict[str, tuple[int, int]]:
    """Offset and length of every tensor in a safetensors file, in bytes."""
    (length,) = struct.unpack("<Q", tensors[:8])
    start = 8 + length
    header = json.loads(tensors[8:start])
    header.pop("__metadata__", None)
    places = {name: said["data_offsets"] for name, said in header.items()}
    return {name: (start + first, end - first) for name, (first, end) in places.items()}


def _check(graph: bytes, tensors: bytes, tensor_file: str, model: nn.Module, side: int) -> None:
    from dri_iqa.graph import Graph

    rng = np.random.default_rng(0)
    noise_BCHW = rng.random((2, 3, side, side), dtype=np.float32)
    ramp_HW = np.add.outer(*[np.linspace(0, 0.5, side, dtype=np.float32)] * 2)
    image_BCHW = np.concatenate((noise_BCHW, np.broadcast_to(ramp_HW, (1, 3, side, side))))
    with evaluating(model), torch.no_grad():
        expected_B = model(torch.from_numpy(image_BCHW)).numpy()
    found_B = Graph(graph, tensors, tensor_file)(image_BCHW)
    apart = float(np.abs(found_B - expected_B).max())
    if not apart <= TOLERANCE:
        raise BundleError(f"no graph: its scores are {apart:.2g} away from the network's")
