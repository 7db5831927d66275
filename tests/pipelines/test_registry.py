"""Who becomes the champion, on a real MLflow server: kills in the middle, two processes at once, the way back."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from pipelines.runtime import promotion
from pipelines.runtime.promotion import Comparison, RegistryError, Tags, rollback, settle
from tests.pipelines import jobs


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """A registry in a file, as embedded tracking has it: for tests of many requests."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('local') / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


NAMES = (f"model-{number}" for number in itertools.count())


def empty_model(client: MlflowClient) -> str:
    """The name of a new registered model."""
    name = next(NAMES)
    client.create_registered_model(name)
    return name


def add(client: MlflowClient, name: str, quality: int) -> str:
    tags = {"quality": str(quality)}
    return str(client.create_model_version(name, source="s3://nowhere/model", tags=tags).version)


class Ladder:
    """Contests by a tag `quality`, and what `follow` was told."""

    def __init__(self, client: Any, name: str, pointer: list[str] | None = None) -> None:
        self.client, self.name = client, name
        self.pointer = [] if pointer is None else pointer
        self.contests = 0
        self.said: list[str] = []

    def follow(self, version: str, tags: Tags) -> None:
        assert tags["quality"]
        self.pointer.append(version)

    def settle(self, version: str, force: bool = False) -> promotion.Decision:
        def contest(champion: str, theirs: Tags) -> Comparison:
            self.contests += 1
            mine = self.client.get_model_version(self.name, version).tags
            better = int(mine["quality"]) > int(theirs["quality"])
            return Comparison(better=better, text=f"compared with {champion}")

        return settle(
            self.client,
            self.name,
            version,
            contest,
            follow=self.follow,
            say=self.said.append,
            force=force,
        )

    def back(self) -> str:
        return rollback(self.client, self.name, follow=self.follow, say=self.said.append)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(self.name)
        assert not [tag for tag in found.tags if tag.startswith(promotion.FLAG)], "no flag is left"
        return {alias: str(version) for alias, version in found.aliases.items()}


def test_worse_equal_better_forced_and_back(local: MlflowClient) -> None:
    client, name = local, empty_model(local)
    ladder = Ladder(client, name)
    versions = [add(client, name, quality) for quality in (5, 4, 5, 7, 6)]
    assert ladder.settle("1").text == f"version 1 is the champion: the first of {name}"
    assert ladder.aliases() == {"champion": "1"}
    said = ladder.settle("2")
    assert said.text == "candidate version 2 stays candidate: compared with 1"
    assert said.alias == "candidate"
    assert ladder.settle("3").alias == "candidate"
    assert ladder.aliases() == {"champion": "1", "candidate": "3"}
    assert ladder.settle("4").text == (
        "version 4 is the champion: compared with 1; it replaced version 1"
    )
    assert ladder.aliases() == {"champion": "4", "previous": "1", "candidate": "3"}
    assert ladder.settle("5").alias == "candidate"
    before = ladder.contests
    assert ladder.settle("5").alias == "candidate", "a decision stands"
    assert ladder.contests == before
    assert ladder.settle("5", force=True).text == (
        "version 5 is the champion: by registry.force=true, although compared with 4;"
        " it replaced version 4"
    )
    assert ladder.aliases() == {"champion": "5", "previous": "4"}
    assert client.get_model_version(name, "5").tags["forced"] == "by registry.force=true"
    assert all("decision" in client.get_model_version(name, one).tags for one in versions)

    assert "version 4 is the champion again, in place of version 5" in ladder.back()
    assert ladder.aliases() == {"champion": "4", "previous": "1"}
    assert "rolled back to version 4" in ladder.settle("5").text
    assert "there is no previous one" in ladder.back()
    assert ladder.aliases() == {"champion": "1"}
    with pytest.raises(RegistryError, match=r"no previous champion .* \(champion: version 1\)"):
        ladder.back()
    assert ladder.aliases() == {"champion": "1"}
    assert ladder.settle("4").text == (
        "version 4 became the champion: compared with 1; it replaced version 1;"
        " it was rolled back to version 1"
    )
    ladder.settle("4", force=True)
    assert ladder.aliases() == {"champion": "4", "previous": "1"}
    assert "rolled_back" not in client.get_model_version(name, "4").tags
    assert ladder.pointer == ["1", "4", "5", "4", "1", "4"]
    with pytest.raises(RegistryError, match="holds no model nobody"):
        rollback(client, "nobody", follow=ladder.follow, say=print)


class Killed(BaseException):
    """What a SIGKILL looks like from here."""


class Dying:
    """A client whose process is killed before one of its writes: nothing is written from then on."""

    def __init__(self, client: MlflowClient, writes: int) -> None:
        self._client, self._left = client, writes

    def __getattr__(self, attribute: str) -> Callable[..., Any]:
        method = getattr(self._client, attribute)

        def call(*arguments: Any, **named: Any) -> Any:
            if attribute.startswith(("set_", "delete_")):
                if not self._left:
                    raise Killed
                self._left -= 1
            return method(*arguments, **named)

        return call


def test_waiting_for_another_job_is_said_once(
    local: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "QUIET_S", 0.0)
    monkeypatch.setattr(promotion, "PATIENCE_S", 0.5)
    name = empty_model(local)
    local.set_registered_model_tag(name, promotion.FLAG + "0", "")  # of a process that died
    said: list[str] = []
    with promotion.alone(local, name, said.append):
        pass
    assert len(said) == 1
    assert name in said[0]
    with promotion.alone(local, name, said.append):
        pass
    assert len(said) == 1


@pytest.mark.parametrize("what", ["better", "rollback"])
def test_killed_before_any_write_it_is_finished_by_the_next(
    local: MlflowClient, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    client = local
    monkeypatch.setattr(promotion, "PATIENCE_S", 0.0)
    monkeypatch.setattr(promotion, "PAUSE_S", 0.0)
    for writes in itertools.count():
        name = empty_model(client)
        for quality in (1, 2, 3):
            add(client, name, quality)
        pointer: list[str] = []
        whole = Ladder(client, name, pointer)
        whole.settle("1")
        whole.settle("2")
        killed, finished = Ladder(Dying(client, writes), name, pointer), False
        try:
            killed.settle("3") if what == "better" else killed.back()
            finished = True
        except Killed:
            with promotion.alone(
                client, name, print
            ):  # whoever comes next removes the abandoned flag
                pass
            if what == "better":
                whole.settle("3")
            elif "previous" in whole.aliases():  # as a person would who was told nothing
                whole.back()
        if what == "better":
            assert whole.aliases() == {"champion": "3", "previous": "2"}, writes
            assert client.get_model_version(name, "3").tags["decision"] == "champion"
            assert pointer[-1] == "3"
        else:
            assert whole.aliases() == {"champion": "1"}, writes
            assert pointer[-1] == "1"
        if finished:
            break
    assert writes > 4


class SlowTags:
    """The registered model's tags alone, each request taking a random while before and after it has its effect."""

    def __init__(self) -> None:
        self._tags: dict[str, str] = {}
        self._random = random.Random(0)

    def _do(self, work: Callable[[], Any]) -> Any:
        time.sleep(self._random.random() * 1e-3)
        done = work()
        time.sleep(self._random.random() * 1e-3)
        return done

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._do(lambda: self._tags.update({key: value}))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self._do(lambda: self._tags.pop(key, None))

    def get_registered_model(self, name: str) -> SimpleNamespace:
        return self._do(lambda: SimpleNamespace(tags=dict(self._tags)))


def test_many_that_decide_are_alone_and_all_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "PAUSE_S", 5e-4)
    client, inside, most = cast(Any, SlowTags()), [], []

    def decide() -> None:
        for _ in range(10):
            with promotion.alone(client, "model", print):
                inside.append(None)
                time.sleep(1e-3)
                most.append(len(inside))
                inside.pop()

    rivals = [threading.Thread(target=decide, daemon=True) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(timeout=15)  # far below the patience with which a deadlock would end
    assert most == [1] * 40, "neither two at a time nor waiting for each other"
    assert not client.get_registered_model("model").tags


RIVAL = """
import sys, time
from mlflow import MlflowClient
from pipelines.runtime.promotion import Comparison, alone, settle
address, name, versions = sys.argv[1], sys.argv[2], sys.argv[3:]
client = MlflowClient(tracking_uri=address, registry_uri=address)
def quality(version):
    return int(client.get_model_version(name, version).tags["quality"])
def count(version, tags):  # not atomic: a second process inside would be lost
    seen = int(client.get_registered_model(name).tags["changes"])
    time.sleep(0.05)
    client.set_registered_model_tag(name, "changes", str(seen + 1))
print("ready", flush=True)
sys.stdin.readline()
for version in versions:
    def contest(champion, theirs):
        time.sleep(0.05)
        return Comparison(better=quality(version) > int(theirs["quality"]), text="by quality")
    settle(client, name, version, contest, follow=count, say=print)
"""


def test_two_processes_at_once_end_consistent(registry_server: str, client: MlflowClient) -> None:
    name = empty_model(client)
    qualities = (3, 4, 4, 7, 6, 7)
    versions = [add(client, name, quality) for quality in qualities]
    client.set_registered_model_tag(name, "changes", "0")
    environment = jobs.environment() | {"PYTHONPATH": str(jobs.ROOT)}
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, registry_server, name, *versions[half::2]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for half in (0, 1)
    ]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    said = [line for rival in rivals for line in rival.communicate()[0].splitlines()]
    assert all("waiting for another job's decision" in line for line in said), said
    assert [rival.returncode for rival in rivals] == [0, 0]

    tags = {version: client.get_model_version(name, version).tags for version in versions}
    champions = [version for version in versions if tags[version]["decision"] == "champion"]
    aliases = Ladder(client, name).aliases()
    chain = [aliases["champion"]]
    while before := tags[chain[-1]]["replaces"]:
        chain.append(before)
    assert sorted(chain) == sorted(champions), "each champion replaced the one before it"
    along = [int(tags[version]["quality"]) for version in chain]
    assert along == sorted(set(along), reverse=True), "and was better"
    assert along[0] == max(qualities)
    assert aliases["previous"] == chain[1]
    assert tags[aliases["candidate"]]["decision"] == "candidate"
    changes = client.get_registered_model(name).tags["changes"]
    assert int(changes) == len(champions), "one at a time"
