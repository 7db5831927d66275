"""The ingest job on a folder with bad files in it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dri_iqa.data.manifest import Manifest
from tests.data.test_quarantine import BAD, GOOD
from tests.pipelines import jobs

KINDS = {  # eight ways in which a file can be odd: four cannot be read, four can
    **{name: BAD[name][0] for name in ("cut.jpg", "zeroed.jpg", "page.jpg", "huge.png")},
    **{name: GOOD[name] for name in ("deep.png", "cmyk.jpg", "alpha.png", "rotated.jpg")},
}
REASONS = {"cut.jpg": "truncated", "zeroed.jpg": "corrupt", "page.jpg": "not an image"}
REASONS["huge.png"] = "decompression bomb"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight hundred good pictures, and one of each kind: one per cent."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,score"]
    for number in range(800 - len(KINDS)):
        stream = io.BytesIO()
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG")
        (folder / f"{number}.jpg").write_bytes(stream.getvalue())
        rows.append(f"{number}.jpg,{number}")
    for name, make in KINDS.items():
        (folder / name).write_bytes(make())
        rows.append(f"{name},1")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_one_per_cent_of_bad_files(photos: Path, tmp_path: Path) -> None:
    arguments = (
        "cluster=none",
        "data=csv",
        f"data.root={photos}",
        "data.clean.name=folder",
        f"data.clean.root={photos}",
        f"output={tmp_path / 'runs'}",
    )
    stopped = jobs.run("ingest", *arguments, "data.max_bad=0.004", cwd=tmp_path)
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    assert "4 of 800 rows cannot be used" in stopped.stderr
    (table,) = re.findall(r"See (\S+quarantine\.parquet)", stopped.stderr)
    assert Path(table).exists()
    assert not (Path(table).parent / "manifest.json").exists()

    answer = jobs.run("ingest", *arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (directory,) = (tmp_path / "runs" / "data").glob("csv-*")
    manifest = Manifest.load(str(directory))
    assert manifest.counts["images"] == 796
    assert manifest.counts["quarantined"] == 4
    reasons = {row["name"]: row["reason"] for row in manifest.quarantine().to_pylist()}
    assert reasons.keys() == REASONS.keys()
    assert all(reasons[name].startswith(reason) for name, reason in REASONS.items())
    assert re.search(r"set aside\s*│ 4: 1 corrupt, 1 decompression", answer.stdout), answer.stdout
    sheet = Image.open(directory / "contact_sheet.png")
    assert sheet.size == (960, 4 * 174)
    assert len(sheet.getcolors(1 << 20) or []) > 1000, "pictures, not an empty sheet"

    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    again = jobs.run("ingest", *arguments, "run=again", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
