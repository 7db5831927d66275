"""`cluster=none`: the same jobs in one process, and what a kill leaves of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.pipelines import jobs

SETTINGS = (
    "cluster=none",
    "data=csv",
    "data.clean.name=folder",
    "data.rows_per_shard=8",
    "stage1.optim.epochs=12",
    "stage1.optim.batch_size=8",
    "stage1.probe.epochs=null",
)


def photographs(folder: Path, clean: int = 8) -> None:
    """Twenty-four scored pictures in three shards, and some clean ones."""
    rng = np.random.default_rng(0)
    for name, count in (("scored", 24), ("clean", clean)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            picture = coarse.resize((120, 100), Image.Resampling.BICUBIC)
            picture.save(folder / name / f"{number:02d}.jpg", quality=90)
    rows = [f"{number:02d}.jpg,{number},scene{number % 12}" for number in range(24)]
    text = "\n".join(["image,score,group", *rows])
    (folder / "scored" / "labels.csv").write_text(text + "\n")


def test_killed_in_ingest_and_in_training_it_ends_the_same(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photographs(photos)
    roots = (f"data.root={photos / 'scored'}", f"data.clean.root={photos / 'clean'}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    answer = jobs.run("pretrain", f"output={whole}", *roots, *SETTINGS)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    # The last picture is one that never arrives: ingest waits for it until it is killed.
    last = photos / "scored" / "23.jpg"
    kept = last.rename(tmp_path / "23.jpg")
    os.mkfifo(last)
    command = ("pretrain", f"output={killed}", *roots, *SETTINGS)

    def shards() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in killed.glob("data/csv-*/shard-*")}

    def two_are_written() -> bool:
        return len(list(killed.glob("data/csv-*/parts/*.json"))) == 2

    jobs.run_and_kill(*command, when=two_are_written, log=tmp_path / "log")
    assert not list(killed.glob("data/csv-*/manifest.json"))
    before = shards()
    last.unlink()
    kept.rename(last)

    def steps() -> list[Path]:
        return list(killed.glob("checkpoints/pretrain-*/step_*"))

    others = jobs.run_and_kill(*command, when=lambda: bool(steps()), log=tmp_path / "log")
    assert others
    assert jobs.end_by_themselves(others), "no loader outlives its job"
    assert not list(killed.glob("models/*/result.json"))

    answer = jobs.run(*command)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "resumed from the checkpoint" in answer.stdout
    assert len(steps()) == 2, "older checkpoints go"
    assert shards().items() > before.items(), "what was written is not written again"

    def files(below: Path, pattern: str) -> dict[str, bytes]:
        found = {str(p.relative_to(below)): p.read_bytes() for p in below.glob(pattern)}
        assert found
        return found

    for pattern in ("data/*/manifest.json", "data/*/shard-*", "models/*/extractor/*"):
        assert files(killed, pattern) == files(whole, pattern)


def test_the_mark_to_beat_is_a_command(tmp_path: Path) -> None:
    photographs(tmp_path)
    roots = (f"data.root={tmp_path / 'scored'}", f"data.clean.root={tmp_path / 'clean'}")
    settings = ("data.test_fraction=0.3", "evaluate.yardstick_size=64", "evaluate.bootstrap=20")
    answer = jobs.run("yardstick", f"output={tmp_path / 'runs'}", *roots, *SETTINGS[:3], *settings)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (
        "pooled features of mobilenetv3_small_050 with random weights at 64 pixels" in answer.stdout
    )


def test_features_of_the_mark_are_computed_once_for_all_splits(tmp_path: Path) -> None:
    photographs(tmp_path)
    roots = (f"data.root={tmp_path / 'scored'}", f"data.clean.root={tmp_path / 'clean'}")
    settings = ("data.test_fraction=0.3", "evaluate.yardstick_size=64", "evaluate.bootstrap=20")

    def result(split: int, output: str) -> dict[str, Any]:
        job = ("yardstick", f"data.split_seed={split}", f"output={tmp_path / output}")
        answer = jobs.run(*job, *roots, *SETTINGS[:3], *settings)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        records = (tmp_path / output).glob("jobs/*/steps/yardstick.json")
        record = json.loads(max(records, key=lambda path: path.stat().st_mtime_ns).read_text())
        return record["result"]

    first = result(0, "both")
    (kept,) = (tmp_path / "both" / "features").glob("*/*.parquet")
    written = kept.stat().st_mtime_ns
    second = result(1, "both")
    assert kept.stat().st_mtime_ns == written
    assert [*(tmp_path / "both" / "features").glob("*/*.parquet")] == [kept]
    assert second == result(1, "alone") != first
