"""Shared fixtures: where optional real data lies, and a finished run of the main job that several tests look at."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.object_store import ObjectStore

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs, where `DRI_IQA_SHARED` names one."""
    folder = os.environ.get("DRI_IQA_SHARED")
    if not folder:
        pytest.skip("DRI_IQA_SHARED is not set: no real photographs")
    return Path(folder)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server, started once."""
    store = ObjectStore(tmp_path_factory.mktemp("object_store"))
    yield store
    store.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser, started once."""
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


_BUCKETS = itertools.count()


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket that the environment's credentials and endpoint lead to."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return object_store.make_bucket(f"test-{next(_BUCKETS)}")


@pytest.fixture
def faulty(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FaultyProxy]]:
    """Puts a proxy in front of the store from then on: `proxy = faulty(rate=0.1, seed=0)`."""
    started: list[FaultyProxy] = []

    def start(rate: float, **options: Any) -> FaultyProxy:
        started.append(FaultyProxy(object_store.endpoint, rate, **options))
        monkeypatch.setenv("AWS_ENDPOINT_URL", started[-1].endpoint)
        return started[-1]

    yield start
    for proxy in started:
        proxy.close()
