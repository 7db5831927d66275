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


def result(output: Path) -> dict:
    (found,) = output.glob("models/pretrain-*/result.json")
    return json.loads(found.read_text())


def test_two_workers_train_both_stages_and_a_killed_stage_1_ends_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    answer = jobs.run("train", f"output={whole}", *STAGE_1, "stage2.optim.epochs=1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 training worker(s)" in answer.stdout
    assert list(whole.glob("models/train-*/bundle/model.safetensors"))

    arguments = ("pretrain", f"output={killed}", *STAGE_1)
    jobs.run_and_kill(
        *arguments,
        # the controller has taken note of one; where it resumes is then its own choice
        when=lambda: len(list(killed.glob("checkpoints/pretrain-*/step_*"))) >= 2,
        log=tmp_path / "log",
    )
    assert not list(killed.glob("models/pretrain-*/result.json"))
    answer = jobs.run(*arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "resumed from the checkpoint" in answer.stdout
    ended, undisturbed = result(killed), result(whole)
    assert ended["sha256"] == undisturbed["sha256"]  # query, key encoder, queues
    assert ended["history"] == undisturbed["history"]
    assert load_extractor(ended["uri"]).digest == ended["sha256"]
