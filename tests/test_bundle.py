"""A bundle comes back exactly as it was written, or is refused with the name of what differs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import dri_iqa
from dri_iqa import load_model, storage
from dri_iqa.bundle import BundleError, ScoreScale, ScoringPolicy, load_bundle, save_bundle
from dri_iqa.config import ConfigError, to_dict
from dri_iqa.models import build_model
from tests.tiny import tiny_model

CONFIG = tiny_model()
SCALE = ScoreScale(lo=1.0, hi=5.0, higher_is_better=True, name="MOS", kind="pseudo")
META = {"data": {"manifest": "abc"}, "srocc": 0.9}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(CONFIG, backbone_weights=False, seed=3).eval()


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    save_bundle(model, tmp_path / "b", model_config=CONFIG, score=SCALE, meta=META)
    return tmp_path / "b"


def edit(folder: Path, change: Any, reseal: bool = False) -> None:
    """Change config.json; `reseal` makes the digest fit again, as a careful forger would."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    if reseal:
        values.pop("sha256")
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        values["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(values))


def edit_tensors(folder: Path, change: Any) -> None:
    """Change the tensors and everything that vouches for them."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(folder, lambda values: values["tensors"].update(sha256=digest), reseal=True)


def test_round_trip(model: torch.nn.Module, folder: Path) -> None:
    loaded = load_bundle(folder)
    assert loaded.config == CONFIG
    assert loaded.score == SCALE
    assert loaded.scoring == ScoringPolicy()
    assert loaded.meta == META
    assert loaded.versions["torch"] == metadata.version("torch")
    assert not loaded.model.training
    expected = model.state_dict()
    found = loaded.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    image_BCHW = torch.rand(2, 3, CONFIG.crop, CONFIG.crop)
    with torch.no_grad():
        assert torch.equal(loaded.model(image_BCHW), model(image_BCHW))


def test_only_json_and_safetensors_and_equal_input_gives_equal_bytes(
    model: torch.nn.Module, folder: Path
) -> None:
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    again = folder.with_name("again")
    digest = save_bundle(model, again, model_config=CONFIG, score=SCALE, meta=META)
    for name in os.listdir(folder):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert digest == load_bundle(folder).digest
    other = save_bundle(model, again, model_config=CONFIG, score=SCALE, meta={})
    assert other != digest


def test_wrong_format_version(folder: Path) -> None:
    edit(folder, lambda values: values.update(format_version=4), reseal=True)
    with pytest.raises(BundleError, match="format version 4, expected 1 to 3"):
        load_bundle(folder)


def test_unknown_key(folder: Path) -> None:
    edit(folder, lambda values: values["model"]["predictor"].update(windw=4), reseal=True)
    with pytest.raises(BundleError, match=r"unknown key model\.predictor\.windw.*window"):
        load_bundle(folder)


def test_ill_typed_value(folder: Path) -> None:
    edit(folder, lambda values: values["score"].update(lo="low"), reseal=True)
    with pytest.raises(BundleError, match=r"score\.lo: got 'low'"):
        load_bundle(folder)


def test_changed_configuration(folder: Path) -> None:
    edit(folder, lambda values: values["score"].update(hi=100.0))
    with pytest.raises(BundleError, match=r"config\.json was changed"):
        load_bundle(folder)


@pytest.mark.parametrize("position", [0.001, 0.5, 0.999])
def test_changed_byte(folder: Path, position: float) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that was written"):
        load_bundle(folder)


def test_missing_tensor(folder: Path) -> None:
    names = sorted(safetensors.torch.load_file(folder / "model.safetensors"))
    edit_tensors(folder, lambda tensors: tensors.pop(names[5]))
    with pytest.raises(BundleError, match=f"missing tensor {names[5]}"):
        load_bundle(folder)


def test_extra_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update(surprise=torch.zeros(2)))
    with pytest.raises(BundleError, match="extra tensor surprise"):
        load_bundle(folder)


@pytest.mark.parametrize("replacement", [torch.zeros(2), None])
def test_misshapen_or_retyped_tensor(folder: Path, replacement: torch.Tensor | None) -> None:
    name = sorted(safetensors.torch.load_file(folder / "model.safetensors"))[5]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].double() if replacement is None else replacement

    edit_tensors(folder, change)
    with pytest.raises(BundleError, match=rf"tensor {name}: got \w+\[.*expected float32"):
        load_bundle(folder)


def test_a_tensor_file_elsewhere_is_not_followed(folder: Path) -> None:
    edit(folder, lambda values: values["tensors"].update(file="../other"), reseal=True)
    with pytest.raises(BundleError, match="is not a file name"):
        load_bundle(folder)


def test_not_json_and_nothing_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"no model at .*nowhere.*config\.json not found\nexpected"
    ):
        load_model(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        load_bundle(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(BundleError, match="format version None"):
        load_bundle(folder)


def test_non_finite_weights_and_meta_that_is_no_json_are_not_saved(tmp_path: Path) -> None:
    broken = build_model(CONFIG, backbone_weights=False)
    name, weight = next(iter(broken.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = math.nan
    with pytest.raises(BundleError, match=f"tensor {name} holds non-finite"):
        save_bundle(broken, tmp_path / "b", model_config=CONFIG, score=SCALE, meta={})
    with torch.no_grad():
        weight.view(-1)[0] = 0
    for meta in ({"x": object()}, {"x": math.nan}):
        with pytest.raises(BundleError, match="meta must be plain JSON"):
            save_bundle(broken, tmp_path / "b", model_config=CONFIG, score=SCALE, meta=meta)
    assert os.listdir(tmp_path) == []


def test_an_older_bundle_is_replaced_whole_and_anything_else_is_left_alone(
    model: torch.nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_bundle(folder).digest
    real = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("no space")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="no space"):
            save_bundle(model, folder, model_config=CONFIG, score=SCALE, meta={"new": 1})
    assert load_bundle(folder).digest == first
    assert os.listdir(folder.parent) == ["b"]
    save_bundle(model, folder, model_config=CONFIG, score=SCALE, meta={"new": 1})
    assert load_bundle(folder).meta == {"new": 1}
    assert os.listdir(folder.parent) == ["b"]
    photos = folder.with_name("photos")
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="holds something that is not a bundle"):
        save_bundle(model, photos, model_config=CONFIG, score=SCALE, meta={})
    assert os.listdir(photos) == ["a.jpg"]


def test_parts_that_were_left_out_are_absent(model: torch.nn.Module, tmp_path: Path) -> None:
    save_bundle(model, tmp_path, model_config=CONFIG, score=SCALE, meta={}, parts=["dre"])
    loaded = load_bundle(tmp_path)
    assert loaded.parts == ("dre",)
    assert loaded.model.predictor is None
    image_BCHW = torch.rand(1, 3, 64, 64)
    for found, expected in zip(loaded.model.maps(image_BCHW), model.maps(image_BCHW), strict=True):  # type: ignore
        assert torch.equal(found, expected)
    with pytest.raises(BundleError, match="unknown part 'drex'"):
        save_bundle(model, tmp_path, model_config=CONFIG, score=SCALE, meta={}, parts=["drex"])


def test_object_storage_makes_the_configuration_visible_last(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def local(uri: str) -> Path:
        return tmp_path / uri.removeprefix("s3://").replace("/", "_")

    def write(uri: str, data: bytes) -> None:
        written.append(uri)
        local(uri).write_bytes(data)

    monkeypatch.setattr(storage, "write_bytes", write)
    monkeypatch.setattr(storage, "read_bytes", lambda uri: local(uri).read_bytes())
    save_bundle(model, "s3://bucket/m", model_config=CONFIG, score=SCALE, meta=META)
    assert written == ["s3://bucket/m/model.safetensors", "s3://bucket/m/config.json"]
    assert load_bundle("s3://bucket/m/").meta == META
    with pytest.raises(BundleError, match="no model at 's3://bucket/x'"):
        load_bundle("s3://bucket/x")


def test_file_uri(folder: Path) -> None:
    spaced = folder.rename(folder.with_name("my model"))
    assert load_bundle(spaced.as_uri()).meta == META


def test_other_schemes_go_to_what_is_registered_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(uri: str) -> Path:
        asked.append(uri)
        return folder

    class Entry:
        name = "zoo"

        @staticmethod
        def load() -> Any:
            return fetch

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry])
    assert load_bundle("zoo:/dri-iqa@champion").meta == META
    assert asked == ["zoo:/dri-iqa@champion"]
    with pytest.raises(BundleError) as caught:
        load_bundle("zo:/dri-iqa@champion")
    assert str(caught.value).splitlines() == [
        "cannot open model 'zo:/dri-iqa@champion': nothing installed reads zo: URIs",
        "expected the folder of a bundle, or a URI that starts with one of file:, s3:, zoo:",
    ]


def test_score_scale() -> None:
    dmos = ScoreScale(lo=-10.0, hi=110.0, higher_is_better=False, name="DMOS")
    label_N = np.array([-10.0, 50.0, 110.0, 130.0])
    assert dmos.normalise(label_N).tolist() == pytest.approx([1.0, 0.5, 0.0, -1 / 6])
    assert dmos.to_label(dmos.normalise(label_N)).tolist() == pytest.approx(label_N.tolist())
    assert dmos.span == 120.0
    for lo, hi in [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)]:
        with pytest.raises(ConfigError, match="expected lo < hi"):
            ScoreScale(lo=lo, hi=hi, name="x")
    assert to_dict(dmos)["higher_is_better"] is False


def test_another_process_gives_the_same_scores(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (70, 90, 3)).astype(np.uint8) for _ in range(2)]
    threads = torch.get_num_threads()
    here = load_model(folder, device="cpu").score(images, crops=3)
    code = (
        "import numpy as np, torch; from dri_iqa import load_model;"
        f"torch.set_num_threads({threads}); rng = np.random.default_rng(0);"
        "images = [rng.integers(0, 256, (70, 90, 3)).astype(np.uint8) for _ in range(2)];"
        f"table = load_model({str(folder)!r}, device='cpu').score(images[::-1], crops=3);"
        "print([value.hex() for value in table.score])"
    )
    root = str(Path(dri_iqa.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert run.stdout.strip() == str([value.hex() for value in here.score.tolist()[::-1]])


def test_importing_the_package_is_light_and_scoring_needs_little() -> None:
    code = """
import sys, dri_iqa
heavy = {"torch", "numpy", "pandas", "PIL"} & set(sys.modules)
assert not heavy, heavy
assert dri_iqa.__all__ and "load_model" in dir(dri_iqa)
from dri_iqa import load_model
import dri_iqa.models
banned = "matplotlib scipy skimage cv2 typer rich hydra ray mlflow pipelines".split()
found = [name for name in banned if name in sys.modules]
assert not found, found
"""
    root = str(Path(dri_iqa.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_version_is_the_packages() -> None:
    text = (Path(dri_iqa.__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{dri_iqa.__version__}"' in text
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dri_iqa.nothing  # noqa: B018
