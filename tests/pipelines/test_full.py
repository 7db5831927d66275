"""The main job, wall to wall, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from dri_iqa.bundle import load_bundle
from dri_iqa.config import Stage1Config, from_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import Manifest, ShardReader
from dri_iqa.data.splits import PARTS, load_splits
from dri_iqa.default_model import shipped_model
from dri_iqa.evaluation.probe import half_features
from pipelines.runtime.feeds import clean_parts
from pipelines.runtime.probing import clean_views
from tests.browser import Browser
from tests.pipelines import jobs
from tests.pipelines.heads import NOTHING_LEFT

pytestmark = pytest.mark.ray

PULL = """
import json, sys
import mlflow, pandas as pd
assert "dri_iqa" not in sys.modules
model = mlflow.pyfunc.load_model("models:/dri-iqa@champion")
images = [open(path, "rb").read() for path in sys.argv[1:]]
print(model.predict(pd.DataFrame({"image": images})).to_json(orient="records"))
"""


@pytest.fixture(scope="module")
def client(finished) -> MlflowClient:
    uri = finished.summary["tracking"]
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def photo(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test picture of the sample, as a file."""
    uri = json.loads(next(finished.output.glob("jobs/*/steps/ingest.json")).read_text())["result"][
        "inputs"
    ]
    reader = ShardReader(Manifest.load(uri["scored_uri"]))
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(reader.read(finished.summary["test"]["example"]["image_id"])["bytes"])
    return path


def test_every_step_ran_and_said_so(finished) -> None:
    printed = finished.answer.stdout
    for number in range(1, 11):
        assert f"[{number}/10]" in printed
    for words in (
        "What trains",
        "Search",
        "Before and after training",
        "unseen images in dB, restored",
        "Test: pseudo scores",
        "registered model",
        "version 1 is the champion: the first of dri-iqa",
        "times the bare trainings",
        "nothing is left of it: no placement group, actor or temporary checkpoint",
    ):
        assert words in printed
    assert "dri-iqa score photo.jpg" in printed
    assert "mlflow ui" in printed
    assert "data=csv" in printed


def test_nothing_is_left_on_the_cluster(finished) -> None:
    """Of the search, the trainings and their streams."""
    assert finished.left == NOTHING_LEFT


def test_references_are_disjoint_between_parts(finished) -> None:
    inputs = json.loads(next(finished.output.glob("jobs/*/steps/ingest.json")).read_text())[
        "result"
    ]["inputs"]
    manifest = Manifest.load(inputs["scored_uri"])
    table = manifest.images().to_pandas().set_index("image_id")
    split = load_splits(inputs["split_uri"])[0]
    groups = [set(table.loc[list(getattr(split, part)), "group"]) for part in PARTS]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert manifest.score_kind == "pseudo"


def test_runs_are_nested_finished_and_hold_what_a_reader_needs(
    finished, client: MlflowClient
) -> None:
    experiment = client.get_experiment_by_name("dri-iqa")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    names = sorted(run.info.run_name or "" for run in runs if run not in parents)
    assert [name for name in names if not name.startswith("trial ")] == [
        "register",
        "stage1",
        "stage1-winner",
        "stage2",
    ]
    assert len([name for name in names if name.startswith("trial ")]) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = parents[0]
    assert parent.data.params["stage2.optim.epochs"] == "3"
    assert math.isclose(parent.data.metrics["test_srocc"], finished.summary["test"]["srocc"])
    assert len(parent.data.tags["mlflow.source.git.commit"]) in (7, 40)
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {
        "config.yaml",
        "versions.json",
        "search.json",
        "search",
        "summary.json",
        "figures",
        "inputs.json",
    } <= artifacts
    stage2 = next(run for run in runs if run.info.run_name == "stage2")
    found = finished.summary["search"]
    trained = load_bundle(finished.summary["bundle"]).meta["config"]
    for key, value in found["changes"].items():
        assert stage2.data.params[key] == str(value), "what is trained and registered is the best"
        node: Any = trained
        for part in key.split("."):
            node = node[part]
        assert node == value
    assert found["left"] == []
    assert not list(finished.output.glob("search/*/checkpoints/**/*.*"))
    history = client.get_metric_history(stage2.info.run_id, "val_srocc")
    assert [metric.step for metric in history] == [1, 2, 3]
    pulls = [name for name in stage2.data.metrics if name.startswith("grad_dre_")]
    assert len(pulls) >= 4, "how strongly each term of the loss pulls the extractor"
    assert all(stage2.data.metrics[name] > 0 for name in pulls)
    assert 5 < stage2.data.metrics["val_psnr_input"] < 60
    assert 5 < stage2.data.metrics["val_psnr_restored"] < 60
    parts = client.download_artifacts(stage2.info.run_id, "parts.json")
    rows = json.loads(Path(parts).read_text())
    assert ["stage-1 extractor", "frozen"] in [row[:2] for row in rows]


def test_stage_1_is_probed_in_numbers_and_in_a_picture(finished, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("dri-iqa")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    stage1 = next(run for run in runs if run.info.run_name == "stage1")
    for what in ("type", "level", "content"):
        assert 0 <= stage1.data.metrics[f"probe_{what}_up"] <= 1
        assert 0 <= stage1.data.metrics[f"probe_{what}_low"] <= 1
    assert stage1.data.metrics["step/images_per_second"] > 0
    assert stage1.data.metrics["queue_fill"] == 1
    pictures = [item.path for item in client.list_artifacts(stage1.info.run_id, "probe")]
    assert pictures == ["probe/epoch_0004.png"]


SECTIONS = [
    *("Results", "Before and after training", "By subset", "Predicted against given"),
    *("Worst images", "Error by distortion type", "From best to worst"),
    *("Degradation and quality maps", "Restoration before and after", "Training: stage 2"),
    *("Training: stage 1", "What the two halves hold", "Degradations", "Random chains"),
    *("Search", "Data and protocol", "Configuration", "Environment"),
]


def test_the_report_lies_where_the_job_says_and_in_mlflow(finished, client: MlflowClient) -> None:
    path = Path(finished.summary["report"])
    assert f"{path.parent.name}/{path.name}" in finished.answer.stdout
    assert re.findall("<h2>(.*?)</h2>", path.read_text()) == SECTIONS
    text = (path.parent / "report.md").read_text()
    for words in (finished.summary["stage2"], f"{finished.summary['test']['srocc']:.3f} \\["):
        assert words in text
    with (path.parent / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["srocc"]) == finished.summary["test"]["srocc"]
    assert {row["comparable"] for row in rows[1:]} == {"no: other data"}
    run = finished_run(client, "full")
    names = {item.path for item in client.list_artifacts(run, "report")}
    assert {f"report/{file.name}" for file in path.parent.iterdir()} == names
    stage2 = finished_run(client, "stage2")
    pictures = [item.path for item in client.list_artifacts(stage2, "probe")]
    assert pictures == ["probe/restoration.png"]


def finished_run(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name("dri-iqa")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return next(run.info.run_id for run in runs if (run.info.run_name or "").startswith(name))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_in_a_browser_without_a_network(
    finished, browser: Browser, width: int
) -> None:
    look = browser.look(Path(finished.summary["report"]), width)
    look.check(SECTIONS)
    drawn = {image["alt"] for image in look.images}
    assert drawn >= {*SECTIONS[3:14]} - {"Worst images"}
    assert len(look.images) - len(drawn & {*SECTIONS}) == 8, "the worst images, as pictures"


def test_the_bundle_names_degradations_as_often_rightly_as_it_says(finished) -> None:
    """Views of the clean photographs that tested the probe, and the finished extractor as it was stored."""
    bundle = load_bundle(finished.summary["bundle"])
    assert bundle.probe is not None
    facts = bundle.probe.facts
    assert (facts.fitted_on, facts.tested_on, facts.unseen) == (6, 3, False)
    inputs = json.loads(next(finished.output.glob("jobs/*/steps/ingest.json")).read_text())
    inputs = inputs["result"]["inputs"]
    source = Source(uri=inputs["clean_uri"], digest=inputs["clean_digest"])
    stage1 = from_dict(Stage1Config, bundle.meta["config"]["stage1"])
    parts = clean_parts(source, stage1, seed=0)  # stage 1's probes use nine images here, too
    views = clean_views(source, parts.test, stage1, crop=bundle.config.crop, seed=0, clean=True)
    features = half_features(cast(Any, bundle.model).dre, views.crops_NCHW)["up"]
    found = bundle.probe.probabilities(features).argmax(1)
    assert facts.accuracy == pytest.approx(float((found == views.type_N).double().mean()), abs=0.02)
    others = [
        path for path in finished.output.glob("models/train-*/**/bundle") if str(path) != bundle.uri
    ]
    assert any(path.parent.name == "untrained" for path in others)
    assert all(load_bundle(path).probe is None for path in others), "nor have the trials'"


def test_no_file_of_the_registered_model_is_a_pickle(finished) -> None:
    files = [path for path in (finished.output / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    for path in files:
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin"}, path
        assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}, (
            path
        )


def test_the_champion_scores_elsewhere_and_the_command_line_agrees(
    finished, photo: Path, tmp_path: Path
) -> None:
    environment = jobs.environment() | {
        "MLFLOW_TRACKING_URI": finished.summary["tracking"],
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    pulled = subprocess.run(
        [sys.executable, "-c", PULL, str(photo), str(broken)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr
    good, bad = json.loads(pulled.stdout.splitlines()[-1])
    assert list(good) == ["image", "score", "std", "error"]
    assert good["error"] is None
    assert bad["score"] is None
    assert bad["error"]
    shutil.copy(photo, tmp_path / "photo.png")
    command = [
        str(Path(sys.executable).parent / "dri-iqa"),
        "score",
        "photo.png",
        "--format",
        "json",
    ]
    for model in (finished.summary["bundle"], "models:/dri-iqa@champion"):
        scored = subprocess.run(
            [*command, "--model", model, "--crops", "25"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert scored.returncode == 0, scored.stderr
        assert math.isclose(json.loads(scored.stdout)[0]["score"], good["score"], abs_tol=1e-5)


def test_the_command_line_finds_the_champion_by_itself(
    finished, photo: Path, tmp_path: Path
) -> None:
    pointer = json.loads((finished.output / "champion.json").read_text(encoding="utf-8"))
    assert pointer["scores"] == "pseudo"
    champion, runs = finished.output / pointer["bundle"], tmp_path / "runs"
    runs.mkdir()
    for scores, bundle in (("pseudo", shipped_model() or champion), ("human", champion)):
        # a champion of pseudo scores stands behind the model that comes along, one of human scores before it
        written = json.dumps({**pointer, "bundle": str(champion), "scores": scores})
        (runs / "champion.json").write_text(written, encoding="utf-8")
        scored = subprocess.run(
            [str(Path(sys.executable).parent / "dri-iqa"), "score", str(photo), "--format", "json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=jobs.environment(),
            check=False,
        )
        assert scored.returncode == 0, scored.stderr
        assert load_bundle(bundle).digest[:12] in json.dumps(json.loads(scored.stdout)), scores


def test_batch_scoring_resumes_and_keeps_bad_files_as_rows(
    finished, photo: Path, tmp_path: Path
) -> None:
    import pandas as pd

    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        shutil.copy(photo, folder / f"{number}.png")
    (folder / "4.jpg").write_text("<html>not an image</html>")
    arguments = (
        f"output={finished.output}",
        f"score.input={folder}",
        f"score.output={tmp_path / 'out'}",
        "evaluate.crops=5",
    )
    for before in (0, 5):
        answer = jobs.run("score", *arguments)
        assert answer.returncode == 0, answer.stderr
        assert re.search(rf"scored before +│ {before} ", answer.stdout), answer.stdout
    parts = list((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == 1
    table = pd.read_parquet(parts[0])
    assert len(table) == 5
    assert table["score"].notna().sum() == 4
    assert table.loc[table["image"].str.endswith("4.jpg"), "error"].notna().all()
    assert table["score"].dropna().nunique() == 1
