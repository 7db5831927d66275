"""Bucket set-up and checks against the real store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dri_iqa.retrying import StorageError
from pipelines.runtime.buckets import check_bucket, make_bucket
from tests.pipelines import jobs
from tests.servers.faulty_proxy import FaultyProxy


def test_a_bucket_is_asked_for_and_made(bucket: str) -> None:
    check_bucket(f"{bucket}/runs")
    check_bucket("/a/local/folder")
    with pytest.raises(StorageError) as caught:
        check_bucket("s3://not-made-yet/runs")
    first, second = str(caught.value).splitlines()
    assert first == "the bucket not-made-yet does not exist"
    command = second.partition("python ")[2].split()
    subprocess.run([sys.executable, *command], check=True, cwd=jobs.ROOT, env=jobs.environment())
    check_bucket("s3://not-made-yet/runs")
    make_bucket("s3://not-made-yet")


def test_a_failing_store_is_asked_again(bucket: str, faulty: Callable[..., FaultyProxy]) -> None:
    proxy = faulty(rate=0.5, seed=2, kinds=("503",))
    check_bucket(bucket)
    check_bucket(bucket)
    assert proxy.faults


def test_wrong_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-store")
    with pytest.raises(StorageError, match="cannot be used") as caught:
        check_bucket(bucket)
    assert "AWS credentials" in str(caught.value)
    assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)
