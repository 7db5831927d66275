"""A bundle's network as ONNX Runtime runs it: on the CPU, in single precision, without torch.

Importing torch and building the network takes longer than scoring a dozen photographs with it, and its CPU kernels are
slower than these. The graph (`graph.onnx`, see `bundle.py`) holds no weights: it says where they lie in the bundle's
safetensors file, whose verified bytes are handed over here, so that no file is opened on the graph's word.

Shapes: B crops, C channels, H height, W width, K crops of one picture.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import numpy as np

from dri_iqa.bundle_files import BundleError
from dri_iqa.bundle_head import BundleFiles
from dri_iqa.crops import cut_crops, micro_batch

_NOWHERE = os.devnull
"""Folder of all other files that a graph might ask for: none can be in it."""
_ERRORS_ONLY = 3


def has_runtime() -> bool:
    """Whether ONNX Runtime is installed; platforms without a wheel score with torch."""
    return importlib.util.find_spec("onnxruntime") is not None


class Graph:
    """An ONNX model whose weights are those of a safetensors file.

    Args:
        graph: the model's bytes.
        tensors: the safetensors file's bytes.
        tensor_file: its name, as the graph has it.
        threads: of one product; default: torch's number in a process that has torch, else OMP_NUM_THREADS, else all
            cores that this process may use.

    Raises:
        BundleError: a graph that cannot be run with these tensors.
    """

    def __init__(
        self, graph: bytes, tensors: bytes, tensor_file: str, *, threads: int | None = None
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = _threads() if threads is None else threads
        options.log_severity_level = _ERRORS_ONLY
        options.use_deterministic_compute = True
        # Threads that wait for the next picture must not keep a core from decoding it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _NOWHERE
        )
        options.add_external_initializers_from_files_in_memory(
            [tensor_file], [tensors], [len(tensors)]
        )
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # kinds of its own, which it does not document
            raise BundleError(f"the graph cannot be run: {str(error).splitlines()[0]}") from None
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image_BCHW: np.ndarray) -> np.ndarray:
        """Normalised scores (B,), float32, of float32 RGB crops in [0, 1]."""
        (score_B,) = self._session.run(None, {self._input: image_BCHW})
        return np.asarray(score_B)


class GraphRunner:
    """Crops of a picture to scores by a bundle's graph, in micro-batches.

    Raises:
        BundleError: a graph that cannot be run with the bundle's tensors.
    """

    def __init__(self, files: BundleFiles) -> None:
        assert files.graph is not None
        try:
            self._graph = Graph(files.graph, files.tensors, files.tensor_file)
        except BundleError as error:
            raise BundleError(
                f"{files.head.uri}: {error}\nwrite it again with dri-iqa repack --graph"
            ) from None
        self.crop = files.head.config.crop

    def predict(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> np.ndarray:
        """Normalised scores (K,), float64, of the crops of a uint8 picture at (x, y) positions."""
        size = micro_batch(self.crop, "cpu")
        scores = [
            self._graph(unit(cut_crops(image_HWC, position_K2[start : start + size], self.crop)))
            for start in range(0, len(position_K2), size)
        ]
        return np.concatenate(scores).astype(np.float64)


def unit(crop_BHWC: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, C) as float32 (B, C, H, W) in [0, 1]."""
    pixel_BCHW = crop_BHWC.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    pixel_BCHW /= 255
    return pixel_BCHW


def _threads() -> int:
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
