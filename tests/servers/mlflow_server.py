"""A real MLflow server on SQLite, that can be killed and started again at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.pipelines import jobs


class MlflowServer:
    """A running server.

    Args:
        folder: keeps its database and log.
        artifacts: folder or URI to which artifacts go, through the server; below `folder` without it.
        variables: what the server's environment has besides.
    """

    def __init__(
        self, folder: Path, artifacts: str = "", variables: dict[str, str] | None = None
    ) -> None:
        self._folder, self._variables = folder, variables or {}
        self._artifacts = artifacts or str(folder / "artifacts")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start and wait until it answers; what it had before is there."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--workers", "1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", self._artifacts]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # Without the background jobs of its own, eight more processes that nothing here asks for.
                env=jobs.environment()
                | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
                | self._variables,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while True:
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, (self._folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL it and all that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
