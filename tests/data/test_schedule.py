"""The schedule: each image once an epoch, the same on any number of workers, resumable."""

from __future__ import annotations

import contextlib
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest

from dri_iqa.data.order import IdSet
from dri_iqa.data.records import DataError
from dri_iqa.data.schedule import Row, Schedule, choose
from dri_iqa.seeds import Purpose

IDS = tuple(range(100, 203))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_once_an_epoch_on_any_number_of_workers(world: int) -> None:
    plan = Schedule(IDS, batch_size=16, epochs=3, run_seed=5)
    for epoch in range(3):
        for step in range(plan.steps_per_epoch):
            parts = [plan.batch(epoch, step, rank, world) for rank in range(world)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert sorted(row for part in parts for row in part) == plan.batch(epoch, step)
        table = plan.table(epoch)
        assert [row.position for row in table] == list(range(len(IDS)))
        assert Counter(row.image_id for row in table) == Counter(IDS)
        assert {row.epoch for row in table} == {epoch}


def test_epochs_and_purposes_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int = 0, run_seed: int = 0, purpose: Purpose = Purpose.SCHEDULE) -> list[int]:
        plan = Schedule(IDS, 16, 9, run_seed=run_seed, purpose=purpose)
        return [row.image_id for row in plan.table(epoch)]

    orders = [order(), order(epoch=1), order(run_seed=1), order(purpose=Purpose.AUXILIARY)]
    assert len({tuple(item) for item in orders}) == 4
    assert order() == order()


def test_the_order_of_the_ids_given_plays_no_part() -> None:
    assert Schedule(IDS[::-1], 16, 2).table(1) == Schedule(IDS, 16, 2).table(1)


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(103, 16, {14, 15}), (64, 16, {16}), (17, 16, {8, 9}), (5, 16, {5})],
)
def test_balanced_batches(count: int, batch: int, sizes: set[int]) -> None:
    plan = Schedule(tuple(range(count)), batch, 1)
    assert {len(plan.batch(0, step)) for step in range(plan.steps_per_epoch)} == sizes


def test_drop_leaves_out_a_different_remainder_each_epoch() -> None:
    plan = Schedule(IDS, 16, 2, remainder="drop")
    assert plan.steps_per_epoch == 6
    left = [set(IDS) - {row.image_id for row in plan.table(epoch)} for epoch in range(2)]
    assert [len(item) for item in left] == [7, 7]
    assert left[0] != left[1]


def test_the_papers_clean_set_fills_its_batches() -> None:
    chosen = choose(range(3450), 3392, run_seed=0)
    plan = Schedule(chosen, 64, 300, remainder="drop")
    assert (plan.steps_per_epoch, plan.total_steps) == (53, 15_900)
    assert Counter(row.image_id for row in plan.table(7)) == Counter(chosen)


def test_wrap_fills_the_last_batch_with_the_first_images() -> None:
    plan = Schedule(IDS, 16, 1, remainder="wrap")
    table = plan.table(0)
    assert len(table) == 7 * 16
    assert len({row.position for row in table}) == len(table)
    assert [row.image_id for row in table[103:]] == [row.image_id for row in table[:9]]


def test_resume_at_any_step_without_replay() -> None:
    plan = Schedule(IDS, 16, 3)
    whole = list(plan.remaining(rank=1, world=2))
    assert len(whole) == plan.total_steps
    for done in (0, 4, 7, 20, 21):
        epoch, step = divmod(done, plan.steps_per_epoch)
        again = pickle.loads(pickle.dumps(plan))
        assert list(again.remaining(epoch, step, rank=1, world=2)) == whole[done:]
    assert list(plan.remaining(0, 7, 1, 2)) == list(plan.remaining(1, 0, 1, 2))
    assert list(plan.remaining(1, 2, 1, 2, stop=2)) == whole[9:14]


def test_batches_are_plain_rows() -> None:
    row = Schedule((7,), 4, 1).batch(0, 0)[0]
    assert row == Row(0, 0, 7) == (0, 0, 7)
    assert all(type(item) is int for item in row)


def test_refusals() -> None:
    with pytest.raises(DataError, match="do not fill one batch of 16"):
        Schedule((1, 2), 16, 1, remainder="drop")
    with pytest.raises(DataError, match="do not fill"):
        Schedule((), 16, 1)
    with pytest.raises(DataError, match="names an image twice"):
        Schedule((1, 1), 16, 1)
    with pytest.raises(DataError, match="2 images cannot be dealt to 3 workers"):
        Schedule((1, 2), 16, 1).batch(0, 0, 0, 3)
    with pytest.raises(IndexError):
        Schedule((1, 2), 16, 1).batch(1, 0)
    with pytest.raises(IndexError):
        Schedule((1, 2), 16, 1).batch(0, 1)


def test_choose() -> None:
    assert [*choose((3, 1, 2), None, 0)] == [*choose((3, 1, 2), 9, 0)] == [1, 2, 3]
    picked = choose(range(50), 10, 0)
    assert len(set(picked)) == 10
    assert set(picked) < set(range(50))
    assert picked == choose(range(49, -1, -1), 10, 0) != choose(range(50), 10, 1)


def test_a_billion_images_take_bounded_memory_anywhere_in_the_run() -> None:
    """What a rank holds, sends to its data processes and touches at a step, with a thousand images cut out."""
    count, batch, world = 10**9, 4096, 3
    held_out = choose(range(count), 1000, run_seed=1)
    with measured() as peak:
        plan = Schedule(IdSet.rest(count, held_out), batch, 3, run_seed=7, remainder="drop")
        steps = [plan.steps_per_epoch * part // 20 for part in range(20)]
        seen: set[int] = set()
        for step in steps:
            whole = plan.batch(1, step)
            seen.update(row.image_id for row in whole)
            dealt = [plan.batch(1, step, rank, world) for rank in range(world)]
            assert sorted(row for part in dealt for row in part) == whole
        travels = pickle.dumps(plan)
        again = pickle.loads(travels)
        assert again.batch(2, steps[-1]) == plan.batch(2, steps[-1]) != plan.batch(1, steps[-1])
    assert plan.steps_per_epoch == (count - 1000) // batch
    assert len(seen) == len(steps) * batch, "no image twice among these steps"
    assert 0 <= min(seen) < max(seen) < count
    assert not seen & set(held_out)
    assert peak[0] < 16e6, "of that, 6 MB are this test's own set"
    assert len(travels) < 50e3


@contextlib.contextmanager
def measured() -> Iterator[list[int]]:
    """The most memory that Python and numpy held inside the block, in bytes."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
