"""Training on two workers through Ray Train, at the smallest size that is still all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dri_iqa.extractor import load_extractor
from tests.pipelines import jobs

pytestmark = pytest.mark.ray

STAGE_1 = (
    "data.limit=200",
    "cluster.workers=2",
    "stage1.optim.epochs=2",
    "stage1.optim.checkpoint_steps=2",
    "stage1.probe.epochs=null",
)


def test_two_workers_train_both_stages(tmp_path: Path) -> None:
    """That a killed training of two workers ends as an undisturbed one is seen in tests/faults."""
    answer = jobs.run("train", f"output={tmp_path}", *STAGE_1, "stage2.optim.epochs=1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 training worker(s)" in answer.stdout
    assert list(tmp_path.glob("models/train-*/bundle/model.safetensors"))
    (found,) = tmp_path.glob("models/pretrain-*/result.json")
    result = json.loads(found.read_text())
    assert load_extractor(result["uri"]).digest == result["sha256"]
