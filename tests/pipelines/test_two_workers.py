"""Training on two workers through Ray Train, at the smallest size that is still all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines import jobs

pytestmark = pytest.mark.ray


def test_two_workers_train_both_stages(tmp_path: Path) -> None:
    answer = jobs.run(
        "train",
        f"output={tmp_path / 'runs'}",
        "data.limit=200",
        "cluster.workers=2",
        "stage1.optim.epochs=1",
        "stage2.optim.epochs=1",
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 training worker(s)" in answer.stdout
    assert list((tmp_path / "runs").glob("models/train-*/bundle/model.safetensors"))
