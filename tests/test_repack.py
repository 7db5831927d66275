"""Bundles to pass on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dri_iqa import load_model
from dri_iqa.bundle import ScoreScale, load_bundle, save_bundle
from dri_iqa.cli import app
from dri_iqa.config import BackboneConfig
from dri_iqa.models import build_model
from tests.tiny import tiny_model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As a run leaves it whose weights came from a file."""
    folder = tmp_path / "made"
    plain = tiny_model().backbone
    weights = "/home/someone/weights/vit.safetensors"
    config = tiny_model(
        backbone=BackboneConfig(
            name=plain.name, weights=weights, blocks=plain.blocks, kwargs=plain.kwargs
        )
    )
    meta = {
        "data": "photos",
        "config": {"stage2": {"perceptual": {"weights": "s3://b/x/squeeze.safetensors"}}},
        "notes": "a/b stays",
    }
    model = build_model(config, backbone_weights=False)
    save_bundle(model, folder, model_config=config, score=ScoreScale(name="MOS"), meta=meta)
    return folder


def test_same_scores_another_policy_no_paths(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    result = CliRunner().invoke(
        app, ["repack", str(bundle), "--out", str(out), "--crops", "uniform4"]
    )
    assert result.exit_code == 0, result.output
    old, new = load_bundle(bundle), load_bundle(out)
    assert result.stdout.split()[-1] == new.digest != old.digest
    assert (old.scoring.crops, new.scoring.crops) == ("random25", "uniform4")
    assert new.config.backbone.weights == "vit.safetensors"
    assert new.meta["config"]["stage2"]["perceptual"]["weights"] == "squeeze.safetensors"
    assert (new.meta["notes"], new.meta["repacked"]) == ("a/b stays", old.digest)
    text = (out / "config.json").read_text()
    assert "someone" not in text
    assert json.loads(text)["model"]["backbone"]["kwargs"] == old.config.backbone.kwargs
    photo_HWC = np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8)
    theirs = load_model(out).score([photo_HWC]).score.item()
    assert theirs == load_model(bundle).score([photo_HWC], crops="uniform4").score.item()


def test_an_unknown_policy_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    arguments = ["repack", str(bundle), "--out", str(out), "--crops", "many"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "many" in result.stderr
    assert not out.exists()
    CliRunner().invoke(app, ["repack", str(bundle), "--out", str(out), "--crops", "7"])
    assert load_bundle(out).scoring.crops == "random7"
