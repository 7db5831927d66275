"""Storage: paths, atomic writes, messages without secrets, and a store that fails on the way."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dri_iqa import storage

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


class FaultyStore(BaseHTTPRequestHandler):
    """A few requests of the S3 protocol over a dict, with faults on demand."""

    objects: dict[str, bytes]
    faults: list[str]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _answer(self, status: int, body: bytes = b"", size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"x"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fault(self) -> bool:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.requests.append(self.command)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "503":
            self._answer(503, b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>")
        elif fault == "403":
            access = os.environ["AWS_ACCESS_KEY_ID"]
            self._answer(
                403, f"<Error><Code>AccessDenied</Code><Message>{access}</Message></Error>".encode()
            )
        elif fault == "drop":
            self.close_connection = True
        return bool(fault)

    def _get(self) -> None:
        if self._fault():
            return
        parts = urlsplit(self.path)
        key = unquote(parts.path).strip("/")
        if "list-type" in parts.query:
            prefix = key + "/" + parse_qs(parts.query).get("prefix", [""])[0]
            found = [name for name in self.objects if name.startswith(prefix)]
            items = "".join(
                f"<Contents><Key>{name.split('/', 1)[1]}</Key>"
                f"<Size>{len(self.objects[name])}</Size>"
                "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
                for name in sorted(found)
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
            self._answer(200, body.encode())
        elif key in self.objects:
            data = self.objects[key]
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                part = data[int(first) : int(last) + 1]
                self._answer(206, part)
            else:
                self._answer(200, data, len(data))
        else:
            self._answer(404)

    do_GET = do_HEAD = _get

    def do_PUT(self) -> None:
        if self._fault():
            return
        self.objects[unquote(urlsplit(self.path).path).strip("/")] = self.body
        self._answer(200)

    def do_DELETE(self) -> None:
        if self._fault():
            return
        self.objects.pop(unquote(urlsplit(self.path).path).strip("/"), None)
        self._answer(204)

    def do_POST(self) -> None:
        if self._fault():
            return
        key = unquote(urlsplit(self.path).path).strip("/")
        if self.path.endswith("?uploads") or self.path.endswith("?uploads="):
            self._answer(
                200,
                b"<InitiateMultipartUploadResult><UploadId>u</UploadId>"
                b"</InitiateMultipartUploadResult>",
            )
        else:
            self.objects[key] = self.objects.pop(key, b"")
            self._answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStore]]:
    handler = type("Store", (FaultyStore,), {"objects": {}, "faults": [], "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEKEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(storage, "BACKOFF_S", 0.001)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_object_store_reads(store: type[FaultyStore]) -> None:
    store.objects["bucket/dir/a.bin"] = bytes(range(256)) * 40
    store.objects["bucket/dir/sub/b"] = b"bb"
    assert storage.read_bytes("s3://bucket/dir/a.bin") == bytes(range(256)) * 40
    assert storage.exists("s3://bucket/dir/a.bin")
    assert storage.list_files("s3://bucket/dir") == [
        "s3://bucket/dir/a.bin",
        "s3://bucket/dir/sub/b",
    ]
    with pytest.raises(FileNotFoundError, match="no such file: s3://bucket/dir/none"):
        storage.read_bytes("s3://bucket/dir/none")


def test_faults_are_ridden_out_logged_and_counted(
    store: type[FaultyStore], caplog: pytest.LogCaptureFixture
) -> None:
    store.objects["bucket/a"] = b"payload"
    store.faults += ["503", "503", "503", "drop"]
    before = storage.retries()
    assert storage.read_bytes("s3://bucket/a") == b"payload"
    assert storage.retries() - before == 3
    assert sum("retry" in record.message for record in caplog.records) == 3
    assert SECRET not in caplog.text


def test_a_store_that_keeps_failing(store: type[FaultyStore]) -> None:
    store.objects["bucket/a"] = b"payload"
    store.faults += ["503"] * 40
    with pytest.raises(storage.StorageError, match="failed 8 times") as caught:
        storage.read_bytes("s3://bucket/a")
    assert len(str(caught.value).splitlines()) == 2
    assert len(store.requests) == storage.ATTEMPTS


def test_a_refusal_is_final_and_names_no_credential(store: type[FaultyStore]) -> None:
    store.objects["bucket/a"] = b"payload"
    store.faults += ["403"] * 4
    with pytest.raises(storage.StorageError, match="AWS credentials") as caught:
        storage.read_bytes("s3://bucket/a")
    assert len(store.requests) == 1
    assert "AKIAEXAMPLEKEYID" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_writes_and_deletes_survive_faults(store: type[FaultyStore]) -> None:
    store.faults += ["503", "", "503"]
    storage.write_bytes("s3://bucket/dir/a", b"x" * 100_000, verify=True)
    assert store.objects["bucket/dir/a"] == b"x" * 100_000
    storage.delete("s3://bucket/dir/a")
    assert "bucket/dir/a" not in store.objects
    storage.check_writable("s3://bucket/dir")


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert storage.redact(f"x {SECRET} y") == "x <AWS_SECRET_ACCESS_KEY> y"
