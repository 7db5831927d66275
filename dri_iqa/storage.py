"""One place for storage: a local path, `file://…` or `s3://bucket/key`, all through `pyarrow.fs`.

Endpoint, region and credentials of object stores come from the standard AWS variables (or the AWS
profile, or the machine's role) and from nowhere else: a URI that carries a secret is refused, and
messages are cleaned of every credential that the environment holds before they leave this file.

Requests to object stores are repeated (`dri_iqa.retrying`), logged and counted. Pyarrow's own retries
are switched off for that reason; the file system that `filesystem` hands out to other libraries
keeps them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from dri_iqa.retrying import REMOTE_ADVICE, SECRETS, ShortReadError, with_retries
from dri_iqa.retrying import StorageError as StorageError
from dri_iqa.retrying import add_retries as add_retries
from dri_iqa.retrying import is_remote as is_remote
from dri_iqa.retrying import redact as redact
from dri_iqa.retrying import retries as retries

T = TypeVar("T")

STALL_S = 10.0
"""A connection that moves no byte for this long has failed (libcurl's low-speed time)."""

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class FileStat:
    """A file as it was listed."""

    uri: str
    size: int
    modified_ns: int


def join(uri: str, *parts: str) -> str:
    """A URI below another one; parts may hold slashes, empty ones are skipped."""
    pieces = [part.strip("/") for part in parts]
    if not any(pieces):
        return uri
    base = uri if uri.endswith("://") else uri.rstrip("/")
    return "/".join([base, *(piece for piece in pieces if piece)])


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI and the path inside it, for libraries that take both.

    Raises:
        StorageError: an unknown scheme, or credentials inside the URI.
    """
    return _filesystem(uri, attempts=5)


def exists(uri: str) -> bool:
    """Whether a file or a directory (on object stores: any key below it) is there."""
    return _info(uri).type != fs.FileType.NotFound


def size(uri: str) -> int | None:
    """Bytes of a file, or None where there is no such file."""
    info = _info(uri)
    return info.size if info.type == fs.FileType.File else None


def read_bytes(uri: str) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the store refused or kept failing.
    """

    if "://" not in uri and uri:
        return with_retries(lambda: _read_local(uri), "read", uri)

    def read(stream: pa.NativeFile) -> bytes:
        data = stream.read()
        if len(data) != stream.size():
            raise ShortReadError(f"{len(data)} of {stream.size()} bytes")
        return data

    return with_file(uri, read)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """A part of a file; less where the file ends before.

    A remote file's length is asked for once, not for every part: one request a part, not two. So nobody may replace
    it by a shorter one meanwhile; shards never are, and what is read from them is compared with its digest.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the store refused or kept failing.
    """

    def read(stream: pa.NativeFile) -> bytes:
        data = stream.read_at(length, offset)
        if len(data) < min(length, stream.size() - offset):
            raise ShortReadError(f"{len(data)} of {length} bytes")
        return data

    system, path = _filesystem(uri)
    if isinstance(system, fs.LocalFileSystem):
        return with_file(uri, read)

    def read_kept() -> bytes:
        try:
            data = read(_kept_open(_ByIdentity(system), path))
            if len(data) == length:
                return data
        except OSError:
            _kept_open.cache_clear()
            raise
        _kept_open.cache_clear()  # it may have grown since it was opened
        return read(_kept_open(_ByIdentity(system), path))

    return with_retries(read_kept, "read", uri)


@dataclass(frozen=True)
class _ByIdentity:
    """A client as a key; keeps it alive, so that no other takes its identity."""

    system: fs.FileSystem

    def __hash__(self) -> int:
        return id(self.system)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.system is self.system


@lru_cache(maxsize=4096)  # some 300 bytes each
def _kept_open(client: _ByIdentity, path: str) -> pa.NativeFile:
    """A remote file that knows its length. It holds no connection, and any thread may read from it."""
    return client.system.open_input_file(path)


def write_bytes(uri: str, data: bytes, *, verify: bool = False) -> None:
    """Write a whole file so that a reader sees the old content or the new one, never a part.

    Locally the bytes go to a temporary name in the same directory, which then takes the final one;
    on an object store an upload becomes visible when it is complete. A remote file's size is
    compared afterwards.

    Args:
        uri: where to write; missing local directories are made.
        data: the content.
        verify: read a remote file back and compare every byte.

    Raises:
        StorageError: no permission, or the store kept failing.
    """
    system, path = _filesystem(uri)
    if isinstance(system, fs.LocalFileSystem):
        with_retries(lambda: _write_local(Path(path), data), "write", uri)
        return

    def upload() -> None:
        with system.open_output_stream(path) as stream:
            stream.write(data)

    def write() -> None:
        # Each request has attempts of its own; only wrong content makes a whole new upload.
        with_retries(upload, "write", uri)
        if (stored := size(uri)) != len(data):
            raise ShortReadError(f"{stored} of {len(data)} bytes were stored")
        if verify and read_bytes(uri) != data:
            raise ShortReadError("the stored bytes differ")

    with_retries(write, "write", uri)


def upload_directory(folder: Path, uri: str) -> None:
    """Copy a local folder's files below a URI in pieces, and compare the digest of what arrived.

    Pyarrow's own `copy_files` returns as if all was well when a store refuses its uploads.

    Raises:
        StorageError: the store refused or kept failing.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _upload(file, join(uri, file.relative_to(folder).as_posix()))


def sha256(uri: str) -> str:
    """SHA-256 of a file's content in hexadecimal, read in pieces.

    Raises:
        FileNotFoundError: no such file.
    """

    def digest(stream: pa.NativeFile) -> str:
        result, count = hashlib.sha256(), 0
        while piece := stream.read(8 << 20):
            result.update(piece)
            count += len(piece)
        if count != stream.size():
            raise ShortReadError(f"{count} of {stream.size()} bytes")
        return result.hexdigest()

    return with_file(uri, digest)


def with_file(uri: str, action: Callable[[pa.NativeFile], T]) -> T:
    """Run an action on a file opened for random access; a failing store repeats the whole action.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the store refused or kept failing.
    """
    system, path = _filesystem(uri)

    def run() -> T:
        with system.open_input_file(path) as stream:
            return action(stream)

    return with_retries(run, "read", uri)


def stat_files(uri: str, *, recursive: bool = True) -> list[FileStat]:
    """All files below a directory with size and modification time, sorted by URI.

    A missing directory has no files; temporary files of an interrupted write are not listed.
    """
    system, path = _filesystem(uri)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    infos = with_retries(lambda: system.get_file_info(selector), "list", uri)
    root = path.rstrip("/")
    found = [
        FileStat(join(uri, info.path[len(root) :]), info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == fs.FileType.File and not info.base_name.startswith(_TEMPORARY)
    ]
    return sorted(found, key=lambda item: item.uri)


def list_files(uri: str, *, recursive: bool = True, suffix: str = "") -> list[str]:
    """URIs of all files below a directory that end in `suffix`, sorted."""
    return [item.uri for item in stat_files(uri, recursive=recursive) if item.uri.endswith(suffix)]


def delete(uri: str) -> None:
    """Remove a file, or a directory with all that is in it; nothing there is fine."""
    system, path = _filesystem(uri)
    kind = _info(uri).type
    if kind == fs.FileType.Directory and not isinstance(system, fs.LocalFileSystem):
        for item in stat_files(uri):  # not every S3 server knows the bulk delete request
            delete(item.uri)
    elif kind == fs.FileType.Directory:
        with_retries(lambda: system.delete_dir(path), "delete", uri)
    elif kind == fs.FileType.File:
        with contextlib.suppress(FileNotFoundError):  # an attempt whose answer was lost did it
            with_retries(lambda: system.delete_file(path), "delete", uri)


def read_json(uri: str) -> Any:
    """Parsed JSON of a file.

    Raises:
        FileNotFoundError: no such file.
        StorageError: not JSON, or not readable.
    """
    try:
        return json.loads(read_bytes(uri))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StorageError(f"{uri} is not JSON: {error}\nDelete or restore the file.") from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, indented, keys sorted, atomically."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def check_writable(uri: str) -> None:
    """Write and delete a small file below a directory.

    Raises:
        StorageError: it cannot be written; the second line says what to do.
    """
    probe = join(uri, f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"dri-iqa")
        delete(probe)
    except (OSError, StorageError) as error:
        reason = str(error).splitlines()[0]
        raise StorageError(
            f"cannot write to {uri}: {reason.removeprefix(f'cannot write {probe}: ')}\n"
            + (REMOTE_ADVICE if is_remote(uri) else "Choose a directory that you may write to.")
        ) from None


def _filesystem(uri: str, attempts: int = 1) -> tuple[fs.FileSystem, str]:
    if not uri:
        raise StorageError("an empty path was given\nGive a local path or an s3://bucket/key URI.")
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query:
        raise StorageError(
            f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}: a URI must not carry"
            " credentials or options\nSet AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and"
            " AWS_ENDPOINT_URL instead."
        )
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return fs.LocalFileSystem(), unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        identity = tuple(os.environ.get(name) for name in SECRETS)
        system = _s3(os.getpid(), endpoint, region, hash(identity), attempts, STALL_S)
        return system, (parts.netloc + parts.path).rstrip("/")
    raise StorageError(f"cannot use {uri}\nGive a local path, file:///path or s3://bucket/key.")


@lru_cache(maxsize=16)
def _s3(
    process: int, endpoint: str, region: str | None, identity: int, attempts: int, stall_s: float
) -> fs.FileSystem:
    """One client for each setting of the environment (a forked process makes its own)."""
    del process, identity
    options: dict[str, Any] = {}
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        options = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    if endpoint and not region:
        region = "us-east-1"  # what servers other than AWS answer to
    return fs.S3FileSystem(
        region=region,
        connect_timeout=10,
        request_timeout=stall_s,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # a file that fits one buffer is one request, not three
        **options,
    )


def _info(uri: str) -> fs.FileInfo:
    system, path = _filesystem(uri)
    return with_retries(lambda: system.get_file_info(path), "look up", uri)


def _read_local(path: str) -> bytes:
    with open(os.path.expanduser(path), "rb") as stream:
        return stream.read()


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")


def _upload(file: Path, uri: str) -> None:
    system, path = _filesystem(uri)
    if isinstance(system, fs.LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)

    def copy() -> str:
        digest = hashlib.sha256()
        with file.open("rb") as source, system.open_output_stream(path) as target:
            while piece := source.read(8 << 20):
                digest.update(piece)
                target.write(piece)
        return digest.hexdigest()

    def write() -> None:
        if with_retries(copy, "write", uri) != sha256(uri):
            raise ShortReadError("the stored bytes differ")

    with_retries(write, "write", uri)
