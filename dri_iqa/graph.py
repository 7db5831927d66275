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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dri_iqa.bundle_files import BundleError
from dri_iqa.bundle_head import BundleFiles

_NOWHERE = os.devnull
"""Folder of all other files that a graph might ask for: none can be in it."""
_ERRORS_ONLY = 3


def has_runtime() -> bool:
    """Whether ONNX Runtime is installed; platforms without a wheel score with torch."""
    return importlib.util.find_spec("onnxruntime") is not None


class Graph:
    """An ONNX model whose weights are those of a safetensors file, computed by the thread that calls it.

    Args:
        graph: the model's bytes.
        tensors: the safetensors file's bytes.
        tensor_file: its name, as the graph has it.

    Raises:
        BundleError: a graph that cannot be run with these tensors.
    """

    def __init__(self, graph: bytes, tensors: bytes, tensor_file: str) -> None:
        try:
            self._session = _session(graph, tensors, tensor_file)
        # The runtime raises kinds of its own, which it does not document; an old or a broken one, other kinds.
        except Exception as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            raise BundleError(f"the graph cannot be run: {first}") from None
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image_BCHW: np.ndarray) -> np.ndarray:
        """Normalised scores (B,), float32, of float32 RGB crops in [0, 1]."""
        (score_B,) = self._session.run(None, {self._input: image_BCHW})
        return np.asarray(score_B)


class GraphRunner:
    """Crops of pictures to scores by a bundle's graph: every crop alone, by one thread, several at a time.

    Threads that share a product wait for each other, and crops cost no more alone than together: so crops keep the
    cores busy, and a score depends on neither their number nor its neighbours.

    Args:
        files: of a bundle with a graph.
        threads: crops at a time; default: torch's number of threads in a process that has torch, else OMP_NUM_THREADS,
            else as many as the cores that this process may use.

    Raises:
        BundleError: a graph that cannot be run with the bundle's tensors.
    """

    def __init__(self, files: BundleFiles, *, threads: int | None = None) -> None:
        assert files.graph is not None
        try:
            self._graph = Graph(files.graph, files.tensors, files.tensor_file)
        except BundleError as error:
            raise BundleError(
                f"{files.head.uri}: {error}\nwrite it again with dri-iqa repack --graph"
            ) from None
        self._crop = files.head.config.crop
        threads = threads or _threads()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
        self.crops_ahead = 2 * threads

    def begin(self, image_HWC: np.ndarray, position_K2: np.ndarray) -> Callable[[], np.ndarray]:
        """See `scoring.Runner`; crops are computed from now on."""
        begun = [self._pool.submit(self._score, image_HWC, x, y) for x, y in position_K2.tolist()]
        return lambda: np.array([one.result() for one in begun], np.float64)

    def _score(self, image_HWC: np.ndarray, x: int, y: int) -> float:
        side = self._crop
        crop_CHW = image_HWC[y : y + side, x : x + side].transpose(2, 0, 1)
        pixel_CHW = crop_CHW.astype(np.float32, order="C")
        pixel_CHW /= 255
        return float(self._graph(pixel_CHW[None])[0])


def _session(graph: bytes, tensors: bytes, tensor_file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.use_deterministic_compute = True
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NOWHERE
    )
    options.add_external_initializers_from_files_in_memory([tensor_file], [tensors], [len(tensors)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


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
