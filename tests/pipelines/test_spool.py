"""Records that find no room: the disk's own words in two lines, and nothing half-written."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dri_iqa.storage import StorageError
from pipelines.runtime.config import TrackingConfig
from pipelines.runtime.spool import Spool
from pipelines.runtime.tracking import Tracker


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a write is cut there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_finds_no_room_leaves_no_half_of_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append({"op": "tags", "number": 1})
    size = (tmp_path / "spool" / "records.jsonl").stat().st_size
    for left in (20, 0):
        with room(size + left), pytest.raises(StorageError, match=r"cannot write to .*spool: "):
            spool.append({"op": "tags", "text": "x" * 100})
    with room(10), pytest.raises(StorageError, match="make room there"):
        spool.keep_text("y" * 100, "text.txt")
    spool.append({"op": "tags", "number": 2})
    assert spool.waiting == 2
    for number in (1, 2):
        (record,) = spool.peek(10)
        assert record["number"] == number
        spool.arrived([record])
    spool.close()


def test_a_copy_tells_an_unreadable_source_from_a_full_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with pytest.raises(StorageError, match=r"cannot read .*gone\.json: No such file"):
        spool.keep_copy(tmp_path / "gone.json")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(100_000))
    with room(10), pytest.raises(StorageError, match=r"cannot write to .*spool: "):
        spool.keep_copy(large)
    kept = spool.folder / spool.keep_copy(large)
    assert kept.read_bytes() == large.read_bytes()
    spool.close()


def test_what_ended_a_job_is_told_where_its_end_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("cannot write to the spool: No space left on device\nmake room")

    tracker = Tracker(TrackingConfig(), str(tmp_path / "runs"), tmp_path / "spool", print)
    tracker.run("job", "job")
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", full)
        with pytest.raises(RuntimeError, match="of the job"), tracker.closing("job"):
            raise RuntimeError("of the job")
        with pytest.raises(StorageError, match="No space left"), tracker.closing("job"):
            pass
    tracker.close()
