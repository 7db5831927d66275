"""The loop without a cluster: it ends where the uninterrupted run ends, on one rank and on two."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dri_iqa.config import ConfigError, OptimConfig
from dri_iqa.stages.average import WeightAverage
from pipelines.runtime import snapshots
from pipelines.runtime.failures import TrainingError
from pipelines.runtime.host import LocalHost
from pipelines.runtime.loop import Training, train
from pipelines.runtime.step import Optimisation
from tests.pipelines import loop_worker as worker

ROOT = Path(__file__).resolve().parents[2]


def launch(folder: Path, world: int, *tasks: str) -> list[int]:
    """Run tasks on all ranks; their exit codes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.loop_worker", str(folder), *tasks],
            cwd=ROOT,
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": str(ROOT),
            },
        )
        for rank in range(world)
    ]
    return [process.wait(timeout=300) for process in processes]


def state(folder: Path) -> dict:
    (file,) = sorted(folder.glob("step_*"))[-1].glob(snapshots.STATE)
    return torch.load(file, weights_only=True)


def rows(folder: Path, run: str, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{run}.{rank}.jsonl").read_text().splitlines()]


def same(a: object, b: object) -> bool:
    """Equal to the last bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    return a == b


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A whole run, a run that was killed, and one with a spoilt image, then the killed one resumed."""
    folder, world = tmp_path_factory.mktemp(f"loop{request.param}"), request.param
    assert launch(folder, world, "spoilt", "whole", "killed") == [-signal.SIGKILL] * world
    return folder, world


def test_fifty_steps_a_kill_and_fifty_more_are_a_hundred_steps_bit_by_bit(runs) -> None:
    folder, world = runs
    before = {rank: rows(folder, "b", rank) for rank in range(world)}
    assert sorted(folder.glob("b/step_*"))[-1].name == "step_00000050"
    assert launch(folder, world, "resumed") == [0] * world
    whole, resumed = state(folder / "a"), state(folder / "b")
    assert whole["progress"]["step"] == worker.PER_EPOCH * worker.EPOCHS
    assert {"stage", "optimizer", "average", "progress"} <= whole.keys()
    assert any("queue.step" in name for name in whole["stage"])
    different = [name for name in whole if not same(whole[name], resumed[name])]
    assert not different
    for rank in range(world):
        curve = rows(folder, "a", rank)
        after = rows(folder, "b", rank)[len(before[rank]) :]
        assert [row["step"] for row in curve] == list(range(100))
        assert before[rank] == curve[: worker.KILL_AT + 1]
        assert after == curve[50:]


def test_a_loss_that_is_not_finite_is_left_out_on_every_rank_and_spoils_nothing(runs) -> None:
    folder, world = runs
    # the spoilt image is in every third batch, among the last rank's rows
    healthy = [step for step in range(worker.PER_EPOCH) if step % 3]
    for rank in range(world):
        assert [row["step"] for row in rows(folder, "c", rank)] == healthy
    ended = state(folder / "c")
    assert ended["progress"]["skipped"] == worker.PER_EPOCH - len(healthy)
    assert all(t.isfinite().all() for t in ended["stage"].values() if t.is_floating_point())


class Record:
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict] = []

    def post(self, **record) -> None:
        self.records.append(record)


def start(folder: Path, stage=None, **changes) -> Training:
    """A run in this process; train it with `go`."""
    journal = Record()
    return worker.training(
        stage or worker.stage(), LocalHost(folder), **({"journal": journal} | changes)
    )


def go(training: Training, folder: Path) -> list[dict[str, float]]:
    with LocalHost(folder) as host:
        return train(training, host)


def test_too_many_losses_that_are_not_finite_end_the_run_and_name_the_images(tmp_path) -> None:
    training = start(
        tmp_path,
        worker.stage(worker.SpoiltStage),
        optim=replace(worker.OPTIM, epochs=1, max_non_finite=1),
        image_names=lambda ids: [f"photo{number}.png" for number in ids],
    )
    with pytest.raises(
        TrainingError, match=r"epoch 1 step 4: .*photo0\.png.*photo7\.png.*allows 1"
    ):
        go(training, tmp_path)
    (said,) = [r["say"] for r in training.journal.records if "say" in r]  # type: ignore[attr-defined]
    assert said.startswith("left out epoch 1 step 1")


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_give_the_gradient_losses_and_queue_of_the_whole_batch(count: int) -> None:
    ended = []
    for accumulate in (1, count):
        stage = worker.stage()
        optim = replace(worker.OPTIM, accumulate=accumulate, clip_norm=None, ema=None)
        rates = [{**group, "lr": 0.01} for group in stage.parameter_groups()]
        work = Optimisation(
            model=stage,
            stage=stage,
            optimizer=torch.optim.SGD(rates),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            average=None,
            config=optim,
            world=1,
        )
        losses = []
        for arrays in worker.batches()(0, 4):
            metrics = work.step({name: torch.from_numpy(a) for name, a in arrays.items()})
            assert metrics is not None
            losses.append(
                [metrics[name] for name in ("loss", "loss_deg", "loss_qual", "grad_norm")]
            )
        gradients = [p.grad for p in stage.query.parameters()]
        ended.append((torch.tensor(losses), gradients, stage.state_dict()))
    (losses, gradients, states), (split_losses, split_gradients, split_states) = ended
    assert torch.allclose(losses, split_losses, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, split_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for name, value in states.items():
        assert torch.allclose(value, split_states[name], atol=1e-5), name


def test_rows_that_micro_batches_cannot_share_are_named(tmp_path) -> None:
    optim = replace(worker.OPTIM, accumulate=3)
    with pytest.raises(ConfigError, match=r"accumulate=3 .* 8 rows"):
        go(start(tmp_path, optim=optim), tmp_path)


def test_a_notice_of_preemption_takes_a_checkpoint_at_once_and_the_run_goes_on_from_it(
    tmp_path,
) -> None:
    optim = replace(worker.OPTIM, epochs=1, checkpoint_steps=None, preemption_steps=3)

    def hear(step: int, _: dict[str, float]) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    training = start(tmp_path, optim=optim, on_step=hear)
    with pytest.raises(SystemExit) as left:
        go(training, tmp_path)
    assert left.value.code == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000009"]
    seen: list[int] = []
    history = go(start(tmp_path, optim=optim, on_step=lambda step, _: seen.append(step)), tmp_path)
    assert seen == list(range(9, worker.PER_EPOCH))
    assert [row["epoch"] for row in history] == [1.0]
    assert go(start(tmp_path, optim=optim), tmp_path) == history  # finished: nothing is trained


def test_what_a_stage_wants_to_know_first_is_asked_once_a_run(tmp_path) -> None:
    optim = replace(worker.OPTIM, epochs=1, checkpoint_steps=5)
    asked: list[int] = []

    def started() -> Training:
        training = start(tmp_path, optim=optim)
        calls: list[tuple[int, int]] = []
        inner = training.stream
        training.stream = lambda first, stop: calls.append((first, stop)) or inner(first, stop)

        def begin(batches, add) -> str:
            asked.append(sum(len(batch["image_id_B"]) for batch in batches()))
            assert calls == [(0, worker.PER_EPOCH)], "the first epoch, before the first step"
            return "looked"

        training.stage.begin = begin  # type: ignore[method-assign]
        return training

    first = started()
    limited = first.stream
    first.stream = lambda one, stop: limited(one, min(stop, 10) if asked else stop)
    go(first, tmp_path)
    assert first.journal.records[0]["say"] == "looked"  # type: ignore[attr-defined]
    whole = len(asked)
    go(started(), tmp_path)
    assert (whole, len(asked)) == (1, 1), "a run that goes on does not look again"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"model": {"dre": {"width": 8}}}, r"model\.dre\.width is 4 there and 8 here"),
        (
            {"data": {"clean_manifest": "def"}},
            r"data\.clean_manifest is 'abc' there and 'def' here",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_value_that_differs(
    tmp_path, identity: dict, words: str
) -> None:
    optim = replace(worker.OPTIM, epochs=1)
    training = start(tmp_path, optim=optim)
    training.stream = lambda first, stop: worker.batches()(first, min(stop, 10))
    go(training, tmp_path)
    other = start(tmp_path, optim=optim)
    other.identity |= identity
    with pytest.raises(TrainingError, match=words):
        go(other, tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path) -> None:
    training = start(tmp_path)
    training.stream = lambda first, stop: worker.batches()(first, min(stop, 10))
    go(training, tmp_path)
    (file,) = tmp_path.glob(f"step_*/{snapshots.STATE}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrainingError, match="does not match its digest"):
        go(start(tmp_path), tmp_path)


def test_figures_come_every_few_steps_and_rows_every_epoch(tmp_path) -> None:
    optim = replace(worker.OPTIM, epochs=1, log_steps=5)
    training = start(tmp_path, optim=optim, validate=lambda stage, epoch: {"seen": float(epoch)})
    (row,) = go(training, tmp_path)
    records = training.journal.records  # type: ignore[attr-defined]
    figures = [record for record in records if "figures" in record]
    assert [record["step"] for record in figures] == [5, 10, 15, 20]
    wanted = {"loss", "grad_norm", "images_per_second", "data_wait_share", "queue_fill"}
    assert all(wanted <= record["figures"].keys() for record in figures)
    for name in ("top1", "negatives", "alignment", "uniformity", "loss", "empty"):
        assert {f"{name}_deg", f"{name}_qual"} <= row.keys()
    assert {"queue_fill", "queue_age", "grad_norm", "skipped_steps", "seen"} <= row.keys()
    assert "images_per_second" not in row  # speed must not make a resumed history differ


def test_the_average_of_weights_is_validated_and_left_in_the_stage(tmp_path) -> None:
    optim = OptimConfig(batch_size=8, epochs=1, lr=2e-3, ema=0.5)
    last: list[torch.Tensor] = []
    averages: list[torch.Tensor] = []
    stage = worker.stage()
    weight = stage.query.encoder.layers[0].get_parameter("conv1.weight")
    by_hand = weight.detach().clone()
    seen: list[torch.Tensor] = []

    def on_step(step: int, _: dict[str, float]) -> None:
        nonlocal by_hand
        last[:] = [weight.detach().clone()]
        by_hand = by_hand.lerp(weight.detach(), 0.5)
        averages[:] = [by_hand]

    def validate(stage, epoch: int) -> dict[str, float]:
        seen.append(weight.detach().clone())
        return {}

    go(start(tmp_path, stage, optim=optim, on_step=on_step, validate=validate), tmp_path)
    assert torch.allclose(seen[0], averages[0], atol=1e-7)
    assert torch.allclose(weight, averages[0], atol=1e-7)
    assert not torch.allclose(weight, last[0], atol=1e-7)


def test_weights_come_back_when_an_average_is_taken_off() -> None:
    module = torch.nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    before = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    with average.applied(module):
        assert all(map(torch.equal, module.parameters(), before))
    after = list(module.parameters())
    assert all(torch.equal(a, b + 1) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_and_channels_last_train_to_about_the_same_losses(
    tmp_path, precision: str
) -> None:
    exact: list[float] = []
    reduced: list[float] = []
    optim = replace(worker.OPTIM, epochs=1, checkpoint_steps=None)
    for losses, changes in (
        (exact, {}),
        (reduced, {"precision": precision, "channels_last": True}),
    ):
        folder = tmp_path / str(len(changes))
        training = start(
            folder,
            optim=replace(optim, **changes),
            on_step=lambda _, metrics, losses=losses: losses.append(metrics["loss"]),
        )
        go(training, folder)
    assert reduced[0] == pytest.approx(exact[0], rel=0.02)
    assert all(math.isfinite(loss) for loss in reduced)
    assert sum(reduced[-5:]) == pytest.approx(sum(exact[-5:]), rel=0.1)


def test_a_short_average_forgets_where_it_began() -> None:
    module = torch.nn.Linear(1, 1)
    average = WeightAverage(module, 0.9)
    start = module.weight.item()
    for _ in range(2):
        with torch.no_grad():
            module.weight.add_(1)
        average.update(module)
    average.copy_to(module)
    first = 0.1 * start + 0.9 * (start + 1)  # rates 1/10 and 2/11, below 0.9
    assert module.weight.item() == pytest.approx(2 / 11 * first + 9 / 11 * (start + 2))
