"""Who becomes the champion, on a real MLflow server: kills in the middle, two processes at once, the way back."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from PIL import Image

from dri_iqa import load_model, storage
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.models import build_model
from pipelines import register as registration
from pipelines.contest import incomparable, judge
from pipelines.ingest import ingest
from pipelines.runtime import config as configuration
from pipelines.runtime import promotion
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, run
from pipelines.runtime.mlflow_server import speaking_to
from pipelines.runtime.promotion import Comparison, RegistryError, Tags, rollback, settle
from pipelines.testing import evaluate
from tests.pipelines import jobs
from tests.servers.mlflow_server import MlflowServer
from tests.tiny import tiny_model

GROUPS = np.repeat(np.arange(12), 5)
GIVEN = np.random.default_rng(0).normal(size=60)


def noisy(spread: float, seed: int) -> np.ndarray:
    return GIVEN + spread * np.random.default_rng(seed).normal(size=60)


def judged(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray = GROUPS) -> Comparison:
    return judge(ours, theirs, GIVEN, groups, champion="4", seed=0, n=300)


def test_better_is_what_an_interval_above_zero_says() -> None:
    good, bad = noisy(0.3, 1), noisy(2.0, 2)
    assert judged(good, bad).better
    assert not judged(bad, good).better
    assert not judged(good, good).better, "an equal one is not better"
    assert not judged(good, 3 * good + 1).better, "nor one that ranks alike"
    near = judged(noisy(0.50, 1), noisy(0.51, 2))
    assert near.numbers["srocc_difference_low"] < 0 < near.numbers["srocc_difference_high"]
    assert not near.better


def test_a_judgement_resamples_scenes_not_images() -> None:
    """The champion is upside down in one scene of six: as images these are many, as scenes too few to tell."""
    rng = np.random.default_rng(0)
    group_N, given_N = np.repeat(np.arange(6), 20), rng.normal(size=120)
    ours_N, theirs_N = (given_N + 0.3 * rng.normal(size=120) for _ in range(2))
    theirs_N[:20] = -given_N[:20]
    settings: dict[str, Any] = {"champion": "4", "seed": 0, "n": 1000}
    assert judge(ours_N, theirs_N, given_N, np.arange(120), **settings).better
    assert not judge(ours_N, theirs_N, given_N, group_N, **settings).better


def test_what_cannot_be_resampled_or_ranked() -> None:
    good, bad = noisy(0.3, 1), noisy(2.0, 2)
    assert not judged(good, bad, np.zeros(60)).better, "one scene says nothing of others"
    constant = np.zeros(60)
    assert not judged(constant, bad).better
    assert judged(bad, constant).better
    assert not judged(constant, constant).better
    assert "predictions are constant" in judged(bad, constant).text
    assert not judge(good, bad, GIVEN, GROUPS, champion="4", seed=0, n=0).better


def test_only_the_same_test_of_the_same_scores_is_compared() -> None:
    facts = {"data": "sample", "kind": "pseudo", "manifest": "a", "split": "b"}
    assert incomparable(facts, dict(facts)) == ""
    said = {key: incomparable(facts, facts | {key: "x"}) for key in facts}
    assert all(said.values())
    assert len(set(said.values())) == 4
    assert "sample (x scores)" in said["kind"]
    assert incomparable(facts, {}), "a version of unknown origin"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started.address
    started.kill()


@pytest.fixture
def client(server: str) -> MlflowClient:
    return MlflowClient(tracking_uri=server, registry_uri=server)


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


def test_two_processes_at_once_end_consistent(server: str, client: MlflowClient) -> None:
    name = empty_model(client)
    qualities = (3, 4, 4, 7, 6, 7)
    versions = [add(client, name, quality) for quality in qualities]
    client.set_registered_model_tag(name, "changes", "0")
    environment = jobs.environment() | {"PYTHONPATH": str(jobs.ROOT)}
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, server, name, *versions[half::2]],
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
    assert [rival.communicate()[0] for rival in rivals] == ["", ""]
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
    server: str,
    client: MlflowClient,
    bundles: dict[str, Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = Path(bundles["good"]["uri"]).parent / "pictures"
    output = tmp_path / "runs"
    common = [f"output={output}", "tracking=server", f"tracking.uri={server}"]
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
    with speaking_to(server):
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
