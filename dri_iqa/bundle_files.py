"""The files of a bundle, whatever it holds: where they lie, how they are written and verified.

`bundle.py` (models that score) and `extractor.py` (stage 1) say what is in them. torch is imported by what handles
tensors, so that bytes are read and verified without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dri_iqa.config import StrictConfig

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
PROBE_VERSION = 2
"""Format version of a bundle with a probe of degradations."""
GRAPH_VERSION = 3
"""Format version of a bundle with a graph, with a probe or without."""
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"
GRAPH_FILE = "graph.onnx"
URI_GROUP = "dri_iqa.model_uris"
"""Entry-point group: entry name = URI scheme, object = callable(uri) -> local bundle folder."""


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the bundle and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class TensorFile(StrictConfig):
    """What config.json says about the tensors beside it."""

    file: str
    count: int
    sha256: str


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


def read_file(uri: str, name: str) -> bytes:
    """One file of a bundle's folder."""
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
        values = json.loads(read_file(uri, CONFIG_FILE))
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{uri}: {CONFIG_FILE} is not JSON: {error}") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version not in (FORMAT_VERSION, PROBE_VERSION, GRAPH_VERSION):
        raise BundleError(
            f"{uri}: bundle format version {version!r}, expected {FORMAT_VERSION} to {GRAPH_VERSION}\n"
            "update dri-iqa, or export the model again with this version"
        )
    return values


def read_verified(uri: str, name: str, stated: str) -> bytes:
    """A file of a bundle, if it is the bytes whose SHA-256 its config.json states.

    Raises:
        BundleError: no such file, or a changed byte.
    """
    data = read_file(uri, name)
    if sha256(data) != stated:
        raise BundleError(
            f"{uri}: {name} is not the file that was written (SHA-256 differs)\n"
            "copy the bundle again from where it was made"
        )
    return data


def read_tensors(uri: str, stated: TensorFile) -> dict[str, Tensor]:
    """The tensors of a bundle, if they are the bytes that its config.json vouches for.

    Raises:
        BundleError: no such file, a changed byte, or a file that is none of safetensors.
    """
    return parse_tensors(f"{uri}: {stated.file}", read_verified(uri, stated.file, stated.sha256))


def parse_tensors(where: str, data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file.

    Raises:
        BundleError: other bytes; `where` they came from is said.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except Exception as error:
        raise BundleError(f"{where}: {error}") from None


def check_config_digest(uri: str, values: dict[str, Any]) -> None:
    """Refuse a config.json whose content is not what its digest was taken of."""
    content = {key: value for key, value in values.items() if key != "sha256"}
    if _config_digest(content) != values["sha256"]:
        raise BundleError(
            f"{uri}: {CONFIG_FILE} was changed after it was written (SHA-256 differs)\n"
            "copy the bundle again from where it was made"
        )


def check_tensors(uri: str, found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse missing, extra, misshapen and retyped tensors by name."""
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


def versions() -> dict[str, str]:
    """Versions of what a model's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("dri-iqa", "torch", "timm", "numpy", "pillow", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _config_digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(canonical.encode())


def pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, TensorFile]:
    """Tensors as the bytes of a safetensors file, and what config.json must say about it.

    Raises:
        BundleError: a non-finite value.
    """
    import safetensors.torch

    ready = {}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise BundleError(f"tensor {name} holds non-finite values: not saved")
        # A clone, because safetensors refuses tensors that share memory.
        ready[name] = value.detach().cpu().clone().contiguous()
    data = safetensors.torch.save(ready)
    return data, TensorFile(file=TENSOR_FILE, count=len(ready), sha256=sha256(data))


def seal(
    directory: str | os.PathLike[str],
    head: dict[str, Any],
    data: bytes,
    others: Mapping[str, bytes] | None = None,
) -> str:
    """Publish configuration, tensors and other files under the configuration's digest, and return it."""
    try:
        digest = _config_digest(head)
    except (TypeError, ValueError) as error:
        raise BundleError(f"meta must be plain JSON data: {error}") from None
    text = json.dumps({**head, "sha256": digest}, indent=2, allow_nan=False) + "\n"
    files = {TENSOR_FILE: data, **(others or {}), CONFIG_FILE: text.encode()}
    _publish(str(directory), files)
    return digest


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
