"""Scores of pictures that are degraded in steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.cli import app
from dri_iqa.degradations import apply_recipe, parse_recipe
from dri_iqa.evaluation.monotonicity import LEVELS, directions, score_levels, summarise
from dri_iqa.models import build_model
from dri_iqa.scoring import Scorer, load_model
from dri_iqa.seeds import Purpose, generator
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    config = tiny_model()
    score = ScoreScale(lo=0, hi=10, name="DMOS", kind="pseudo", higher_is_better=False)
    model = build_model(config, backbone_weights=False)
    save_bundle(model, folder, model_config=config, score=score, meta={})
    return folder


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return load_model(bundle)


def picture(seed: int) -> np.ndarray:
    noise_HWC = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise_HWC).resize((72, 68), Image.Resampling.BICUBIC))


def test_every_level_is_that_picture_degraded_and_scored(scorer: Scorer) -> None:
    whole = picture(0)
    missing, found = score_levels(scorer, ["missing.png", whole], crops="uniform1", seed=3)
    assert missing == "no such file or directory"
    rows = directions()
    assert len({name for name, _ in rows}) == 24
    assert isinstance(found, np.ndarray)
    assert found.shape == (len(rows), LEVELS)
    for name, sign, level in (("jpeg", 1, 4), ("white_noise", 1, 1), ("mean_shift", -1, 2)):
        row = rows.index((name, sign))
        rng = generator(3, Purpose.DEGRADE, 0, 1, row)
        degraded = apply_recipe(whole, parse_recipe(f"{name}:{sign * level}"), rng)
        table = scorer.score([whole, degraded], crops="uniform1")
        np.testing.assert_array_equal(found[row, [0, level]], table.score)


def test_steps_are_counted_in_the_direction_of_the_labels() -> None:
    rows = len(directions())
    falling = np.tile([5.0, 4, 3, 3, 2, 2.5], (rows, 1))  # three of five: a tie is no fall
    flat = np.zeros((rows, LEVELS))
    *each, total = summarise([falling, flat], higher_is_better=True)
    assert [(row.steps, row.falling, row.share) for row in each] == [(10, 3, 0.3)] * rows
    assert (total.operator, total.steps, total.falling) == ("all", 10 * rows, 3 * rows)
    assert each[0].scores_L == (2.5, 2, 1.5, 1.5, 1, 1.25)
    assert summarise([falling], higher_is_better=False)[-1].falling == rows
    signs = [row.operator for row in each if row.operator.startswith("-")]
    assert signs == ["-mean_shift", "-linear_contrast"]
    assert np.isnan(summarise([], higher_is_better=True)[-1].share)


def test_the_command_prints_a_table_and_says_what_it_could_not_read(
    bundle: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(2)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "table.csv"
    command = ["monotonicity", str(tmp_path), "--model", str(bundle), "--crops", "uniform1"]
    answer = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert answer.exit_code == 3, answer.output
    assert "bad.png: not an image" in answer.stderr
    assert "2 pictures, 1 failed" in answer.stderr
    table = pd.read_csv(out).set_index("operator")
    assert len(table) == len(directions()) + 1
    assert table.loc["all", "steps"] == 5 * len(directions())
    assert f"{table.loc['all', 'share']:.0%}" in answer.stdout
    assert "gaussian_blur" in answer.stdout
