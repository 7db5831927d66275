"""What stage 1 leaves: whole, verified, and refused by name where anything is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dri_iqa.bundle import CONFIG_FILE, TENSOR_FILE, BundleError, load_bundle
from dri_iqa.extractor import ExtractorConfig, load_extractor, save_extractor
from dri_iqa.stages import PretrainStage, TrainStage
from tests.tiny import stage1_batch, tiny_model, tiny_stage1, tiny_stage2

CONFIG = ExtractorConfig(crop=64, dre=tiny_model().dre)


@pytest.fixture(scope="module")
def stage() -> PretrainStage:
    stage = PretrainStage(tiny_model(), tiny_stage1(), seed=3, global_batch=8)
    with torch.no_grad():
        stage(stage1_batch())
    return stage


@pytest.fixture
def folder(stage: PretrainStage, tmp_path: Path) -> Path:
    save_extractor(stage.state_dict(), tmp_path / "e", config=CONFIG, meta={"run": "r"})
    return tmp_path / "e"


def test_it_comes_back_as_it_was_written(stage: PretrainStage, folder: Path) -> None:
    loaded = load_extractor(folder)
    state = stage.state_dict()
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[name], state[name]) for name in state)
    assert (loaded.config, loaded.meta) == (CONFIG, {"run": "r"})
    image = torch.rand(2, 3, 64, 64)
    stage.query.eval()
    assert torch.equal(loaded.model(image).z_up, stage.query(image).z_up)
    again = save_extractor(state, folder, config=CONFIG, meta={"run": "r"})
    assert again == loaded.digest


def test_stage_2_starts_from_it(stage: PretrainStage, folder: Path) -> None:
    second = TrainStage(
        tiny_model(),
        tiny_stage1(),
        tiny_stage2(),
        seed=0,
        has_references=False,
        global_batch=8,
        pretrained=load_extractor(folder).state,
    )
    assert second.contrast is not None
    for name, tensor in second.encoder.state_dict().items():
        assert torch.equal(tensor, stage.query.encoder.state_dict()[name])
    for name, tensor in second.contrast.queue.state_dict().items():
        assert torch.equal(tensor, stage.contrast.queue.state_dict()[name])


def change_config(folder: Path, **values: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_changed_bytes_and_settings_are_refused(folder: Path) -> None:
    data = bytearray((folder / TENSOR_FILE).read_bytes())
    data[-1] ^= 1
    (folder / TENSOR_FILE).write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that was written"):
        load_extractor(folder)
    change_config(folder, meta={"run": "another"})
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_extractor(folder)


def test_an_extractor_is_no_scorer_and_a_scorer_no_extractor(folder: Path) -> None:
    with pytest.raises(BundleError, match="stage-1 extractor, which cannot score"):
        load_bundle(folder)
    change_config(folder, kind="scorer")
    with pytest.raises(BundleError, match="not a stage-1 extractor"):
        load_extractor(folder)


def test_weights_of_another_size_and_non_finite_ones_are_refused(
    stage: PretrainStage, tmp_path: Path
) -> None:
    wide = ExtractorConfig(crop=64, dre=tiny_model().dre.__class__(width=16, norm="gn"))
    save_extractor(stage.state_dict(), tmp_path / "wide", config=wide, meta={})
    with pytest.raises(BundleError, match=r"tensor encoder\.layers\.0\.conv1\.weight"):
        load_extractor(tmp_path / "wide")
    spoilt = stage.state_dict() | {"query.heads.up.0.bias": torch.full((64,), float("nan"))}
    with pytest.raises(BundleError, match=r"query\.heads\.up\.0\.bias holds non-finite"):
        save_extractor(spoilt, tmp_path / "spoilt", config=CONFIG, meta={})
    assert not (tmp_path / "spoilt").exists()
