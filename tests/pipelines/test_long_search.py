"""Eight trials on two cores, killed in the middle: minutes, so not in the daily suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from dri_iqa.bundle import load_bundle
from pipelines.runtime.mlflow_server import speaking_to
from tests.pipelines import jobs

pytestmark = [pytest.mark.ray, pytest.mark.hours]


def test_eight_trials_some_stopped_killed_and_continued(tmp_path: Path) -> None:
    output, log = tmp_path / "runs", tmp_path / "log"
    changed = {"search.trials": "8", "search.epochs": "3"}
    brief = [item for item in jobs.BRIEF if item.partition("=")[0] not in changed]
    command = (f"output={output}", *brief, *(f"{key}={value}" for key, value in changed.items()))

    def trials() -> dict:
        logs = list(output.glob("search/*/trials.json"))
        return json.loads(logs[0].read_text()) if logs else {}

    def half_done() -> bool:
        return len(trials()) >= 4

    jobs.run_and_kill("full", *command, when=half_done, log=log, timeout=1800)
    before = trials()
    answer = jobs.run("full", *command, timeout=3000)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"goes on with {len(before)} trial(s)" in answer.stdout
    assert "nothing is left of it" in answer.stdout
    after = trials()
    assert before.keys() <= after.keys()
    assert len(after) == 8
    for name, trial in before.items():
        assert after[name]["rows"][: len(trial["rows"])] == trial["rows"], "nothing is done twice"

    found = jobs.summary(output)
    assert len([trial for trial in found["search"]["trials"] if trial["stopped_early"]]) >= 2
    uri = found["tracking"]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("dri-iqa", "champion")
    place = f"models:/dri-iqa/{version.version}"
    with speaking_to(uri):
        model = download_artifacts(artifact_uri=place, dst_path=str(tmp_path))
    node = load_bundle(str(Path(model) / "artifacts" / "bundle")).meta["config"]
    for key, value in found["search"]["changes"].items():
        registered = node
        for part in key.split("."):
            registered = registered[part]
        assert registered == value, "the best trial's values are those registered"
    experiment = client.get_experiment_by_name("dri-iqa")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["dri_iqa.key"] for run in runs}) == len(runs)
