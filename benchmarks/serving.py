"""The scoring service under clients that never pause: requests a second, latency, errors, and whether memory is flat.

    python benchmarks/serving.py --seconds 60 --clients 8 photo1.jpg photo2.png ...

Starts the service as `make serve` does and prints one JSON object. Memory is the resident set of the replica and of
Serve's proxy, read every second: `growth_mb` is the median of the last quarter less that of the second quarter (in the
first, caches fill). Exit code 1 where an answer was not 200 or a score changed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from pipelines.runtime.cluster import free_port
from pipelines.runtime.config import ClusterConfig
from pipelines.runtime.serve_config import ServeConfig
from pipelines.runtime.serving import service

WATCHED = {"replica": "ray::ServeReplica", "proxy": "ray::ProxyActor"}


def client(port: int, pictures: list[bytes], number: int, until: float) -> dict[str, Any]:
    """One client on one connection: seconds, statuses, and the scores of each picture."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    scores: dict[int, set[float]] = {}
    while time.monotonic() < until:
        index = (number + len(seconds)) % len(pictures)
        began = time.perf_counter()
        connection.request("POST", "/score", pictures[index])
        answer = connection.getresponse()
        body = answer.read()
        seconds.append(time.perf_counter() - began)
        statuses[answer.status] += 1
        if answer.status == 200:
            scores.setdefault(index, set()).add(json.loads(body)["score"])
    connection.close()
    return {"seconds": seconds, "statuses": statuses, "scores": scores}


def watch(memory: dict[str, list[float]], stop: threading.Event) -> None:
    """Resident megabytes of the watched processes, every second."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        for name, title in WATCHED.items():
            if title in " ".join(process.cmdline()):
                found[name] = process
    while not stop.wait(1.0):
        for name, process in found.items():
            memory.setdefault(name, []).append(process.memory_info().rss / 1e6)


def growth(series: list[float]) -> dict[str, float]:
    """First, last and largest value, and what was added after the caches had filled."""
    quarter = max(1, len(series) // 4)
    early = statistics.median(series[quarter : 2 * quarter] or series)
    late = statistics.median(series[-quarter:])
    values = {"first_mb": series[0], "last_mb": series[-1], "peak_mb": max(series)}
    return {name: round(value, 1) for name, value in (values | {"growth_mb": late - early}).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", help="default: as for `dri-iqa score`")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cpus", type=float, default=1.0)
    given = parser.parse_args()
    pictures = [path.read_bytes() for path in given.pictures]
    config = ServeConfig(model=given.model, port=free_port(), cpus=given.cpus)
    memory: dict[str, list[float]] = {}
    stop = threading.Event()
    with service(config, ClusterConfig(kind="local")):
        watcher = threading.Thread(target=watch, args=(memory, stop))
        watcher.start()
        began = time.monotonic()
        with ThreadPoolExecutor(given.clients) as pool:
            calls = [
                pool.submit(client, config.port, pictures, number, began + given.seconds)
                for number in range(given.clients)
            ]
            done = [call.result() for call in calls]
        elapsed = time.monotonic() - began
        stop.set()
        watcher.join()
    seconds = sorted(second for one in done for second in one["seconds"])
    statuses: Counter[int] = sum((one["statuses"] for one in done), Counter())
    scores: dict[int, set[float]] = {}
    for one in done:
        for index, values in one["scores"].items():
            scores.setdefault(index, set()).update(values)
    changed = sum(len(values) > 1 for values in scores.values())
    cuts = {name: seconds[int(share * (len(seconds) - 1))] for name, share in QUANTILES.items()}
    result = {
        "clients": given.clients,
        "seconds": round(elapsed, 1),
        "requests": len(seconds),
        "requests_per_second": round(len(seconds) / elapsed, 2),
        "statuses": dict(statuses),
        "changed_scores": changed,
        "latency_s": {name: round(value, 4) for name, value in cuts.items()},
        "memory": {name: growth(series) for name, series in memory.items()},
    }
    print(json.dumps(result, indent=2))
    return int(set(statuses) != {200} or changed > 0)


QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}

if __name__ == "__main__":
    sys.exit(main())
