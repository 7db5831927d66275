"""`evaluate.py`: a protocol from its cost to its report; interrupted, with a failure, with corrupted test scores."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from dri_iqa.evaluation.protocols import run_rows
from pipelines.evaluate import steps
from pipelines.protocol import Cell, outcome_of
from pipelines.runtime.job import run
from tests.pipelines import jobs
from tests.pipelines.test_without_cluster import photographs

SETTINGS = (
    "cluster=none",
    "data=csv",
    "data.clean.name=folder",
    "data.val_fraction=0.2",
    "stage1.optim.epochs=1",
    "stage1.optim.batch_size=8",
    "stage1.probe.epochs=null",
    "stage2.optim.epochs=3",
    "stage2.optim.t_max=3",
    "stage2.val_crops=1",
    "stage2.select=val",
    "evaluate.crops=random2",
    "evaluate.bootstrap=50",
)
PROTOCOL = (
    "protocol.name=brief",
    "protocol.estimate=false",
    "protocol.splits=2",
    "protocol.crop_seeds=[0,1]",
    "protocol.variants=[maniqa,proposed]",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    photographs(folder)
    photographs(folder / "other")
    return folder


def command(photos: Path, output: Path, *more: str) -> tuple[str, ...]:
    roots = (f"data.root={photos / 'scored'}", f"data.clean.root={photos / 'clean'}")
    return (f"output={output}", *roots, *SETTINGS, *more)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A protocol that was killed after its first stage 2, and started again."""
    output = tmp_path_factory.mktemp("protocol")
    other = f"protocol.cross.elsewhere={{name: csv, root: {photos / 'other' / 'scored'}}}"
    arguments = command(photos, output, *PROTOCOL, other)

    def trained() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in output.glob("models/*/result.json")}

    jobs.run_and_kill("evaluate", *arguments, when=lambda: len(trained()) == 2, log=output / "log")
    before = trained()
    answer = jobs.run("evaluate", *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert trained().items() > before.items(), "what was trained is not trained again"
    return output, answer.stdout


def test_every_cell_is_trained_once_and_tested_with_every_set_of_crops(finished) -> None:
    output, printed = finished
    found = jobs.summary(output)["tables"]
    own = [row for row in found["runs"] if row["tested_on"] == "csv"]
    cells = {(row["variant"], row["split"], row["crop_seed"]) for row in own}
    assert cells == {(v, s, c) for v in ("maniqa", "proposed") for s in (0, 1) for c in (0, 1)}
    assert len(own) == len(cells)
    assert [row["variant"] for row in found["variants"]] == ["maniqa", "proposed"]
    assert all(row["trainings"] == row["splits"] == 2 for row in found["variants"])
    (difference,) = found["differences"]
    assert (difference["difference"], difference["trainings"]) == ("proposed - maniqa", 2)
    # both splits share one stage 1, the baseline needs none
    assert len(list(output.glob("models/pretrain-*/result.json"))) == 1
    assert len(list(output.glob("models/train-*/result.json"))) == 4
    assert "weights of epoch" in printed
    # Beside the models, where another protocol that tests them finds them: the first split's are tested elsewhere too.
    tests = [len(list(model.glob("predictions/*.csv"))) for model in output.glob("models/train-*")]
    assert sorted(tests) == [2, 2, 4, 4]


def test_models_of_the_first_split_are_tested_on_the_whole_of_another_set(finished) -> None:
    found = jobs.summary(finished[0])["tables"]
    elsewhere = [row for row in found["runs"] if row["tested_on"] == "elsewhere"]
    assert {(row["variant"], row["split"]) for row in elsewhere} == {("maniqa", 0), ("proposed", 0)}
    assert {row["images"] for row in elsewhere} == {24}
    (row,) = found["cross"]
    assert row.keys() == {"trained_on", "csv", "elsewhere"}
    assert row["trained_on"] == "csv"


def test_the_report_prints_protocol_and_digests_and_its_tables_are_files(finished) -> None:
    output, _ = finished
    (folder,) = output.glob("jobs/*/report")
    page = (folder / "report.html").read_text()
    (split,) = {
        json.loads(path.read_text())[0]["digest"][:12]
        for path in output.glob("data/csv-*/split-*.json")
        if "split 1" in path.read_text()
    }
    for words in ("brief", split, "random2@1", "Paired differences", "proposed - maniqa"):
        assert words in page
    with (folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["comparable"] == ""]
    assert [row["model"] for row in rows] == ["maniqa", "proposed"]


def test_the_cost_is_printed_and_nothing_else_is_done(photos: Path, tmp_path: Path) -> None:
    arguments = command(photos, tmp_path, *PROTOCOL, "protocol.variants=[proposed]", "dry_run=true")
    answer = jobs.run("evaluate", *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for words in ("stage 1, dual", "stage 2, proposed on csv", "tests", "accelerator hours"):
        assert words in answer.stdout
    assert not list(tmp_path.glob("models/*"))
    assert not list(tmp_path.glob("pilots/*"))


def test_a_failing_variant_is_listed_and_the_others_are_reported(
    photos: Path, tmp_path: Path
) -> None:
    odd = ("stage1.moco.queue_size=24", "protocol.splits=1", "protocol.crop_seeds=[0]")
    answer = jobs.run("evaluate", *command(photos, tmp_path, *PROTOCOL, *odd))
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert answer.stderr.startswith("error: 1 training(s) failed: pretrain-")
    assert "queue_size=24" in answer.stderr
    (folder,) = tmp_path.glob("jobs/*/report")
    assert "queue_size=24" in (folder / "report.html").read_text()
    with (folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["comparable"] == ""]
    assert [row["model"] for row in rows] == ["maniqa"]
    assert not list(tmp_path.glob("jobs/*/finished.json"))


def test_a_protocol_of_which_nothing_could_be_trained_says_why(
    photos: Path, tmp_path: Path
) -> None:
    odd = ("stage1.moco.queue_size=24", "protocol.variants=[proposed]")
    answer = jobs.run("evaluate", *command(photos, tmp_path, *PROTOCOL, *odd))
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert answer.stderr.startswith("error: 1 training(s) failed: pretrain-")
    assert not list(tmp_path.glob("jobs/*/report"))


def test_an_image_that_a_model_could_not_score_stays_and_spoils_its_figure() -> None:
    frame = pd.DataFrame(
        {
            "score": [0.1, np.nan, 0.3, 0.4],
            "given": [1.0, 2.0, 3.0, np.nan],
            "group": list("abcd"),
            "type": None,
            "subset": None,
        }
    )
    manifest = SimpleNamespace(higher_is_better=True)
    cell = Cell(trained_on="csv", variant="proposed", split=0, seed=0)
    one = outcome_of(cell, "csv", 0, frame, cast(Any, manifest), 12)
    assert one.given_N.tolist() == [1.0, 2.0, 3.0]
    (row,) = run_rows([one])
    assert math.isnan(row["srocc"])
    assert row["note"] == "1 of 3 predictions are not finite"


def test_scores_of_the_test_part_change_nothing_but_the_table(
    finished, photos: Path, tmp_path: Path
) -> None:
    output, _ = finished
    splits = [json.loads(p.read_text())[0] for p in output.glob("data/csv-*/split-*.json")]
    (split,) = [split for split in splits if split["source"].endswith("split 0")]
    corrupted = tmp_path / "photos"
    photographs(corrupted)
    labels = corrupted / "scored" / "labels.csv"
    head, *rows = labels.read_text().splitlines()
    for image_id in split["test"]:
        name, _, group = rows[image_id].split(",")
        rows[image_id] = f"{name},{-1000 * image_id},{group}"
    labels.write_text("\n".join([head, *rows]) + "\n")
    first = ("protocol.splits=1", "protocol.crop_seeds=[0]", "protocol.variants=[proposed]")
    answer = jobs.run("evaluate", *command(corrupted, tmp_path / "runs", *PROTOCOL, *first))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (bundle,) = tmp_path.glob("runs/models/train-*/bundle")
    weights = (bundle / "model.safetensors").read_bytes()
    trained = {p.read_bytes() for p in output.glob("models/train-*/bundle/model.safetensors")}
    assert weights in trained, "neither weights nor the choice of the epoch depend on them"
    scale = json.loads((bundle / "config.json").read_text())["score"]
    assert scale["lo"] >= 0
    (row,) = jobs.summary(tmp_path / "runs")["tables"]["variants"]
    (true,) = [r for r in jobs.summary(output)["tables"]["variants"] if r["variant"] == "proposed"]
    assert row["srocc"] != true["srocc"]


def test_drawn_crops_are_what_crop_seeds_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("protocol.crop_seeds=[0,1]", "evaluate.crops=uniform4")
    assert run("evaluate", steps, [*settings, f"output={tmp_path}"]) == 2
    assert "protocol.crop_seeds=[0, 1] with evaluate.crops=uniform4" in capsys.readouterr().err
