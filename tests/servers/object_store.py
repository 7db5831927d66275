"""An S3 object store for the length of a test session: OpenStack Swift with its S3 API, on free ports."""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from string import Template

import boto3
from botocore.config import Config

HERE = Path(__file__).resolve().parent / "swift"
ROOT = HERE.parents[2]
ENVIRONMENT = ROOT / ".venv-s3"
KINDS = ("account", "container", "object")


class ObjectStore:
    """A running store; `close` ends exactly the processes that were started here.

    Args:
        folder: an empty folder for its data, configuration and logs.
    """

    def __init__(self, folder: Path) -> None:
        # The same recipe that `make test` runs first; nothing to do where it has been.
        subprocess.run(["make", "--silent", ".venv-s3/.ready"], cwd=ROOT, check=True)
        self.folder = folder
        self.access_key = "test:tester"
        self.secret_key = secrets.token_hex(20)  # of its own each session: tests grep for it
        ports = dict(zip((*KINDS, "proxy"), _free_ports(4), strict=True))
        self.endpoint = f"http://127.0.0.1:{ports['proxy']}"
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("srv/disk", "cache"):
            (folder / name).mkdir(parents=True)
        for kind in KINDS:
            self._configure("storage-server.conf", f"{kind}-server.conf", ports[kind], kind)
        self._configure("proxy-server.conf", "proxy-server.conf", ports["proxy"], "proxy")
        self._configure("swift.conf", "swift.conf", 0, "")
        subprocess.run(
            [
                str(ENVIRONMENT / "bin" / "python"),
                str(HERE / "build_rings.py"),
                str(folder),
                *(f"{kind}={ports[kind]}" for kind in KINDS),
            ],
            check=True,
            env=self._environment(),
        )
        try:
            for kind in (*KINDS, "proxy"):
                self._start(kind)
            self._wait()
        except BaseException:
            self.close()
            raise

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The standard variables that point any S3 client here, or at a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Create a bucket; returns its URI."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"

    def close(self) -> None:
        """End the servers."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _configure(self, template: str, target: str, port: int, kind: str) -> None:
        account, _, user = self.access_key.partition(":")
        text = Template((HERE / template).read_text()).substitute(
            ROOT=self.folder,
            PORT=port,
            KIND=kind,
            USER=pwd.getpwuid(os.getuid()).pw_name,
            LOGIN=f"user_{account}_{user} = {self.secret_key} .admin",
        )
        (self.folder / target).write_text(text)

    def _start(self, kind: str) -> None:
        with (self.folder / f"{kind}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [
                        str(ENVIRONMENT / "bin" / "python"),
                        str(ENVIRONMENT / "bin" / f"swift-{kind}-server"),
                        str(self.folder / f"{kind}-server.conf"),
                        "--verbose",
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    preexec_fn=_end_with_parent,
                )
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"SWIFT_DIR": str(self.folder)}

    def _wait(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=2):
                    return
            except (OSError, urllib.error.URLError):
                ended = [process for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    logs = "\n".join(path.read_text() for path in self.folder.glob("*.log"))
                    raise RuntimeError(f"the object store did not start:\n{logs}") from None
                time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _end_with_parent() -> None:
    """The servers end with the tests, even where these are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
