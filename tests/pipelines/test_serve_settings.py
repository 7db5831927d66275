"""How the scoring service is told what to do: its manifest, and mistakes that are told before Ray starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from dri_iqa.config import ConfigError, from_dict
from pipelines import serve
from pipelines.runtime import serving
from pipelines.runtime.job import run
from pipelines.runtime.serve_config import ServeConfig
from tests import uploads
from tests.pipelines import jobs


def test_the_manifest_is_what_serve_and_the_application_take() -> None:
    values = yaml.safe_load((jobs.ROOT / "infra" / "serve.yaml").read_text())
    manifest = ServeDeploySchema.model_validate(values)
    (application,) = manifest.applications
    assert manifest.http_options.host == "127.0.0.1"
    assert not manifest.grpc_options.grpc_servicer_functions
    assert application.import_path == "pipelines.serve:application"
    assert callable(serve.application)
    assert from_dict(ServeConfig, application.args).model == "models:/dri-iqa@champion"
    assert [deployment.name for deployment in application.deployments] == [serving.Scoring.name]


def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: str) -> str:
        assert run("serve", serve.steps, [f"output={tmp_path}", *arguments]) == 2
        return capsys.readouterr().err

    def nothing() -> str:
        raise ValueError

    bundle = uploads.untrained(tmp_path / "bundle", probed=False)
    here = ("cluster=local", f"serve.model={bundle}")
    assert "no model at '/nowhere'" in fails("cluster=local", "serve.model=/nowhere")
    assert "serve.batch: got 0" in fails(*here, "serve.batch=0")
    assert "serve.batch: got 8, but" in fails(*here, "serve.ongoing=2")
    monkeypatch.setattr(serving, "default_model", nothing)
    assert "set serve.model=" in fails("cluster=local")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} is taken" in fails(*here, f"serve.port={port}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "serve deploy infra/serve.yaml" in fails(f"serve.model={bundle}")
    assert "RAY_ADDRESS" in os.environ
    with pytest.raises(ConfigError, match="wait_s"):
        serve.application({"model": bundle, "wait_s": 3})
