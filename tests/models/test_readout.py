"""The readout: ridge regression in one pass, whoever has which image, and stage 2 that starts there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dri_iqa.config import PredictorConfig
from dri_iqa.models.dri_iqa import DRIIQA, build_model
from dri_iqa.models.readout import PENALTIES, PooledReadout, pooled_statistics
from dri_iqa.stages import TrainStage
from tests.tiny import CROP, stage2_batch, tiny_model, tiny_stage1, tiny_stage2

LINEAR = PredictorConfig(embed_dim=48, swin_mlp=48, readout="linear")


def rows(images: int = 60, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Statistics of very unlike scales, and scores that some of them tell, with noise."""
    rng = torch.Generator().manual_seed(0)
    statistics_NF = torch.randn(images, 2 * channels, generator=rng)
    score_N = 0.5 + 0.1 * statistics_NF[:, 0] - 0.2 * statistics_NF[:, 3]
    score_N += 0.05 * torch.randn(images, generator=rng)
    return 7 + statistics_NF * torch.logspace(-2, 2, 2 * channels), score_N


def predicted(readout: PooledReadout, statistics_NF: Tensor) -> np.ndarray:
    standard_NF = (statistics_NF - readout.mean_F) / readout.scale_F
    return readout.linear(standard_NF).squeeze(1).detach().numpy()


def test_statistics_are_mean_and_deviation_of_maps_of_any_size() -> None:
    maps = [torch.randn(2, 3, 5, 4), torch.randn(2, 1, 9, 9)]
    found_BF = pooled_statistics(maps)
    expected = [stat for m in maps for stat in (m.mean((2, 3)), m.flatten(2).std(2, correction=0))]
    assert torch.allclose(found_BF, torch.cat(expected, 1), atol=1e-5)


def test_it_is_the_ridge_regression_with_the_least_generalised_error() -> None:
    from sklearn.linear_model import Ridge

    statistics_NF, score_N = rows()
    readout = PooledReadout([6])
    chosen = readout.fit([(statistics_NF, score_N)])
    x = statistics_NF.double().numpy()
    x, y = (x - x.mean(0)) / x.std(0), score_N.double().numpy()
    errors = {}
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty).fit(x, y)
        # the hat matrix, the mean included
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T) + 1 / len(y)
        assert np.allclose(hat @ y, model.predict(x))
        errors[penalty] = np.mean((y - hat @ y) ** 2) / (1 - np.trace(hat) / len(y)) ** 2
    assert chosen == min(errors, key=errors.__getitem__)
    expected = Ridge(alpha=chosen).fit(x, y).predict(x)
    assert np.allclose(predicted(readout, statistics_NF), expected, atol=1e-5)


def test_it_does_not_matter_which_rank_has_which_image() -> None:
    statistics_NF, score_N = rows()
    whole, mine = PooledReadout([6]), PooledReadout([6])
    whole.fit([(statistics_NF, score_N)])
    others = torch.cat((statistics_NF[20:], score_N[20:, None], torch.ones(40, 1)), 1).double()
    mine.fit(
        [(statistics_NF[:5], score_N[:5]), (statistics_NF[5:20], score_N[5:20])],
        lambda sums: sums.add_(others.T @ others),
    )
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, mine.state_dict()[name], rtol=1e-4, atol=1e-6), name


def test_statistics_that_never_change_do_no_harm_and_one_image_is_too_few() -> None:
    statistics_NF, score_N = rows()
    statistics_NF[:, 5] = 3.0
    readout = PooledReadout([6])
    readout.fit([(statistics_NF, score_N)])
    found = predicted(readout, statistics_NF + torch.eye(12)[5] * 1e-3)
    assert np.isfinite(found).all()
    assert np.abs(found - score_N.numpy()).mean() < 0.1
    with pytest.raises(ValueError, match="at least two images, got 1"):
        PooledReadout([6]).fit([(statistics_NF[:1], score_N[:1])])


def build(predictor: PredictorConfig = LINEAR, **changes) -> TrainStage:
    return TrainStage(
        tiny_model(predictor=predictor),
        tiny_stage1(),
        tiny_stage2(**changes),
        seed=0,
        has_references=True,
        global_batch=8,
        pretrained=None,
    )


@pytest.mark.parametrize("variant", ["proposed", "maniqa"])
def test_stage_2_begins_with_what_regression_finds_and_trains_it(variant: str) -> None:
    stage = build(variant=variant)
    batches = [stage2_batch(seed=seed) for seed in range(3)]
    image_BCHW = torch.cat([batch["image_BCHW"] for batch in batches]).float() / 255
    score_B = torch.cat([batch["score_B"] for batch in batches])
    assert torch.equal(stage.model.predict(image_BCHW), torch.zeros(24)), "nothing is known yet"
    said = stage.begin(lambda: iter(batches), lambda sums: None)
    assert said is not None
    assert "24 crops" in said
    found_B = stage.model.predict(image_BCHW)
    assert float(found_B.mean()) == pytest.approx(float(score_B.mean()), abs=1e-4)
    # the first scores are the readout's alone
    assert stage.model.readout is not None
    features = stage.model.dre(image_BCHW) if stage.model.dre is not None else ()
    maps, quality = stage.model.read(image_BCHW, features)
    assert torch.allclose(found_B, stage.model.readout([*maps, *quality]), atol=1e-5)
    rates = {group["name"]: group["lr"] for group in stage.parameter_groups()}
    assert rates["readout"] == stage.config.lr_readout
    optim = torch.optim.SGD(stage.parameter_groups())
    loss, _ = stage(batches[0])
    loss.backward()
    assert not [n for n, p in stage.named_parameters() if p.requires_grad and p.grad is None]
    before = stage.model.readout.linear.weight.clone()
    optim.step()
    assert not torch.equal(before, stage.model.readout.linear.weight)


def test_without_a_readout_nothing_is_looked_at() -> None:
    stage = build(replace(LINEAR, readout="none"))

    def never() -> list:
        raise AssertionError("no batch is wanted")

    assert stage.begin(never, lambda sums: None) is None
    assert stage.model.readout is None


def test_a_readout_changes_no_other_part() -> None:
    with_it, without = (
        build_model(tiny_model(predictor=replace(LINEAR, readout=kind)), backbone_weights=False)
        for kind in ("linear", "none")
    )
    assert isinstance(with_it, DRIIQA)
    names = {name for name in with_it.state_dict() if not name.startswith("readout.")}
    assert names == set(without.state_dict())
    last = "predictor.head.score.3."
    for name in names - {f"{last}weight", f"{last}bias"}:
        assert torch.equal(with_it.state_dict()[name], without.state_dict()[name]), name
    image_BCHW = torch.rand(2, 3, CROP, CROP)
    assert torch.isfinite(with_it.predict(image_BCHW)).all()
