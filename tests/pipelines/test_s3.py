"""Everything a job reads and writes lies in a bucket, behind a proxy that fails every tenth request.

The same jobs run once without a cluster on local files: every byte has to be the same.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dri_iqa import storage
from tests.pipelines import jobs
from tests.servers.faulty_proxy import FaultyProxy

pytestmark = pytest.mark.ray

SMALL = (
    "data=csv",
    "data.clean.name=folder",
    "data.rows_per_shard=8",
    "data.sub_image=72",
    "stage1.optim.epochs=1",
    "stage1.optim.batch_size=4",
    "stage2.optim.epochs=1",
    "stage2.optim.batch_size=4",
    "stage2.aux_batch=4",
    "stage2.val_crops=1",
    "evaluate.crops=2",
)


def photographs(folder: Path) -> None:
    """Twenty-four scored pictures of eight scenes, and six clean ones, of smooth random colours."""
    rng = np.random.default_rng(0)
    for name in ("scored", "clean"):
        (folder / name).mkdir(parents=True)
    rows = ["image,score,group"]
    for number in range(30):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture = coarse.resize((80, 72 if number % 2 else 88), Image.Resampling.BICUBIC)
        if number < 24:
            picture.save(folder / "scored" / f"{number:02d}.jpg", quality=20 + 3 * number)
            rows.append(f"{number:02d}.jpg,{number / 24},scene{number % 8}")
        else:
            picture.save(folder / "clean" / f"{number}.png")
    (folder / "scored" / "labels.csv").write_text("\n".join(rows) + "\n")


@dataclass
class Ran:
    """What the jobs left and said."""

    root: str
    said: str

    def files(self, below: str) -> dict[str, str]:
        """Name -> digest of the files in a part of the output."""
        base = storage.join(self.root, "runs", below)
        return {uri.removeprefix(base): storage.sha256(uri) for uri in storage.list_files(base)}

    def scores(self) -> pd.DataFrame:
        tables = [
            pd.read_parquet(io.BytesIO(storage.read_bytes(uri)))
            for uri in storage.list_files(storage.join(self.root, "scores"))
        ]
        frame = pd.concat(tables)
        frame["image"] = frame["image"].str.rpartition("/")[2]
        return frame.sort_values("image").reset_index(drop=True)


def train_and_score(root: str, place: Path, cluster: str) -> Ran:
    """Ingest, both stages and batch scoring, with everything below one root."""
    output = f"output={storage.join(root, 'runs')}"
    photos = storage.join(root, "photos/scored")
    clean = storage.join(root, "photos/clean")
    roots = (f"data.root={photos}", f"data.clean.root={clean}")
    # Ray's logs go where they can be searched; its sockets want a short path.
    logs = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="s3-")}
    trained = jobs.run(
        "train", output, f"cluster={cluster}", *roots, *SMALL, cwd=place, variables=logs
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (bundle,) = {
        uri.rpartition("/")[0]
        for uri in storage.list_files(storage.join(root, "runs/models"))
        if re.search(r"train-\w+/bundle/", uri)
    }
    scored = jobs.run(
        "score",
        output,
        "cluster=none",  # spares a second Ray; tasks on a cluster were exercised by ingest
        f"score.input={photos}",
        f"score.output={storage.join(root, 'scores')}",
        f"score.model={bundle}",
        "evaluate.crops=2",
        cwd=place,
    )
    assert scored.returncode == 0, scored.stdout + scored.stderr
    shutil.copytree(logs["RAY_TMPDIR"], place / "ray", ignore=_no_files)
    shutil.rmtree(logs["RAY_TMPDIR"])
    return Ran(root, "".join((trained.stdout, trained.stderr, scored.stdout, scored.stderr)))


def _no_files(folder: str, names: list[str]) -> list[str]:
    """Links and sockets."""
    paths = {name: Path(folder) / name for name in names}
    return [n for n, p in paths.items() if p.is_symlink() or not (p.is_file() or p.is_dir())]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The jobs on local files, without a cluster."""
    root = tmp_path_factory.mktemp("local")
    photographs(root / "photos")
    return train_and_score(str(root), root, "none")


@pytest.fixture
def remote(
    bucket: str, faulty: Callable[..., FaultyProxy], tmp_path: Path, local: Ran
) -> tuple[Ran, FaultyProxy]:
    """The same with everything in a bucket, on a cluster."""
    storage.upload_directory(Path(local.root) / "photos", f"{bucket}/photos")
    proxy = faulty(rate=0.1, seed=1, stall_s=0.5)
    return train_and_score(bucket, tmp_path, "local"), proxy


def test_jobs_in_a_bucket_of_a_failing_store(
    local: Ran, remote: tuple[Ran, FaultyProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, proxy = remote
    assert proxy.faults > 20, proxy.seen
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.upstream[1]}")
    for below in ("data", "models"):
        kept = re.compile(r"\.parquet$|manifest\.json|split-|\.safetensors$|bundle/config\.json")
        here, there = (
            {name: digest for name, digest in side.files(below).items() if kept.search(name)}
            for side in (local, ran)
        )
        assert without_root(there) == without_root(here), below
    assert any("state.pt" in name for name in ran.files("checkpoints"))
    pd.testing.assert_frame_equal(ran.scores(), local.scores())
    assert len(ran.scores()) == 24
    said = [
        int(count) for count in re.findall(r"(\d+) requests to storage were repeated", ran.said)
    ]
    assert sum(said) > 5, ran.said
    assert "were repeated" not in local.said

    # No credential in anything that was written or said.
    secrets = [os.environ[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    texts = [storage.read_bytes(uri) for uri in storage.list_files(ran.root)]
    texts += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    texts.append(ran.said.encode())
    assert list(tmp_path.glob("ray/**/logs/raylet.out")), "Ray's own logs are among them"
    for secret in secrets:
        assert not [text[:80] for text in texts if secret.encode() in text]


def without_root(files: dict[str, str]) -> dict[str, str]:
    """A data set's folder is named after its root too."""
    return {re.sub(r"^/(csv|folder)-\w+/", r"/\1/", name): digest for name, digest in files.items()}
