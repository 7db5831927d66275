"""A step that does not fit the memory is taken in more micro-batches, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dri_iqa.config import ConfigError, OptimConfig
from dri_iqa.stages.base import Batch, Metrics, Stage
from pipelines.runtime.step import Optimisation


class Line(Stage):
    """A line through points, with dropout and a count of the rows it saw, in so much memory."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.weight = nn.Parameter(torch.ones(3))
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        self.rows += len(batch["x_B3"])
        x_B3 = nn.functional.dropout(batch["x_B3"], 0.2)
        if len(x_B3) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = (x_B3 @ self.weight - 1).square().mean()
        return loss, {"rows": self.rows.clone()}

    def parameter_groups(self) -> list[dict]:
        return [{"name": "line", "params": [self.weight], "lr": 0.1}]

    def after_step(self) -> None: ...


def work(stage: Line, accumulate: int, told: list[str], world: int = 1) -> Optimisation:
    return Optimisation(
        model=stage,
        stage=stage,
        optimizer=torch.optim.Adam(stage.parameter_groups(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=None,
        config=OptimConfig(accumulate=accumulate),
        world=world,
        tell=told.append,
    )


def batch(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {"x_B3": torch.rand(rows, 3, generator=generator), "image_id_B": torch.arange(rows)}


def test_out_of_memory_halves_the_micro_batches_until_they_fit() -> None:
    told: list[str] = []
    small, asked = Line(memory=2), Line(memory=2)
    halved, configured = work(small, 1, told), work(asked, 4, [])
    for step in range(3):
        torch.manual_seed(step)
        metrics = halved.step(batch(8))
        torch.manual_seed(step)
        assert metrics == configured.step(batch(8))
    assert torch.equal(small.weight, asked.weight)
    assert small.rows == 24, "failed attempts leave no trace"
    assert [line.split(";")[0] for line in told] == [
        f"out of memory: 8 images a step are now taken in {count} micro-batches"
        f" (optim.accumulate={count} says so from the start)"
        for count in (2, 4)
    ]


@pytest.mark.parametrize(("rows", "world"), [(6, 1), (8, 2)])
def test_what_cannot_be_halved_is_an_error_that_says_what_to_do(rows: int, world: int) -> None:
    told: list[str] = []
    with pytest.raises(ConfigError, match=rf"out of memory with {rows} images a rank") as caught:
        work(Line(memory=1), 1, told, world).step(batch(rows))
    assert "optim.batch_size" in str(caught.value).splitlines()[1]


def test_a_later_step_that_does_not_fit_is_not_halved() -> None:
    stage = Line(memory=8)
    steps = work(stage, 1, [])
    assert steps.step(batch(8)) is not None
    stage.memory = 4
    with pytest.raises(ConfigError, match="out of memory"):
        steps.step(batch(8))
