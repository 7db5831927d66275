"""Storage: paths, atomic writes, messages without secrets, and a real object store that fails on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dri_iqa import retrying, storage
from tests.servers.faulty_proxy import FaultyProxy

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("/a/", "b", "", "c/d"), "/a/b/c/d"),
        (("s3://bucket", "key"), "s3://bucket/key"),
        (("s3://bucket/", "/a/", "b.png"), "s3://bucket/a/b.png"),
        (("file:///tmp/x/", "y"), "file:///tmp/x/y"),
        (("rel", "a"), "rel/a"),
        (("/", "a"), "/a"),
        (("/a",), "/a"),
    ],
)
def test_join(parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(*parts) == expected


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_local_round_trip(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path}/with space"
    uri = storage.join(root, "deep/er", "a.bin")
    assert not storage.exists(uri)
    assert storage.size(uri) is None
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert storage.read_range(uri, 2, 3) == b"con"
    assert storage.read_range(uri, 4, 9) == b"nd", "less where the file ends before"
    assert storage.size(uri) == 6
    assert storage.sha256(uri) == hashlib.sha256(b"second").hexdigest()
    storage.write_json(storage.join(root, "b.json"), {"x": [1, 2]})
    assert storage.read_json(storage.join(root, "b.json")) == {"x": [1, 2]}
    assert storage.list_files(root) == [storage.join(root, "b.json"), uri]
    assert storage.list_files(root, recursive=False) == [storage.join(root, "b.json")]
    assert storage.list_files(storage.join(root, "nothing")) == []
    assert [item.size for item in storage.stat_files(root, recursive=True)][1] == 6
    storage.delete(uri)
    assert not storage.exists(uri)
    storage.delete(root)
    storage.delete(root)
    assert not storage.exists(root)


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(storage.StorageError, match="disk full"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_temporary_files_of_an_interrupted_write_are_not_listed(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"")
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "a")]


def test_published_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "by_hand").write_bytes(b"")
    storage.write_bytes(str(tmp_path / "a"), b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "by_hand").stat().st_mode


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing"):
        storage.read_bytes(str(tmp_path / "nothing"))


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(storage.StorageError, match=r"a\.json is not JSON") as caught:
        storage.read_json(str(tmp_path / "a.json"))
    assert len(str(caught.value).splitlines()) == 2


def test_check_writable(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "new"))
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(storage.StorageError) as caught:
        storage.check_writable(str(tmp_path / "file" / "below"))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"cannot write to {tmp_path}/file/below: ")
    assert second == "Choose a directory that you may write to."


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3://", "", "file://host/x"])
def test_unknown_places(uri: str) -> None:
    with pytest.raises(storage.StorageError, match="s3://bucket/key"):
        storage.read_bytes(uri)


@pytest.mark.parametrize("uri", [f"s3://AKIA:{SECRET}@bucket/k", f"s3://b/k?secret_key={SECRET}"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(storage.StorageError, match="must not carry") as caught:
        storage.exists(uri)
    assert SECRET not in str(caught.value)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "BACKOFF_S", 0.001)


def test_object_store_round_trip(bucket: str) -> None:
    root = f"{bucket}/a place"
    data = os.urandom(100_000)
    storage.write_bytes(f"{root}/dir/a.bin", data, verify=True)
    storage.write_bytes(f"{root}/dir/sub/b", b"bb")
    storage.write_json(f"{root}/c.json", {"x": [1]})
    assert storage.read_bytes(f"{root}/dir/a.bin") == data
    assert storage.read_range(f"{root}/dir/a.bin", 70_000, 20_000) == data[70_000:90_000]
    assert storage.sha256(f"{root}/dir/a.bin") == hashlib.sha256(data).hexdigest()
    assert (storage.size(f"{root}/dir/a.bin"), storage.size(f"{root}/dir")) == (len(data), None)
    assert storage.exists(f"{root}/dir")
    assert storage.list_files(root) == [
        f"{root}/c.json",
        f"{root}/dir/a.bin",
        f"{root}/dir/sub/b",
    ]
    assert storage.list_files(root, recursive=False) == [f"{root}/c.json"]
    storage.write_bytes(f"{root}/dir/a.bin", b"new")
    assert storage.read_bytes(f"{root}/dir/a.bin") == b"new"
    storage.delete(f"{root}/dir")
    storage.delete(f"{root}/dir")
    assert storage.list_files(root) == [f"{root}/c.json"]
    storage.check_writable(f"{root}/new")
    assert storage.list_files(f"{root}/new") == []
    with pytest.raises(FileNotFoundError, match=r"no such file: s3://test-\d+/a place/none"):
        storage.read_bytes(f"{root}/none")


def test_parts_of_a_file_are_a_request_each(
    bucket: str, faulty: Callable[..., FaultyProxy]
) -> None:
    uri = f"{bucket}/shard"
    storage.write_bytes(uri, bytes(range(200)))
    proxy = faulty(rate=0.0)
    parts = [storage.read_range(uri, 10 * part, 10) for part in range(20)]
    assert b"".join(parts) == bytes(range(200))
    assert proxy.seen["all"] == 21, "and one for its length"
    assert storage.read_range(uri, 195, 10) == bytes(range(195, 200))
    storage.write_bytes(uri, bytes(300))
    assert storage.read_range(uri, 195, 10) == bytes(10), "it has become longer"
    storage.delete(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_range(uri, 0, 10)


def test_large_files_arrive_in_parts(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "state").write_bytes(os.urandom(12 << 20))
    (tmp_path / "sub" / "small").write_bytes(b"x")
    storage.upload_directory(tmp_path, f"{bucket}/checkpoint")
    for name in ("state", "sub/small"):
        assert storage.read_bytes(f"{bucket}/checkpoint/{name}") == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("kind", ["503", "cut", "stall"])
def test_every_fault_is_ridden_out_logged_and_counted(
    bucket: str,
    faulty: Callable[..., FaultyProxy],
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "stall":  # reads hang until the client gives up, writes until they are cut off
        monkeypatch.setattr(storage, "STALL_S", 1.0)
    proxy = faulty(rate=0.3, seed=3, kinds=(kind,), stall_s=2.0)
    before = storage.retries()
    content = {f"{bucket}/{number}": os.urandom(20_000 + number) for number in range(3)}
    for uri, data in content.items():
        storage.write_bytes(uri, data, verify=True)
    assert {uri: storage.read_bytes(uri) for uri in storage.list_files(bucket)} == content
    assert proxy.faults >= 2
    repeated = storage.retries() - before
    assert sum("retry" in record.message for record in caplog.records) == repeated
    if kind == "stall":  # with so short a patience, a busy machine makes a client give up by itself
        assert repeated >= proxy.faults
    else:
        assert repeated == proxy.faults
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in caplog.text


def test_a_store_that_keeps_failing(bucket: str, faulty: Callable[..., FaultyProxy]) -> None:
    proxy = faulty(rate=1.0, kinds=("503",))
    with pytest.raises(storage.StorageError, match="failed 8 times") as caught:
        storage.read_bytes(f"{bucket}/a")
    assert len(str(caught.value).splitlines()) == 2
    assert proxy.seen["all"] == retrying.ATTEMPTS


def test_wrong_bytes_in_the_store_are_uploaded_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a proxy that altered the upload on its way."""
    real, reads = storage.read_bytes, []

    def once_wrong(uri: str) -> bytes:
        reads.append(uri)
        return real(uri) if len(reads) > 1 else real(uri)[:-1] + b"?"

    monkeypatch.setattr(storage, "read_bytes", once_wrong)
    before = storage.retries()
    storage.write_bytes(f"{bucket}/a", b"payload", verify=True)
    assert (len(reads), storage.retries() - before) == (2, 1)


def test_a_refusal_is_final_and_names_no_credential(
    bucket: str, faulty: Callable[..., FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = faulty(rate=0.0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(storage.StorageError, match="AWS credentials") as caught:
        storage.read_bytes(f"{bucket}/a")
    assert proxy.seen["all"] == 1
    assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)
    assert SECRET not in str(caught.value)
    monkeypatch.undo()


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(storage.StorageError) as caught:
        storage.check_writable("s3://no-such-bucket/runs")
    first, second = str(caught.value).splitlines()
    assert first.startswith("cannot write to s3://no-such-bucket/runs: ")
    assert "Check the bucket" in second


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert storage.redact(f"x {SECRET} y") == "x <AWS_SECRET_ACCESS_KEY> y"
