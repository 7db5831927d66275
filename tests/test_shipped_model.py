"""The model that comes along: whole, described, and worth its place."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dri_iqa import load_model
from dri_iqa.bundle import load_bundle
from dri_iqa.default_model import SHIPPED, shipped_model
from dri_iqa.degradations.steps import LEVELS, at_levels
from dri_iqa.graph import GraphRunner
from dri_iqa.scoring import Scorer
from dri_iqa.seeds import Purpose

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "models" / SHIPPED


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    found = shipped_model()
    assert found is not None
    return load_model(found, device="cpu")


def test_it_is_small_and_of_human_scores_and_has_a_card() -> None:
    found = shipped_model()
    assert found is not None
    assert found.resolve() == FOLDER.resolve()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 20 * 2**20
    bundle = load_bundle(FOLDER)
    assert bundle.graph is not None
    assert bundle.score.kind == "human"
    assert "restoration" not in bundle.parts
    assert bundle.probe is not None
    card = (FOLDER / "README.md").read_text()
    for fact in (bundle.digest, bundle.meta["scored_manifest"][:12], bundle.meta["split"][:12]):
        assert fact in card
    for word in ("BIQ2021", "BSDS500", "non-commercial", "SROCC", bundle.scoring.crops):
        assert word in card
    weights = re.findall(r'"weights": "([^"]*)"', (FOLDER / "config.json").read_text())
    assert weights
    assert not [name for name in weights if "/" in name], "no paths of the machine that trained it"


def test_a_picture_is_scored_in_an_empty_home_and_folder(tmp_path: Path) -> None:
    """As after an installation: the package alone, copied to where no run has ever been."""
    place = tmp_path / "site-packages"
    shutil.copytree(ROOT / "dri_iqa", place / "dri_iqa", ignore=shutil.ignore_patterns("__pyc*"))
    source = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(source)
    env = {name: value for name, value in os.environ.items() if name != "DRI_IQA_MODEL"}
    answer = subprocess.run(
        [sys.executable, "-m", "dri_iqa.cli", "score", "photo.png", "--format", "json"],
        cwd=tmp_path,
        env=env | {"HOME": str(tmp_path), "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    (row,) = json.loads(answer.stdout)
    expected = load_model(FOLDER, device="cpu").score([source])
    assert row["score"] == pytest.approx(expected.score.item(), abs=1e-6)
    assert row["model"] == expected.attrs["model"]


def test_its_graph_scores_as_its_network_does(scorer: Scorer) -> None:
    assert isinstance(scorer._runner, GraphRunner)
    pictures = [data.astronaut(), data.chelsea()]
    network = load_model(FOLDER, device="cpu", engine="torch").score(pictures)
    np.testing.assert_allclose(scorer.score(pictures).score, network["score"], atol=1e-5)


def test_scores_do_not_depend_on_name_batch_or_order(scorer: Scorer, tmp_path: Path) -> None:
    pictures = [data.astronaut()[:400, :420], data.chelsea(), data.coffee()[:384, :400]]
    alone = [scorer.score([picture]).score.item() for picture in pictures]
    together = scorer.score(pictures[::-1], batch_size=2).score.tolist()
    assert together[::-1] == alone
    assert len(set(alone)) == 3


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "motion_blur", "jpeg", "jpeg2000", "white_noise", "pixelate"]
)
def test_scores_fall_with_every_other_level(scorer: Scorer, name: str) -> None:
    picture_HWC = np.ascontiguousarray(data.astronaut()[:384, :384])
    noise = (0, Purpose.DEGRADE, 0)
    series = list(at_levels(picture_HWC, name, 1, range(LEVELS), seed=noise))
    scores = scorer.score(series, crops="uniform4").score.to_numpy()
    assert (scores[:-2] > scores[2:]).all(), scores
