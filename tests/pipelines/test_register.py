"""Jobs that register models on a real MLflow server: contests, pointer, card, the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from PIL import Image

from dri_iqa import load_model, storage
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.models import build_model
from pipelines import register as registration
from pipelines.ingest import ingest
from pipelines.runtime import config as configuration
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, run
from pipelines.runtime.mlflow_server import speaking_to
from pipelines.testing import evaluate
from tests.tiny import tiny_model

POLICY = (
    "data=csv",
    "data.clean.name=folder",
    "cluster=none",
    "evaluate.crops=2",
    "evaluate.bootstrap=100",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Two models that were never trained; what the `good` one says of these pictures is the truth."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    made: dict[str, Result] = {}
    for seed, title in enumerate(("good", "bad")):
        model = build_model(tiny_model(), backbone_weights=False, seed=seed)
        uri = str(folder / title)
        sha256 = save_bundle(
            model, uri, model_config=tiny_model(), score=ScoreScale(), meta={"title": title}
        )
        made[title] = {"uri": uri, "sha256": sha256}
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(30):
        coarse = Image.fromarray(rng.integers(0, 256, (3 + number % 7, 5, 3), dtype=np.uint8))
        picture = coarse.resize((72, 66), Image.Resampling.BICUBIC)
        picture.save(pictures / f"{number:02d}.png")
    files = sorted(pictures.iterdir())
    scores = load_model(made["good"]["uri"]).score([str(file) for file in files], crops=2)["score"]
    lines = [
        f"{file.name},{score!r},scene{number // 2}"
        for number, (file, score) in enumerate(zip(files, scores.tolist(), strict=True))
    ]
    (pictures / "labels.csv").write_text("\n".join(["image,score,group", *lines]) + "\n")
    return made


# MLflow's own modules say so when they are first imported.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_jobs_contest_with_the_registered_bundle_and_the_pointer_follows(
    registry_server: str,
    client: MlflowClient,
    bundles: dict[str, Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = Path(bundles["good"]["uri"]).parent / "pictures"
    output = tmp_path / "runs"
    common = [f"output={output}", "tracking=server", f"tracking.uri={registry_server}"]
    common += [f"data.root={pictures}", f"data.clean.root={pictures}", "data.test_fraction=0.6"]
    common += POLICY

    def job(title: str, *more: str) -> Result:
        work = Job(configuration.compose("register", [*common, f"run={title}", *more]))
        with work.connect():
            inputs = Inputs(**ingest(work)["inputs"])
            trained = bundles[title.partition("-")[0]]
            tested = work.step("evaluate", "evaluate", lambda: evaluate(work, inputs, trained))
            return registration.register_step(work, inputs, trained, tested)

    def pointer() -> tuple[str, str]:
        found = json.loads((output / "champion.json").read_text())
        assert found["scores"] == "human"
        return Path(found["bundle"]).name, found["model"]

    first = job("bad")
    assert first["model"] == "models:/dri-iqa@champion"
    assert pointer() == ("bad", "models:/dri-iqa/1")
    storage.delete(str(output / "data"))  # nothing but the registry's own copy is needed of it
    second = job("good")
    assert "version 2 is the champion: SROCC 1.000 against the champion's" in second["decision"]
    assert pointer() == ("good", "models:/dri-iqa/2")
    third = job("bad-again")
    assert third["model"] == "models:/dri-iqa@candidate"
    assert third["decision"].startswith("candidate version 3 stays candidate: SROCC")
    assert "against the champion's 1.000 (version 2), difference -" in third["decision"]
    assert third["decision"] in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert pointer() == ("good", "models:/dri-iqa/2")
    assert job("bad-again") == third, "done before"

    forced = job("bad-again", "registry.force=true")
    assert forced["version"] == "3"
    assert forced["model"] == "models:/dri-iqa@champion"
    assert client.get_model_version("dri-iqa", "3").tags["forced"]
    assert pointer() == ("bad", "models:/dri-iqa/3")
    control = job("good-control", "data.shuffle_scores=true", "registry.force=true")
    assert control["model"] == "models:/dri-iqa@control"

    card = client.get_model_version("dri-iqa", "2").description or ""
    with speaking_to(registry_server):
        folder = Path(download_artifacts(artifact_uri="models:/dri-iqa/2"))
    stored = (folder / "artifacts" / "MODEL_CARD.md").read_text()
    assert card.startswith(stored)
    assert second["decision"] in card
    for words in ("| licence of the data |", "| test SROCC | 1.000 [1.000, 1.000] |", "Limits:"):
        assert words in stored
    needed = (folder / "requirements.txt").read_text().split()
    assert len(needed) == 9
    assert all("==" in line for line in needed)
    lines = (folder / "MLmodel").read_text().splitlines()
    assert {"signature", "saved_input_example_info"} <= {line.partition(":")[0] for line in lines}

    back = [*common, "registry.rollback=true"]
    assert run("register", registration.steps, back) == 0
    assert "version 2 is the champion again, in place of version 3" in " ".join(
        capsys.readouterr().out.split()
    )
    assert pointer() == ("good", "models:/dri-iqa/2")
    assert run("register", registration.steps, back) == 0
    assert run("register", registration.steps, back) == 2
    assert "dri-iqa has no previous champion to go back to" in capsys.readouterr().err
    assert pointer() == ("bad", "models:/dri-iqa/1")
    nowhere = ["output=" + str(tmp_path / "nowhere"), "registry.rollback=true"]
    assert run("register", registration.steps, nowhere) == 2
    assert "nothing was registered at sqlite" in capsys.readouterr().err
    assert not list(tmp_path.glob("nowhere/**/*.db"))
    assert run("full", registration.steps, back) == 2
    assert "belongs to `register`" in capsys.readouterr().err
