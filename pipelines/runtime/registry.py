"""The model registry: a bundle becomes a version of a registered model that loads anywhere by alias.

The registered model is code, safetensors and JSON: no pickle. It carries the science package, so its environment
needs only the pinned requirements below.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from dri_iqa import storage
from pipelines.runtime.cluster import ROOT
from pipelines.runtime.mlflow_server import speaking_to
from pipelines.runtime.promotion import RegistryError
from pipelines.runtime.tracking import Tracker

# What importing `dri_iqa.load_model` and scoring a picture needs, besides the science package itself.
REQUIREMENTS = (
    "mlflow",
    "torch",
    "timm",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyarrow",
    "safetensors",
)
PYFUNC = Path(__file__).with_name("pyfunc_model.py")

_PULL = """
import base64, json, os, sys
import mlflow, pandas as pd
image = base64.b64decode(sys.stdin.read())
model = mlflow.pyfunc.load_model(os.environ["DRI_IQA_CHECK_MODEL"])
crops = os.environ["DRI_IQA_CHECK_CROPS"]
params = {"crops": int(crops)} if crops.isdigit() else {"policy": crops}
table = model.predict(pd.DataFrame({"image": [image]}), params=params)
print("RESULT " + json.dumps(table.drop(columns="image").iloc[0].to_dict()))
"""


def register(
    tracker: Tracker,
    key: str,
    parent: str,
    *,
    bundle: str,
    name: str,
    example: bytes,
    card: str,
    tags: dict[str, str],
) -> str:
    """Register a bundle as a new version, without an alias.

    Args:
        tracker: where to.
        key: stable key of the run that holds the registration; registering twice under it gives one version.
        parent: key of the job's run.
        bundle: folder or URI of the bundle.
        name: registered model.
        example: an encoded image, stored as the input example.
        card: the model card, Markdown.
        tags: facts about the version.

    Returns:
        The version.
    """
    import mlflow
    import pandas as pd
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    tracker.run(key, "register", parent=parent)
    run_id, client = tracker.run_id(key), tracker.client
    known = [version for version in _versions(client, name) if version.run_id == run_id]
    if known:
        version = str(known[0].version)
    else:
        signature = ModelSignature(
            inputs=Schema([ColSpec(DataType.binary, "image")]),
            outputs=Schema(
                [
                    ColSpec(DataType.string, "image"),
                    ColSpec(DataType.double, "score"),
                    ColSpec(DataType.double, "std"),
                    ColSpec(DataType.string, "error", required=False),
                    # With maps=true: base64 text of 8-bit grey PNGs.
                    ColSpec(DataType.string, "degradation_map", required=False),
                    ColSpec(DataType.string, "quality_map", required=False),
                ]
            ),
            params=ParamSchema(
                [
                    ParamSpec("crops", DataType.integer, 0),  # the model's own policy
                    ParamSpec("policy", DataType.string, ""),
                    ParamSpec("batch_size", DataType.integer, 64),
                    ParamSpec("maps", DataType.boolean, False),
                ]
            ),
        )
        with tempfile.TemporaryDirectory() as folder:
            local = _localise(bundle, Path(folder) / "bundle")
            (Path(folder) / "MODEL_CARD.md").write_text(card)
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            with speaking_to(tracker.uri), mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(PYFUNC),
                    artifacts={
                        "bundle": str(local),
                        "card": str(Path(folder) / "MODEL_CARD.md"),
                    },
                    code_paths=[str(ROOT / "dri_iqa")],
                    signature=signature,
                    input_example=pd.DataFrame({"image": [example]}),
                    pip_requirements=requirements(),
                    registered_model_name=name,
                )
        version = str(info.registered_model_version)
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)
    tracker.end(key)
    return version


def requirements() -> list[str]:
    """Pinned versions of what the registered model imports."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def pull_and_score(model: str, tracking_uri: str, image: bytes, crops: int | str) -> dict[str, Any]:
    """Pull a model by its registry URI in a new process, elsewhere, and score one picture with it.

    Returns:
        `score`, `std`, `error` as that process saw them.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    import base64

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_REGISTRY_URI": tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "DRI_IQA_CHECK_MODEL": model,
        "DRI_IQA_CHECK_CROPS": str(crops),
    }
    with tempfile.TemporaryDirectory() as elsewhere:
        answer = subprocess.run(
            [sys.executable, "-c", _PULL],
            input=base64.b64encode(image).decode(),
            capture_output=True,
            text=True,
            cwd=elsewhere,
            env=environment,
            timeout=600,
            check=False,
        )
    results = [line for line in answer.stdout.splitlines() if line.startswith("RESULT ")]
    if answer.returncode or not results:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"the registered model does not load in another process: {last}")
    return json.loads(results[-1].removeprefix("RESULT "))


def fetch_bundle(uri: str, tracking_uri: str | None = None) -> str:
    """The local bundle of a registered model: `models:/name@alias` or `models:/name/version`.

    The registry is `tracking_uri`, else the one that MLFLOW_TRACKING_URI names, else the embedded one in `./runs` or
    the project's `runs`.
    """
    from mlflow.artifacts import download_artifacts

    if tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        for folder in (Path.cwd() / "runs", ROOT / "runs", Path.home() / "dri-iqa" / "runs"):
            if (folder / "mlflow.db").exists():
                tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
                break
    with contextlib.nullcontext() if tracking_uri is None else speaking_to(tracking_uri):
        folder = Path(download_artifacts(artifact_uri=uri))
    return str(folder / "artifacts" / "bundle")


def copy_bundle(tracker: Tracker, name: str, version: str, target: str) -> None:
    """Put the bundle of a registered version where every node of the cluster can read it.

    Raises:
        RegistryError: its artifacts cannot be had.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            with speaking_to(tracker.uri):
                local = download_artifacts(
                    artifact_uri=f"models:/{name}/{version}", dst_path=folder
                )
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"{name} version {version} cannot be fetched: {str(error).splitlines()[0]}\n"
                f"restore its artifacts, or delete the version"
            ) from None
        storage.upload_directory(Path(local) / "artifacts" / "bundle", target)


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _localise(uri: str, folder: Path) -> Path:
    """A local copy of a bundle, whatever store it is in."""
    folder.mkdir(parents=True)
    for file in storage.list_files(uri):
        (folder / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
    return folder
