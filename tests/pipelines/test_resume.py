"""A job that is killed and started again with the same command ends where the undisturbed one does.

For one that is killed in stage 1, see test_without_cluster.py and tests/faults.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.pipelines import jobs

pytestmark = pytest.mark.ray


def test_killed_in_the_search_and_in_stage_2(finished, tmp_path: Path) -> None:
    """On a cluster of its own each time; the undisturbed one was submitted to another.

    It finds the extractors pre-trained, as a job does that shares its output with another.
    """
    output = tmp_path / "runs"
    arguments = (f"output={output}", *finished.settings)
    for extractor in finished.output.glob("models/pretrain-*"):
        shutil.copytree(extractor, output / "models" / extractor.name)

    def checkpoints(stage: str) -> set[str]:
        """Runs with two of them: the first is on record then, and where it resumes is a matter of fact."""
        runs = output.glob(f"checkpoints/{stage}-*")
        return {run.name for run in runs if len(list(run.glob("step_*"))) >= 2}

    def search_is_half_done() -> bool:
        logs = list(output.glob("search/*/trials.json"))
        trials = json.loads(logs[0].read_text()) if logs else {}
        return any(trial["rows"] for trial in trials.values())

    def searched() -> bool:
        return bool(list(output.glob("jobs/*/steps/search.json")))

    log = tmp_path / "log"
    jobs.run_and_kill("full", *arguments, when=search_is_half_done, log=log)
    assert not searched()

    trained_in_search: set[str] = set()

    def stage_2_has_begun() -> bool:
        nonlocal trained_in_search
        if not searched():
            trained_in_search = checkpoints("train")
            return False
        return bool(checkpoints("train") - trained_in_search)

    jobs.run_and_kill("full", *arguments, when=stage_2_has_begun, log=log)
    assert "goes on with" in log.read_text()
    assert not list(output.glob("jobs/*/steps/stage2.json"))

    answer = jobs.run("full", *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "resumed from the checkpoint" in answer.stdout
    assert "done before" in answer.stdout
    assert not list(output.glob("checkpoints/pretrain-*")), "what was pre-trained is taken as it is"

    ended, undisturbed = jobs.summary(output), finished.summary
    assert ended["stage1"] == undisturbed["stage1"]
    assert ended["search"]["changes"] == undisturbed["search"]["changes"]
    assert ended["stage2"] == undisturbed["stage2"]
    assert ended["test"]["srocc"] == undisturbed["test"]["srocc"]

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    again = jobs.run("full", *arguments)
    assert again.returncode == 0, again.stderr
    assert "finished before: nothing is trained again" in again.stdout
    assert "[1/10]" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.json")} == before
