"""A proxy in front of any HTTP server that makes a seeded share of the requests fail.

A request that is hit is answered 503 without reaching the server, or reaches it and the answer is cut short, or the
answer stops half-way and the connection hangs. What has no body is cut before its first byte: the server has done
what was asked, and the client cannot know.
"""

from __future__ import annotations

import contextlib
import random
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("503", "cut", "stall")
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyProxy(socketserver.ThreadingTCPServer):
    """A running proxy.

    Args:
        upstream: http://host:port of the server behind it.
        rate: share of the requests that fail.
        seed: which of them do, by their order of arrival.
        kinds: the ways in which they fail.
        stall_s: how long a stalled connection hangs before it is closed.
        port: where it listens; 0 takes a free one.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        upstream: str,
        rate: float,
        seed: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        stall_s: float = 20.0,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.rate, self.seed, self.kinds, self.stall_s = rate, seed, kinds, stall_s
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: Counter[str] = Counter()
        """Requests so far: `all`, and each kind of fault."""
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def faults(self) -> int:
        """Requests that were made to fail."""
        return sum(self.seen[kind] for kind in FAULTS)

    def fault(self) -> str | None:
        """What happens to the next request."""
        with self._lock:
            draw = random.Random(f"{self.seed}-{self.seen['all']}")
            self.seen["all"] += 1
            kind = draw.choice(self.kinds) if draw.random() < self.rate else None
            if kind:
                self.seen[kind] += 1
            return kind

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Counts the requests that wait for their answer at the same time."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._lock:
            self._at_once -= 1

    def close(self) -> None:
        """Stop."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Exchange(socketserver.StreamRequestHandler):
    """One request and its answer; the connection is closed after it."""

    server: FaultyProxy

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline(1 << 16)
            if not line:
                return
            head += line
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._body(headers)
        fault = self.server.fault()
        if fault == "503":
            answer = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
            answer += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(SLOW_DOWN)
            self.wfile.write(answer + (b"" if first.startswith("HEAD") else SLOW_DOWN))
            return
        kept = [
            line
            for line in lines
            if line.partition(":")[0].strip().lower() not in ("connection", "expect")
        ]
        request = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1")
        with self.server.under_way():
            answer = self._ask(request + body)
        if fault is None:
            self.wfile.write(answer)
            return
        start = answer.find(b"\r\n\r\n") + 4
        size = len(answer) - start
        self.wfile.write(answer[: start + size // 2] if size else b"")
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.server.stall_s)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length") or 0))
        data = b""
        while True:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            data += line + self.rfile.read(size + 2) if size else line
            if size == 0:
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    data += line
                return data + b"\r\n"

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(self.server.upstream, timeout=60) as upstream:
            upstream.sendall(request)
            pieces = []
            while piece := upstream.recv(1 << 16):
                pieces.append(piece)
        return b"".join(pieces)
