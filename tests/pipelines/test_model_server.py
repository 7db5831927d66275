"""The registered model: what it makes of whatever it is given, and `mlflow models serve` as in docs/serving.md."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dri_iqa import load_model
from pipelines.runtime.cluster import free_port
from pipelines.runtime.config import TrackingConfig
from tests import uploads
from tests.pipelines import jobs

pytestmark = [
    # MLflow's own modules say so when they are first imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint.*:UserWarning"),
]
MODEL = "models:/dri-iqa/1"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uploads.untrained(tmp_path_factory.mktemp("untrained") / "bundle", probed=False)


@pytest.fixture(scope="module")
def tracking(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry in which version 1 of dri-iqa is that bundle."""
    output = tmp_path_factory.mktemp("registry")
    return uploads.registered(bundle, output, TrackingConfig()).uri


@pytest.fixture(scope="module")
def model(tracking: str) -> Any:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking)
    yield mlflow.pyfunc.load_model(MODEL)
    mlflow.set_tracking_uri(before)


def test_bytes_base64_and_paths_are_the_same_picture(
    model: Any, bundle: str, tmp_path: Path
) -> None:
    data = list(uploads.GOOD.values())
    expected = load_model(bundle, device="cpu").score(data)
    files = [tmp_path / f"{number}.png" for number in range(len(data))]
    for file, content in zip(files, data, strict=True):
        file.write_bytes(content)
    texts = [base64.b64encode(content).decode() for content in data]
    for column in (data, texts, [str(file) for file in files]):
        table = model.predict(pd.DataFrame({"image": column}))
        assert list(table.columns) == ["image", "score", "std", "error"]
        assert table["error"].isna().all()
        np.testing.assert_allclose(table["score"], expected["score"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(table["std"], expected["std"], rtol=0, atol=1e-5)
    fewer = model.predict(pd.DataFrame({"image": data}), params={"crops": 3})
    assert (fewer["score"] != expected["score"]).all()


def test_whatever_is_no_picture_is_a_row_with_its_reason(model: Any, tmp_path: Path) -> None:
    data = [*(content for content, _ in uploads.BAD.values()), uploads.GOOD["PNG"]]
    table = model.predict(pd.DataFrame({"image": data}), params={"maps": True})
    for reason, (_, begins) in zip(table["error"], uploads.BAD.values(), strict=False):
        assert reason.startswith(begins)
    assert table["error"].iloc[-1] is None
    assert table["score"].isna().tolist() == [True] * len(uploads.BAD) + [False]
    assert table["quality_map"].isna().tolist() == table["score"].isna().tolist()
    odd = ["no/such/file.png", "", "%%%", "aGVsbG8=", str(tmp_path), "s3://", "x\0y", "a" * 5000]
    reasons = model.predict(pd.DataFrame({"image": odd}))["error"].tolist()
    assert all(reasons), reasons
    assert reasons[0] == "no such file or directory"
    assert reasons[3] == "not an image"


def test_maps_are_eight_bit_pictures(model: Any, bundle: str) -> None:
    data = uploads.GOOD["JPEG"]
    row = model.predict(pd.DataFrame({"image": [data]}), params={"maps": True}).iloc[0]
    drawn = load_model(bundle, device="cpu").score([data], maps=True).iloc[0]
    for half in ("degradation", "quality"):
        map_hw = drawn[f"{half}_map"]
        picture = Image.open(io.BytesIO(base64.b64decode(row[f"{half}_map"])))
        assert (picture.format, picture.mode) == ("PNG", "L")
        low, high = float(picture.info["low"]), float(picture.info["high"])
        assert (low, high) == pytest.approx((map_hw.min(), map_hw.max()), rel=1e-4)
        back_hw = low + np.asarray(picture) / 255 * (high - low)
        np.testing.assert_allclose(back_hw, map_hw, rtol=0, atol=(high - low) * 0.51 / 255 + 1e-5)


@pytest.fixture(scope="module")
def server(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve`, as docs/serving.md starts it."""
    log = tmp_path_factory.mktemp("server") / "log"
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = ["mlflow", "models", "serve", "--model-uri", MODEL, "--env-manager", "local"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=stream,
            stderr=stream,
            cwd=log.parent,
            env=jobs.environment()
            | {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(server: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{server}/invocations",
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_mlflow_serves_every_format(server: str, bundle: str) -> None:
    data = list(uploads.GOOD.values())
    expected = load_model(bundle, device="cpu").score(data)
    texts = [[base64.b64encode(content).decode()] for content in data]
    body = {"dataframe_split": {"columns": ["image"], "data": texts}}
    status, answer = ask(server, body)
    assert status == 200, answer
    scores = [row["score"] for row in answer["predictions"]]
    np.testing.assert_allclose(scores, expected["score"], rtol=0, atol=1e-5)
    status, answer = ask(server, body | {"params": {"maps": True, "crops": 3}})
    assert status == 200, answer
    first = answer["predictions"][0]
    assert base64.b64decode(first["quality_map"]).startswith(b"\x89PNG")
    assert first["score"] != scores[0]


def test_mlflow_serves_rows_with_errors(server: str) -> None:
    texts = [[base64.b64encode(content).decode()] for content, _ in uploads.BAD.values()]
    body = {"dataframe_split": {"columns": ["image"], "data": texts}}
    status, answer = ask(server, body)
    assert status == 200, answer
    for row, (_, begins) in zip(answer["predictions"], uploads.BAD.values(), strict=True):
        assert row["error"].startswith(begins)
        assert row["score"] is None
    for body in ({}, {"dataframe_split": {"columns": ["photo"], "data": texts}}, {"inputs": 3}):
        assert ask(server, body)[0] == 400
    secret = {"dataframe_split": {"columns": ["image"], "data": [["/etc/passwd="]]}}
    status, answer = ask(server, secret)
    assert status == 400 or answer["predictions"][0]["error"] == "not an image", "no path is opened"
