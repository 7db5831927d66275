"""The registered model where this project is not: an environment of its pinned requirements, a server, a bucket."""

from __future__ import annotations

import base64
import io
import json
import os
import pickletools
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from packaging.requirements import Requirement

from dri_iqa import load_model
from pipelines.runtime import registry
from pipelines.runtime.config import TrackingConfig
from pipelines.runtime.mlflow_server import speaking_to
from tests import uploads
from tests.servers.mlflow_server import MlflowServer
from tests.servers.object_store import ObjectStore

pytestmark = pytest.mark.filterwarnings("ignore:.*type hint.*:UserWarning")
CHAMPION = "models:/dri-iqa@champion"
CODE = """
import base64, importlib.util, json, sys
for name in ("dri_iqa", "pipelines", "ray", "hydra", "boto3"):
    assert importlib.util.find_spec(name) is None, name
import mlflow, pandas as pd
pictures = [base64.b64decode(line) for line in sys.stdin]
table = mlflow.pyfunc.load_model("models:/dri-iqa@champion").predict(pd.DataFrame({"image": pictures}))
print("RESULT " + json.dumps({name: table[name].tolist() for name in ("score", "std", "error")}))
"""
PICKLE_NAMES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".npz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uploads.untrained(tmp_path_factory.mktemp("untrained") / "bundle", probed=False)


@pytest.fixture
def address(bundle: str, bucket: str, object_store: ObjectStore, tmp_path: Path) -> str:
    """A server whose artifacts lie in a bucket, with that bundle as the champion."""
    variables = object_store.environment()
    variables["MLFLOW_S3_ENDPOINT_URL"] = variables["AWS_ENDPOINT_URL"]
    server = MlflowServer(tmp_path, f"{bucket}/mlflow", variables)
    try:
        config = TrackingConfig(kind="server", uri=server.address)
        tracker = uploads.registered(bundle, tmp_path / "runs", config)
        tracker.client.set_registered_model_alias("dri-iqa", "champion", "1")
        tracker.end("job")
        assert tracker.close() is None
        yield server.address
    finally:
        server.kill()


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions that pip would install."""
    found: set[str] = set()
    todo = [(item, extra) for item in requirements for extra in ("", *item.extras)]
    seen: set[tuple[str, str]] = set()
    while todo:
        item, extra = todo.pop()
        if (item.name.lower(), extra) in seen:
            continue
        seen.add((item.name.lower(), extra))
        found.add(item.name)
        for line in metadata.requires(item.name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed, more) for more in ("", *needed.extras)]
    return found


def link(requirements: list[str], folder: Path) -> None:
    """What pip would have made of the requirements, of links to what is installed here in the same versions."""
    wanted = [Requirement(line) for line in requirements]
    for item in wanted:
        assert item.specifier.contains(metadata.version(item.name)), f"{item} is not tested"
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(wanted):
        files = metadata.files(name) or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            target = packages / top
            if not target.exists():
                target.symlink_to(Path(str(metadata.distribution(name).locate_file(top))))


def pip(requirements: list[str], folder: Path) -> None:
    """As `pip install -r requirements.txt` does it."""
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*command, "--quiet", *requirements], check=True, timeout=3000)


@pytest.mark.parametrize("install", [link, pytest.param(pip, marks=pytest.mark.hours)])
def test_it_scores_alike_with_only_its_requirements(
    install, address: str, bundle: str, tmp_path: Path
) -> None:
    with speaking_to(address):
        artifact = Path(
            download_artifacts(artifact_uri=CHAMPION, dst_path=str(tmp_path / "pulled"))
        )
    assert registry.fetch_bundle(CHAMPION, address).endswith("bundle")
    assert_no_pickle(artifact)
    requirements = (artifact / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in requirements)
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False, symlinks=True)
    install(requirements, clean)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    pictures = list(uploads.GOOD.values())
    answer = subprocess.run(
        [str(clean / "bin" / "python"), "-c", CODE],
        input="\n".join(base64.b64encode(picture).decode() for picture in pictures),
        capture_output=True,
        text=True,
        cwd=clean,
        env=kept
        | {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": address}
        | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        timeout=600,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert not any(clean.glob("*.db"))
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("RESULT ")]
    theirs = json.loads(line.removeprefix("RESULT "))
    ours = load_model(bundle, device="cpu").score(pictures)
    assert theirs["error"] == [None] * len(pictures)
    for column in ("score", "std"):
        assert theirs[column] == pytest.approx(ours[column].tolist(), abs=1e-5)


def assert_no_pickle(folder: Path) -> None:
    """No file is a pickle, has the name of one, or is an archive with one inside."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50, "the science package is inside"
    for path in files:
        assert not path.name.endswith(PICKLE_NAMES), path
        data = path.read_bytes()
        assert not is_pickle(data), path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                assert not any(is_pickle(archive.read(name)) for name in archive.namelist()), path


def is_pickle(data: bytes) -> bool:
    """Whether these bytes are a pickle to their end."""
    try:
        end = [position for _, _, position in pickletools.genops(io.BytesIO(data))][-1]
    except Exception:  # every kind of error of a parser that was given something else
        return False
    return end == len(data) - 1


def test_pickles_are_recognised(tmp_path: Path) -> None:
    import pickle

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert is_pickle(pickle.dumps({"a": [1, "x"]}, protocol))
    assert not is_pickle(b'{"a": 1}')
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    for number in range(60):
        (tmp_path / f"{number}.py").write_text("x = 1\n")
    with pytest.raises(AssertionError, match=r"x\.zip"):
        assert_no_pickle(tmp_path)
