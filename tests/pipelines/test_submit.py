"""The main job under `ray job submit`, from a working directory that Ray unpacks.

The one that every test of `finished` looks at is submitted too: from the head's own folder, with a search.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipelines import jobs
from tests.pipelines.heads import DEGRADE, NOTHING_LEFT, Head, head

pytestmark = pytest.mark.ray

COMMIT = "0123abcd"
UNPACKED = (
    "--working-dir",
    ".",
    "--runtime-env-json",
    f'{{"env_vars": {{"DRI_IQA_COMMIT": "{COMMIT}"}}}}',
)
# Both stages on two workers, without a search; tests/faults has what befalls those in stage 1.
SETTINGS = (
    *(jobs.BRIEF[0], *jobs.BRIEF[2:], DEGRADE),
    "search.trials=0",
    "stage2.optim.epochs=1",
    "cluster.workers=2",
    "cluster.cpus_per_worker=0.5",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("head")) as started:
        yield started


def full(*arguments: str) -> tuple[str, ...]:
    return ("python", "pipelines/full.py", *arguments)


def test_a_submitted_job_registers_a_version(cluster: Head, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    answer = cluster.submit(*UNPACKED, entrypoint=full(f"output={output}", *SETTINGS))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "2 training worker(s)" in answer.stdout
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'dri-iqa'")
    assert client.get_model_version_by_alias("dri-iqa", "champion").version == version.version
    assert (version.tags["decision"], version.tags["commit"]) == ("champion", COMMIT)


def test_a_failing_job_has_an_exit_code(cluster: Head, tmp_path: Path) -> None:
    mistyped = full(f"output={tmp_path}", "stage1.optm.lr=1")
    answer = cluster.submit(*UNPACKED, entrypoint=mistyped)
    assert answer.returncode != 0
    assert "did you mean stage1.optim.lr?" in answer.stdout + answer.stderr


def test_nothing_is_left_on_the_cluster(cluster: Head) -> None:
    assert cluster.left() == NOTHING_LEFT
