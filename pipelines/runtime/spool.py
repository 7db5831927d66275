"""Records on this machine's disk, on their way to MLflow: neither a server that is down nor a killed job loses one.

`records.jsonl` only grows, a line a record; `delivered` says how many of its bytes have arrived; `files/` keeps copies
of artifacts until they have.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dri_iqa import storage

Record = dict[str, Any]


class Spool:
    """A queue in a folder that outlives the process; any thread may append, one delivers.

    Args:
        folder: of this job and this server; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records, self._mark, self._files, self._refused = (
            folder / name for name in ("records.jsonl", "delivered", "files", "refused.jsonl")
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._done = self._read_mark()
        left = self._records.read_bytes() if self._records.exists() else b""
        whole = left[: left.rfind(b"\n") + 1]  # a killed process may have left half a line
        if self._done >= len(whole) and not self._refused.exists():
            # The mark goes first: records without one are delivered again, and found to be there.
            self._mark.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
            whole, self._done = b"", 0
        self._stream = os.open(self._records, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._stream, len(whole))
        self._waiting = whole.count(b"\n", self._done)
        if self._refused.exists():  # a new process, a new chance
            for line in self._refused.read_text().splitlines():
                self.append(json.loads(line)["record"])
            self._refused.unlink()

    @property
    def waiting(self) -> int:
        """Records that have not arrived."""
        return self._waiting

    def append(self, record: Record, *, sync: bool = True) -> None:
        """Keep a record; `sync` waits for the disk, which figures that a resumed training repeats need not.

        Raises:
            StorageError: the disk takes it no more; nothing of it is left behind.
        """
        line = storage.redact(json.dumps(record)).encode() + b"\n"
        with self._lock, self._writing():
            end = os.fstat(self._stream).st_size
            if os.write(self._stream, line) != len(line):
                os.ftruncate(self._stream, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._stream)
            self._waiting += 1

    def keep_text(self, text: str, name: str) -> str:
        """Keep a small file; returns what a record calls it. Raises as `append`."""
        with self._writing():
            target = self._new(name)
            target.write_text(storage.redact(text))
            _to_disk(target)
        return str(target.relative_to(self.folder))

    def keep_copy(self, source: str | Path) -> str:
        """Keep a copy of a file or folder; returns what a record calls it. Raises as `append`."""
        source = Path(source)
        with self._writing():
            target = self._new(source.name)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
            for path in [target, *target.rglob("*")]:
                if path.is_file():
                    _to_disk(path)
        return str(target.relative_to(self.folder))

    def peek(self, values: int) -> list[Record]:
        """The oldest records that can be sent together: metrics up to so many values, or one of another kind."""
        found: list[Record] = []
        self._ends: list[int] = []
        count, end = 0, self._done
        with self._lock, self._records.open("rb") as stream:
            stream.seek(end)
            for line in stream:
                record = json.loads(line)
                count += len(record.get("values", ()))
                if found and (record["op"] != "metrics" or count > values):
                    break
                end += len(line)
                found.append(record)
                self._ends.append(end)
                if record["op"] != "metrics":
                    break
        return found

    def arrived(self, records: list[Record]) -> None:
        """The first of the records that were peeked at need not be sent any more."""
        self._advance(records)
        for record in records:
            if "file" in record:
                shutil.rmtree(self.path(record).parent, ignore_errors=True)

    def _advance(self, records: list[Record]) -> None:
        end = self._ends[len(records) - 1]
        self._ends = self._ends[len(records) :]
        temporary = self._mark.with_suffix(".tmp")
        temporary.write_text(str(end))
        temporary.replace(self._mark)
        with self._lock:
            self._done = end
            self._waiting -= len(records)

    def path(self, record: Record) -> Path:
        """Where the copy lies that a record of an artifact speaks of."""
        return self.folder / record["file"]

    def set_aside(self, record: Record, reason: str) -> Path:
        """Keep the first of the records that were peeked at, because the server does not take it, for the next
        process to try; returns the file that it is in.
        """
        with self._refused.open("a") as stream:
            stream.write(storage.redact(json.dumps({"reason": reason, "record": record})) + "\n")
        self._advance([record])
        return self._refused

    def close(self) -> None:
        """No more records come."""
        os.close(self._stream)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # a copy that finds no room names its source, too, but beside its target
            source = error.filename if error.filename2 is None else None
            if source and not Path(source).is_relative_to(self.folder):
                raise storage.StorageError(
                    f"cannot read {source}: {error.strerror}\n"
                    "it was to be kept for MLflow; the same command tries again"
                ) from None
            raise storage.StorageError(
                f"cannot write to {self.folder}: {error.strerror or error}\n"
                "make room there; the same command then goes on where this stopped"
            ) from None

    def _new(self, name: str) -> Path:
        folder = self._files / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
