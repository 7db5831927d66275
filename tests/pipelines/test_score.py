"""Batch scoring of a bucket: killed in the middle, images added since, corrupt ones, another model."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from dri_iqa import load_model, storage
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.models import build_model
from tests.pipelines import jobs
from tests.tiny import tiny_model

pytestmark = pytest.mark.ray
IMAGES, CORRUPT = 40, 4
SCALE = ScoreScale(lo=0.0, hi=1.0, higher_is_better=True, name="MOS (none)", kind="human")


class Memory:
    """Largest resident set, in bytes, of a job's driver and of its largest other process."""

    def __init__(self, process: psutil.Process) -> None:
        self.driver = self.worker = 0
        self._process = process

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.driver = max(self.driver, self._process.memory_info().rss)
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name().startswith("ray::"):
                        self.worker = max(self.worker, child.memory_info().rss)


def make_bundle(uri: str, seed: int) -> None:
    config = tiny_model()
    model = build_model(config, seed=seed)
    save_bundle(model, uri, model_config=config, score=SCALE, meta={})


def put_pictures(uri: str, numbers: range) -> None:
    for number in numbers:
        data = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data, "PNG")
        broken = number % (IMAGES // CORRUPT) == 3
        storage.write_bytes(
            storage.join(uri, f"{number:03d}.png"), data.getvalue()[: 200 if broken else None]
        )


def tables(uri: str) -> dict[str, pd.DataFrame]:
    """File -> table, of the whole ones only."""
    return {
        file: pd.read_parquet(io.BytesIO(storage.read_bytes(file)))
        for file in storage.list_files(uri, suffix=".parquet")
    }


def test_a_bucket_is_scored_once_whatever_happens(bucket: str, tmp_path: Path) -> None:
    photos, scores, bundle = (f"{bucket}/{name}" for name in ("photos", "scores", "model"))
    make_bundle(bundle, seed=0)
    put_pictures(photos, range(IMAGES))
    arguments = (
        f"output={tmp_path}/runs",
        f"score.input={photos}",
        f"score.output={scores}",
        f"score.model={bundle}",
        "score.images_per_table=8",
        "evaluate.crops=40",
        "cluster=none",
    )
    jobs.run_and_kill(
        "score",
        *arguments,
        when=lambda: len(storage.list_files(scores, suffix=".parquet")) >= 2,
        log=tmp_path / "killed.log",
    )
    killed = {uri: storage.sha256(uri) for uri in storage.list_files(scores, suffix=".parquet")}
    assert 2 <= len(killed) < IMAGES // 8
    put_pictures(photos, range(IMAGES, IMAGES + 3))
    again = jobs.run("score", *arguments)
    assert again.returncode == 0, again.stderr
    found = re.search(r"scored before +│ (\d+)", again.stdout)
    assert found is not None, again.stdout
    assert int(found[1]) >= 16
    assert {uri: storage.sha256(uri) for uri in killed} == killed
    table = pd.concat(tables(scores).values()).sort_values("image", ignore_index=True)
    assert table["image"].tolist() == [f"{photos}/{number:03d}.png" for number in range(IMAGES + 3)]
    assert table["error"].notna().sum() == CORRUPT
    direct = load_model(bundle).score(table["image"].tolist(), crops=40)
    np.testing.assert_allclose(table["score"], direct["score"], atol=1e-6)
    assert table["error"].isna().tolist() == direct["error"].isna().tolist()

    make_bundle(bundle, seed=1)  # another model at the same place has scored nothing yet
    other = jobs.run("score", *arguments)
    assert other.returncode == 0, other.stderr
    assert re.search(r"scored before +│ 0 ", other.stdout), other.stdout
    assert len(pd.concat(tables(scores).values())) == 2 * (IMAGES + 3)


@pytest.mark.hours
def test_five_thousand_images_take_the_memory_of_one_thousand(bucket: str, tmp_path: Path) -> None:
    """Under Ray: twenty corrupt images, a kill in the middle, no image twice."""
    bundle = f"{bucket}/model"
    make_bundle(bundle, seed=0)
    names = {1_000: f"{bucket}/few", 5_000: f"{bucket}/many"}
    for count, photos in names.items():
        put_many(photos, count, corrupt=20)

    def command(count: int) -> list[str]:
        return [
            f"output={tmp_path}/runs",
            f"score.input={names[count]}",
            f"score.output={bucket}/scores-{count}",
            f"score.model={bundle}",
            "score.images_per_table=100",
            "evaluate.crops=5",
        ]

    peaks = {}
    for count in names:
        if count == 5_000:
            jobs.run_and_kill(
                "score",
                *command(count),
                when=lambda: (
                    len(storage.list_files(f"{bucket}/scores-5000", suffix=".parquet")) >= 8
                ),
                log=tmp_path / "killed.log",
            )
            killed = tables(f"{bucket}/scores-5000").keys()
            assert 8 <= len(killed) < 45
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(jobs.ROOT / "pipelines" / "score.py"), *command(count)],
                stdout=log,
                stderr=log,
                env=jobs.environment(),
            )
            memory = Memory(psutil.Process(process.pid))
            while process.poll() is None:
                memory.look()
                time.sleep(0.2)
        said = (tmp_path / "log").read_text()
        assert process.returncode == 0, said
        print(said[said.index("Scored") :], vars(memory))
        peaks[count] = memory
        table = pd.concat(tables(f"{bucket}/scores-{count}").values())
        assert sorted(table["image"]) == [f"{names[count]}/{n:05d}.jpg" for n in range(count)]
        assert table["error"].notna().sum() == 20
    assert killed <= tables(f"{bucket}/scores-5000").keys()
    assert peaks[5_000].driver < 1.1 * peaks[1_000].driver
    assert peaks[5_000].worker < 1.1 * peaks[1_000].worker


def put_many(uri: str, count: int, corrupt: int) -> None:
    def put(number: int) -> None:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        data = io.BytesIO()
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
        cut = data.getvalue()[: 300 if number % (count // corrupt) == 7 else None]
        storage.write_bytes(storage.join(uri, f"{number:05d}.jpg"), cut)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(count)))
