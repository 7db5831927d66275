"""What a person waits for: `dri-iqa score` as a command of its own, with the bundle's graph and without, by turns.

    python benchmarks/command.py --images FOLDER

The same model and photographs both ways (`dri-iqa repack --no-graph` writes the second bundle): one photograph, and
`--count` of them. What a photograph more costs is the difference between the two. Seconds are medians over `--rounds`
of this run; `apart` is the largest difference of two scores of one photograph. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from dri_iqa.bundle import load_bundle
from dri_iqa.default_model import shipped_model
from dri_iqa.images import EXTENSIONS
from dri_iqa.repack import repack


def command(model: Path, pictures: list[Path]) -> tuple[dict[str, float], list[float]]:
    """Wall clock and CPU seconds of one run, and its scores."""
    words = ["score", *map(str, pictures), "--model", str(model), "--format", "json"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "dri_iqa.cli", *words], capture_output=True, text=True, check=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}, [row["score"] for row in json.loads(ran.stdout)]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--model", type=Path, default=shipped_model(), help="bundle with a graph")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = sorted(arguments.images.rglob("*"))
    pictures = [file for file in found if file.suffix.lower() in EXTENSIONS][: arguments.count]
    result: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "photographs": len(pictures),
    }
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        repack(load_bundle(arguments.model), str(plain), graph=False)
        models = {"graph": arguments.model, "torch": plain}
        scores: dict[str, list[float]] = {}
        seconds: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for name, model in models.items():
                for count in (1, len(pictures)):
                    spent, scores[name] = command(model, pictures[:count])
                    seconds.setdefault(f"{name}, {count}", []).append(spent)
    result["apart"] = max(abs(a - b) for a, b in zip(*scores.values(), strict=True))
    for clock in ("wall", "cpu"):
        middle = {name: median(one[clock] for one in runs) for name, runs in seconds.items()}
        result[clock] = {name: round(value, 2) for name, value in middle.items()}
        more = len(pictures) - 1
        result[f"{clock}, a photograph more"] = {
            name: round((middle[f"{name}, {more + 1}"] - middle[f"{name}, 1"]) / more, 3)
            for name in models
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
