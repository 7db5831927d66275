"""How the nodes' answers are judged, on answers as one node of this machine gives them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dri_iqa import storage
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.publishing import publish
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.processor import lacks_bf16
from pipelines.runtime import config as configuration
from pipelines.runtime import node_report
from pipelines.runtime.capacity import check_parts
from pipelines.runtime.cluster import ClusterError
from pipelines.runtime.config import ClusterConfig
from pipelines.runtime.findings import Finding, judge
from pipelines.runtime.needs import (
    bf16_wanted,
    data_needed,
    hub_problem,
    model_problem,
    stale_data,
    weights_needed,
)
from pipelines.runtime.node_report import Questions, report, versions


@pytest.fixture
def answer(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "driver").write_text("token")
    questions = Questions(store=str(tmp_path), token="token", mlflow=None, weights={}, data={})
    found = report(questions, "node", str(tmp_path), state_api=False)
    roomy = {"total": 10**12, "free": 10**11}  # whatever this machine has left
    disks = [disk | roomy for disk in found["disks"]]
    return found | {
        "ahead": -0.01, "store_bytes": 1000, "disks": disks, "shared_memory": roomy
    }  # fmt: skip


def judged(**answers: dict[str, Any]) -> dict[str, Finding]:
    return {finding.check: finding for finding in judge(answers, {}, versions())}


def changed(answer: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    other = node = copy.deepcopy(answer)
    *folders, last = path.split("/")
    for name in folders:
        node = node[int(name) if name.isdigit() else name]
    node[last] = value
    return other


def test_equal_nodes_are_fine(answer: dict[str, Any]) -> None:
    found = judged(a=answer, b=answer)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["nodes"].found == "2 answered"
    assert f"ray {versions()['ray']}" in found["versions"].found


@pytest.mark.parametrize(
    ("path", "value", "check", "state", "said"),
    [
        ("versions/torch", "2.0.0", "versions", "failed", "torch 2.0.0, here"),
        ("versions/python", "3.12.1", "versions", "failed", "python 3.12.1, here"),
        ("ahead", 7.0, "clocks", "warning", "7 s ahead of the driver's"),
        ("ahead", -4000.0, "clocks", "failed", "4000 s behind the driver's"),
        ("disks/0/free", 10**8, "disk", "failed", "0.1 GB free"),
        ("disks/0/total", 10**15, "disk", "warning", "100% used"),
        ("shared_memory/total", 10, "shared memory", "warning", "slower disk"),
        ("store", "no permission", "store", "failed", "no permission"),
        ("precision", "x=bf16, and no products", "precision", "warning", "x=bf16"),
    ],
)
def test_what_one_node_lacks(
    answer: dict[str, Any], path: str, value: Any, check: str, state: str, said: str
) -> None:
    found = judged(good=answer, bad=changed(answer, path, value))
    assert (found[check].state, found[check].where) == (state, "bad")
    assert said in found[check].found
    assert found[check].do
    assert {other.state for other in found.values() if other.check != check} == {"ok"}


def test_a_node_that_does_not_answer(answer: dict[str, Any]) -> None:
    (finding, *_) = judge({"a": answer}, {"b": "no answer within 90 s"}, versions())
    assert (finding.check, finding.where, finding.state) == ("nodes", "b", "failed")


def test_no_credential_is_shown(answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    found = judged(bad=changed(answer, "store", "cannot read s3://b with hush-hush"))
    assert "hush" not in found["store"].found


def test_a_store_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("of another job")
    questions = Questions(store=str(tmp_path), token="token", mlflow=None, weights={}, data={})
    found = report(questions, "node", str(tmp_path), state_api=False)
    assert found["store"] == "it holds another file than the driver wrote"


def test_bf16_where_the_processor_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "driver").write_text("token")
    wanted = bf16_wanted(configuration.compose("full", ["stage2.optim.precision=bf16"]))
    questions = Questions(
        store=str(tmp_path), token="token", mlflow=None, weights={}, data={}, bf16=wanted
    )
    for lacks in (True, False):
        monkeypatch.setattr(node_report, "lacks_bf16", lambda lacks=lacks: lacks)
        found = report(questions, "node", str(tmp_path), state_api=False)["precision"]
        assert bool(found) == lacks
    on_gpus = ["stage2.optim.precision=bf16", "cluster.gpus_per_worker=1"]
    assert bf16_wanted(configuration.compose("full", on_gpus)) is None


@pytest.mark.parametrize(
    ("described", "lacks"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512f\n", True),
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("processor: 0\nFeatures\t: fp asimd\n", True),
        ("processor: 0\nFeatures\t: fp asimd bf16\n", False),
        ("a system that does not say", False),
    ],
)
def test_what_a_processor_says_of_bf16(tmp_path: Path, described: str, lacks: bool) -> None:
    (tmp_path / "cpuinfo").write_text(described)
    assert lacks_bf16(tmp_path / "cpuinfo") == lacks
    assert not lacks_bf16(tmp_path / "no such file")


@pytest.mark.parametrize(
    ("settings", "nodes", "said"),
    [
        ({"workers": 2, "gpus_per_worker": 1}, [{"CPU": 4, "GPU": 2}], None),
        (
            {"workers": 1, "gpus_per_worker": 2},
            [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}],
            "1 worker(s) x 0.5 CPU + 2 GPU are asked for, the nodes hold 0: 4 CPU + 1 GPU",
        ),
        ({"workers": 3, "cpus_per_worker": 1.5}, [{"CPU": 4}, {"CPU": 1}], "the nodes hold 2"),
        (
            {"degrade_resource": 1},
            [{"CPU": 0, "degrade": 1}, {"CPU": 2, "degrade": 0.5}],
            "no node holds a data task of 0.4 CPU + 1 degrade",
        ),
        ({"cpus_per_worker": 0}, [{"CPU": 1}], None),
    ],
)
def test_a_part_must_fit_into_one_node(
    settings: dict[str, Any], nodes: list[dict[str, float]], said: str | None
) -> None:
    if said is None:
        check_parts(ClusterConfig(**settings), nodes)
        return
    with pytest.raises(ClusterError, match=r"larger nodes|degrade_resource") as caught:
        check_parts(ClusterConfig(**settings), nodes)
    assert said in str(caught.value)


def test_only_what_a_job_builds_is_needed() -> None:
    files = [
        "model.backbone.weights=/w/vit.safetensors",
        "stage2.perceptual.weights=s3://w/vgg.safetensors",
    ]
    named = {
        "model.backbone.weights": "/w/vit.safetensors",
        "stage2.perceptual.weights": "s3://w/vgg.safetensors",
    }
    both = configuration.compose("full", files)
    assert weights_needed(both) == named
    backbone = {"model.backbone.weights": named["model.backbone.weights"]}
    assert weights_needed(configuration.compose("full", [*files, "stage2.variant=v2"])) == backbone
    assert weights_needed(configuration.compose("yardstick", files)) == backbone
    assert weights_needed(configuration.compose("pretrain", files)) == {}
    assert weights_needed(configuration.compose("full", ["preset=paper"])) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_224", None),
        ("vit_tiny_patch16_225", "no such model"),
        ("vit_tiny_patch16_224.of_nobody", "no pretrained weights"),
    ],
)
def test_hub_names_are_looked_up_without_a_download(name: str, said: str | None) -> None:
    settings = [f"model.backbone.name={name}", "model.backbone.weights=pretrained"]
    problem = hub_problem(configuration.compose("full", settings))
    assert problem is None if said is None else said in str(problem)


@pytest.mark.parametrize(
    ("job", "setting", "said"),
    [
        ("full", "model.backbone.blocks=[0,1,9]", "has blocks 0..4"),
        ("train", "model.predictor.window=3", "does not divide the token grid"),
        ("full", "model.backbone.name=mobilenet_of_nobody", "is no model of timm"),
        ("full", "model.predictor.readout=linear", None),
        ("pretrain", "model.backbone.blocks=[0,1,9]", None),
    ],
)
def test_a_model_that_cannot_be_built_is_told_before_stage_1(
    job: str, setting: str, said: str | None
) -> None:
    problem = model_problem(configuration.compose(job, ["preset=tiny", setting]))
    assert problem is None if said is None else said in str(problem)


def test_ingested_data_is_still_what_it_was(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    dataset = read_dataset("folder", str(tmp_path / "photos"))
    places = {role: str(tmp_path / role) for role in ("scored", "clean")}
    inputs: dict[str, str] = {"split_uri": str(tmp_path / "split.json")}
    for role, place in places.items():
        shards = [write_shard(plan, place) for plan in plan_shards(dataset, 8)]
        manifest = publish(place, dataset, shards, max_bad=0.0)
        inputs |= {f"{role}_uri": place, f"{role}_digest": manifest.digest}
    job = str(tmp_path / "job")
    settings = configuration.compose("full", ["data=csv", f"data.root={tmp_path / 'photos'}"])
    assert data_needed(settings, job) == {"data.root": str(tmp_path / "photos")}
    assert stale_data(job) is None, "nothing was ingested yet"

    record = storage.join(job, "steps", "ingest.json")
    storage.write_json(record, {"result": {"inputs": inputs}})
    assert data_needed(settings, job) == {}, "the photographs may be gone by now"
    assert f"split.json is missing\nremove {record}" in str(stale_data(job))
    storage.write_json(inputs["split_uri"], {})
    assert stale_data(job) is None
    storage.write_json(
        record, {"result": {"inputs": inputs | {"clean_digest": "0123456789abcdef"}}}
    )
    assert "this job ingested 0123456789ab" in str(stale_data(job))
    storage.delete(places["scored"])
    assert f"manifest.json does not exist\nrestore it, or remove {record}" in str(stale_data(job))
