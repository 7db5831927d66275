"""A bundle's graph against its network: equal scores, no torch, and no byte that was not vouched for."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import dri_iqa
from dri_iqa import load_model
from dri_iqa.bundle import BundleError, ScoreScale, load_bundle, read_bundle, save_bundle
from dri_iqa.cli import app
from dri_iqa.config import BackboneConfig, CompanionConfig, ModelConfig
from dri_iqa.graph import Graph, GraphRunner
from dri_iqa.models import DRIIQA, build_model
from dri_iqa.scoring import Scorer
from tests.tiny import CROP, tiny_model

SCALE = ScoreScale(lo=1.0, hi=5.0, name="MOS")
IMAGES = 6


def mobile() -> ModelConfig:
    """Everything that the model that comes along has, smaller."""
    plain = tiny_model()
    return replace(
        plain,
        backbone=BackboneConfig(name="mobilenetv2_050", weights="none", blocks=(0, 1), kwargs={}),
        predictor=replace(plain.predictor, readout="linear"),
        companion=CompanionConfig(images=IMAGES, gamma=0.01),
    )


def made(config: ModelConfig) -> DRIIQA:
    """With statistics of its own in every normalisation, as after training."""
    model = build_model(config, backbone_weights=False, seed=1)
    image_NCHW = torch.rand(IMAGES, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    if model.companion is not None:
        model.companion.fit(
            model.companion.statistics(image_NCHW), torch.linspace(0, 1, len(image_NCHW))
        )
    with torch.no_grad():
        if model.readout is not None:  # both begin at zero
            for parameter in (*model.readout.parameters(), *model.predictor.head.parameters()):
                parameter.normal_(0, 0.02)
        model.train()(image_NCHW)
    return model.eval()


# torch's exporter takes half a minute for each: the suite has no time for both.
@pytest.fixture(scope="module", params=[pytest.param("vit", marks=pytest.mark.hours), "mobile"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_model() if request.param == "vit" else mobile()
    place = tmp_path_factory.mktemp(request.param) / "b"
    save_bundle(made(config), place, model_config=config, score=SCALE, meta={}, graph=True)
    return place


def photo(seed: int, height: int = 90, width: int = 110) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3))
    return np.kron(noise, np.ones((5, 5, 1))).astype(np.uint8)


def test_scores_are_the_networks_and_do_not_depend_on_order_or_batch(folder: Path) -> None:
    graph, network = load_model(folder, device="cpu"), load_model(folder, engine="torch")
    assert isinstance(graph._runner, GraphRunner)
    assert not isinstance(network._runner, GraphRunner)
    photos = [photo(seed, 70 + 10 * seed) for seed in range(4)]
    for crops in (1, 7, "uniform4"):
        found = graph.score(photos, crops=crops)
        expected = network.score(photos, crops=crops)
        assert len(set(expected.score)) == 4
        np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
        np.testing.assert_allclose(found["std"], expected["std"], atol=1e-5)
        assert found.attrs == expected.attrs
        again = graph.score(photos[::-1], crops=crops, batch_size=1)
        assert again.score.tolist() == found.score.tolist()[::-1]


def test_bits_do_not_depend_on_threads_and_few_pictures_are_in_memory(folder: Path) -> None:
    files = read_bundle(str(folder))
    asked: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for index in itertools.count():
            asked.append(index)
            yield photo(index % 3)

    found = []
    for threads in (1, 3):
        scorer = Scorer(files)
        scorer._runner = GraphRunner(files, threads=threads)
        rows = scorer.iter_scored(endless(), crops=4, batch_size=2)
        found.append([next(rows).score_K.tolist() for _ in range(5)])  # type: ignore[union-attr]
        rows.close()  # type: ignore[attr-defined]
        assert len(asked) <= 5 + 2 * threads * 2 // 4 + 3, "pictures are read as they are needed"
        asked.clear()
    assert found[0] == found[1]
    assert found[0][:2] == found[0][3:]


def test_maps_and_bundle_are_those_of_the_network(folder: Path) -> None:
    graph, network = load_model(folder), load_model(folder, engine="torch")
    found, expected = (scorer.score([photo(1)], maps=True) for scorer in (graph, network))
    np.testing.assert_array_equal(found.quality_map[0], expected.quality_map[0])
    assert graph.bundle.digest == network.bundle.digest == load_bundle(folder).digest
    assert graph.bundle.graph


def test_bf16_compilation_and_other_devices_are_the_networks(folder: Path) -> None:
    assert not isinstance(load_model(folder, precision="bf16")._runner, GraphRunner)
    for options in ({"precision": "bf16"}, {"compile": True}, {"device": "cuda"}):
        with pytest.raises(ValueError, match="a graph scores on the CPU"):
            Scorer(read_bundle(str(folder)), **options)
    with pytest.raises(ValueError, match="engine: got 'onnx', expected auto or torch"):
        load_model(folder, engine="onnx")  # type: ignore[arg-type]


def test_the_command_line_scores_without_torch(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(2)).save(tmp_path / "a.png")
    command = ["score", str(tmp_path / "a.png"), "--model", str(folder), "--format", "json"]
    code = (
        "import sys; from dri_iqa.cli import app\n"
        f"try: app({command!r})\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = {'torch', 'timm', 'pandas', 'scipy', 'cv2', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = str(Path(dri_iqa.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "", "the runtime has nothing to say"
    (row,) = json.loads(ran.stdout)
    expected = load_model(folder, engine="torch").score([tmp_path / "a.png"])
    assert row["score"] == pytest.approx(expected.score.item(), abs=1e-5)


def test_without_the_runtime_the_network_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dri_iqa.scoring.has_runtime", lambda: False)
    assert not isinstance(load_model(folder)._runner, GraphRunner)


def test_where_the_runtime_cannot_run_the_graph_the_network_scores_and_it_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = read_bundle(str(folder))
    assert files.graph is not None
    newer = replace(files, graph=files.graph.replace(b"LeakyRelu", b"LoudyRelu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dri_iqa.scoring.read_bundle", lambda _: newer)
        scorer = load_model(folder)
    assert not isinstance(scorer._runner, GraphRunner)
    (said,) = caplog.messages
    assert str(folder) in said
    assert "LoudyRelu" in said
    expected = load_model(folder, engine="torch").score([photo(1)])
    assert scorer.score([photo(1)]).score.item() == expected.score.item()


def test_a_changed_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / "graph.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "graph.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"graph\.onnx is not the file that was written"):
        load_model(copy)


def test_a_graph_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may name any file beside it, or where the process works: only the bundle's bytes are there."""
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"
    ]
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["y"])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [weight]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    data = model.SerializeToString()
    with pytest.raises(BundleError, match="the graph cannot be run"):
        Graph(data, b"", "model.safetensors")
    given = Graph(data, Path("secret.bin").read_bytes(), "secret.bin")
    assert given(np.zeros(4, np.float32)).tolist() == [0, 1, 2, 3]


def test_a_part_of_a_network_has_no_graph(tmp_path: Path) -> None:
    config = mobile()
    kept = ["dre", "backbone", "predictor", "readout"]
    with pytest.raises(BundleError, match=r"part of a network: companion\.\S+ is not kept"):
        save_bundle(
            made(config),
            tmp_path / "b",
            model_config=config,
            score=SCALE,
            meta={},
            parts=kept,
            graph=True,
        )
    assert os.listdir(tmp_path) == []


def test_repacked_it_keeps_its_graph_or_loses_it(folder: Path, tmp_path: Path) -> None:
    for name, options, has in [("a", [], True), ("b", ["--no-graph"], False)]:
        out = tmp_path / name
        told = CliRunner().invoke(app, ["repack", str(folder), "--out", str(out), *options])
        assert told.exit_code == 0, told.output
        assert (load_bundle(out).graph is not None) is (out / "graph.onnx").exists() is has
    assert (tmp_path / "a" / "graph.onnx").read_bytes() == (folder / "graph.onnx").read_bytes()


def test_a_graph_that_is_not_the_networks_is_refused(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.graph is not None
    swapped = bundle.graph.replace(b"LeakyRelu", b"LoudyRelu")
    for graph, message in [
        (swapped, "the graph cannot be run"),
        (bundle.graph.replace(b"Sub", b"Add"), "its scores are .* away from the network's"),
    ]:
        assert graph != bundle.graph
        with pytest.raises(BundleError, match=message):
            save_bundle(
                bundle.model,
                tmp_path / "b",
                model_config=bundle.config,
                score=SCALE,
                meta={},
                graph=graph,
            )
    assert os.listdir(tmp_path) == []


ELSEWHERE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(given,), (made,) = session.get_inputs(), session.get_outputs()
about = json.loads(session.get_modelmeta().custom_metadata_map["dri_iqa.json"])
image_BCHW = np.load(sys.argv[2])
assert not any(name.startswith(("dri_iqa", "torch")) for name in sys.modules)
print(json.dumps([given.name, made.name, about, session.run(None, {given.name: image_BCHW})[0].tolist()]))
"""


@pytest.mark.parametrize("folder", ["mobile"], indirect=True)
def test_exported_as_onnx_it_runs_without_this_package(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    told = CliRunner().invoke(app, ["export", "--model", str(folder), "--out", str(out)])
    assert told.exit_code == 0, told.output
    image_BCHW = np.random.default_rng(0).random((3, 3, CROP, CROP), dtype=np.float32)
    np.save(tmp_path / "x.npy", image_BCHW)
    command = [sys.executable, "-c", ELSEWHERE, str(out), str(tmp_path / "x.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    given, named, about, scores = json.loads(ran.stdout)
    bundle = load_bundle(folder)
    assert (given, named) == ("image_BCHW", "score_B")
    assert (about["crop"], about["bundle"], about["score"]["hi"]) == (CROP, bundle.digest, 5)
    with torch.no_grad():
        expected = bundle.model(torch.from_numpy(image_BCHW))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert b"site-packages" not in out.read_bytes(), "no paths of the machine that made it"
