"""The exported program against the model, in a process that has nothing but PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dri_iqa.bundle import ScoreScale, load_bundle, save_bundle
from dri_iqa.cli import app
from dri_iqa.models.dri_iqa import build_model
from pipelines.runtime.config import compose

ELSEWHERE = """
import json, sys, torch
extra = {"dri_iqa.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
about = json.loads(extra["dri_iqa.json"])
assert not any(name.startswith(("dri_iqa", "timm")) for name in sys.modules)
generator = torch.Generator().manual_seed(0)
for count in (1, 2, 5):
    image_BCHW = torch.rand((count, 3, about["crop"], about["crop"]), generator=generator)
    print(json.dumps([about, program(image_BCHW).tolist()]))
"""


@pytest.mark.parametrize("variant", ["maniqa", "companion"])
def test_an_exported_program_scores_as_the_model_does(tmp_path: Path, variant: str) -> None:
    overrides = {
        "maniqa": ["model.predictor.baseline=maniqa"],
        "companion": ["model.companion.images=6"],
    }[variant]
    config = compose("full", ["preset=tiny", *overrides]).model
    model = build_model(config, backbone_weights=False, seed=1).eval()
    if model.companion is not None:
        image_NCHW = torch.rand(6, 3, config.crop, config.crop)
        model.companion.fit(model.companion.statistics(image_NCHW), torch.linspace(0, 1, 6))
    folder, program = tmp_path / "bundle", tmp_path / "model.pt2"
    scale = ScoreScale(lo=1, hi=5, name="MOS")
    digest = save_bundle(model, folder, model_config=config, score=scale, meta={})
    told = CliRunner().invoke(app, ["export", "--model", str(folder), "--out", str(program)])
    assert told.exit_code == 0, told.output
    assert "(B, 3, 64, 64)" in told.output
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(program)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    generator = torch.Generator().manual_seed(0)
    loaded = load_bundle(folder)
    for count, line in zip((1, 2, 5), ran.stdout.splitlines(), strict=True):
        about, scores = json.loads(line)
        assert about["bundle"] == digest
        assert (about["score"]["lo"], about["score"]["hi"]) == (1, 5)
        image_BCHW = torch.rand((count, 3, config.crop, config.crop), generator=generator)
        with torch.no_grad():
            expected = loaded.model(image_BCHW)
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-5)
