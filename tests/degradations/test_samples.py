"""The four crops: a pure function of seeds, in any process; aligned; recipes that differ."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from dri_iqa.config import ConfigError, DegradeConfig
from dri_iqa.degradations import Recipe, apply_recipe, degrade_clean, draw_recipe, pin_threads
from dri_iqa.seeds import Purpose, generator

SMALL = DegradeConfig(region=96)


def clean(height: int = 110, width: int = 130, seed: int = 0) -> np.ndarray:
    """Every place is recognisable: rows and columns are coded in red and green."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)[None, :]
    image[..., 2] = rng.integers(0, 256, (height, width))
    return image


def digest(index: int) -> str:
    sample = degrade_clean(clean(), run_seed=5, epoch=2, image_index=index, crop=64, config=SMALL)
    parts = (sample.crops_4HWC, sample.clean_4HWC, sample.type_mask_2, sample.recipe_hash_2)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def digests() -> list[str]:
    return [digest(index) for index in range(40)]


@pytest.mark.parametrize(
    "method", ["spawn", pytest.param("fork", marks=pytest.mark.filterwarnings("ignore:.*fork"))]
)
def test_identical_bytes_in_any_process_and_order(method: str, digests: list[str]) -> None:
    order = np.random.default_rng(0).permutation(40).tolist()
    with multiprocessing.get_context(method).Pool(4, pin_threads) as pool:
        parallel = pool.map(digest, order, chunksize=3)
    assert [digests[index] for index in order] == parallel
    assert len(set(digests)) == 40


def test_bytes_do_not_depend_on_what_came_before(digests: list[str]) -> None:
    assert [digest(index) for index in (7, 3, 7)] == [digests[7], digests[3], digests[7]]


def sample(index: int = 0, **options: object):
    arguments: dict[str, object] = {
        "run_seed": 1,
        "epoch": 0,
        "image_index": index,
        "crop": 64,
        "config": SMALL,
    }
    return degrade_clean(clean(), **(arguments | options))  # pyright: ignore[reportArgumentType]


def test_contents() -> None:
    result = sample()
    assert result.crops_4HWC.shape == result.clean_4HWC.shape == (4, 64, 64, 3)
    assert result.crops_4HWC.dtype == result.clean_4HWC.dtype == np.uint8
    assert result.type_mask_2.dtype == result.recipe_hash_2.dtype == np.int64
    for view, recipe in enumerate(result.recipes):
        assert result.type_mask_2[view] == recipe.type_mask
        assert result.recipe_hash_2[view] == recipe.hash


def test_every_seed_matters() -> None:
    base = sample()
    for change in ({"run_seed": 2}, {"epoch": 1}, {"image_index": 1}):
        other = sample(**change)
        assert not np.array_equal(base.crops_4HWC, other.crops_4HWC)
        assert base.recipes != other.recipes


def test_views_differ_and_equal_recipes_are_redrawn() -> None:
    results = [sample(index) for index in range(60)]
    assert all(result.recipes[0] != result.recipes[1] for result in results)
    # With 3 recipes to draw from, chance alone would make a third of the pairs equal.
    few = DegradeConfig(
        region=96, n_max=1, p_keep=1.0, level_dist="half_normal", level_sigma=0.01, levels="kadis"
    )
    equal = sum(len(set(sample(index, config=few).recipes)) == 1 for index in range(60))
    assert equal == 0
    # If there is only one recipe, the last of the redraws is kept.
    none = DegradeConfig(region=96, p_keep=0.0)
    assert sample(config=none).recipes == (Recipe(), Recipe())


def test_crops_are_aligned_with_their_clean_crops() -> None:
    nothing = DegradeConfig(region=96, p_keep=0.0)
    for index in range(20):
        result = sample(index, config=nothing)
        assert np.array_equal(result.crops_4HWC, result.clean_4HWC)
    for index in range(20):
        result = sample(index)
        for crop in result.clean_4HWC:
            top, left = int(crop[0, 0, 0]), int(crop[0, :, 1].min())
            expected = clean()[top : top + 64, left : left + 64]
            flipped = crop[0, 0, 1] > crop[0, -1, 1]
            assert np.array_equal(crop, expected[:, ::-1] if flipped else expected)


def test_crops_come_from_the_degraded_region() -> None:
    """Rebuild a sample from its recipes and the documented streams of random numbers."""
    image = clean()
    result = sample(3)
    rng = generator(1, Purpose.REGION, 0, 3)
    top, left = (
        int(rng.integers(110 - 96, endpoint=True)),
        int(rng.integers(130 - 96, endpoint=True)),
    )
    region = np.ascontiguousarray(image[top : top + 96, left : left + 96])
    rng = generator(1, Purpose.DEGRADE, 0, 3, 0)
    recipe = draw_recipe(rng, SMALL)
    assert recipe == result.recipes[0]
    view = apply_recipe(region, recipe, rng, SMALL)
    for k in range(2):
        rng = generator(1, Purpose.CROP, 0, 3, 0, k)
        y, x = int(rng.integers(33)), int(rng.integers(33))
        piece = view[y : y + 64, x : x + 64]
        assert np.array_equal(result.crops_4HWC[k], piece[:, ::-1] if rng.integers(2) else piece)


def test_positions_reach_every_border_and_flips_are_even() -> None:
    nothing = DegradeConfig(region=66, p_keep=0.0)
    tops, lefts, flips = [], [], 0
    image = clean(66, 66)
    for index in range(300):
        result = degrade_clean(
            image, run_seed=0, epoch=0, image_index=index, crop=64, config=nothing
        )
        for crop in result.clean_4HWC:
            tops.append(int(crop[0, 0, 0]))
            lefts.append(int(crop[0, :, 1].min()))
            flips += int(crop[0, 0, 1] > crop[0, -1, 1])
    for values in (tops, lefts):
        assert set(values) == {0, 1, 2}
        assert np.all(np.abs(np.bincount(values) / 1200 - 1 / 3) < 0.06)
    assert abs(flips / 1200 - 0.5) < 0.06


def test_region_or_whole_image() -> None:
    ranges = {}
    for scope in ("region", "image"):
        config = DegradeConfig(region=70, scope=scope, p_keep=0.0)  # pyright: ignore[reportArgumentType]
        spans = []
        for index in range(40):
            tops = sample(index, config=config).clean_4HWC[:, 0, 0, 0].astype(int)
            spans.append(int(tops.max() - tops.min()))
        ranges[scope] = max(spans)
    assert ranges["region"] <= 6 < ranges["image"]


def test_an_image_of_the_crops_size_works_and_a_smaller_one_is_refused() -> None:
    exact = clean(64, 64)
    result = degrade_clean(exact, run_seed=0, epoch=0, image_index=0, crop=64)
    assert result.crops_4HWC.shape == (4, 64, 64, 3)
    with pytest.raises(
        ValueError, match=r"got an image of 63x64 pixels, expected sides of at least the crop, 64"
    ):
        degrade_clean(exact[:63], run_seed=0, epoch=0, image_index=0, crop=64)
    with pytest.raises(ConfigError, match=r"degrade\.region: got 63"):
        degrade_clean(
            exact, run_seed=0, epoch=0, image_index=0, crop=64, config=DegradeConfig(region=63)
        )


def test_one_length_per_batch() -> None:
    config = DegradeConfig(region=96, n_scope="batch")
    lengths = {}
    for batch in range(12):
        results = [sample(8 * batch + i, config=config, batch_position=batch) for i in range(4)]
        found = {len(recipe) for result in results for recipe in result.recipes}
        assert len(found) == 1
        lengths[batch] = found.pop()
    assert len(set(lengths.values())) > 2
    with pytest.raises(ConfigError, match="n_scope is batch: degrade_clean needs batch_position"):
        sample(config=config)


@pytest.mark.parametrize("limits", [(0.1, 0.3), (0.6, 0.7), (1.0, 1.0)])
def test_overlap_of_the_crops_of_a_view(limits: tuple[float, float]) -> None:
    config = DegradeConfig(scope="image", crop_overlap=limits, p_keep=0.0)
    for index in range(30):
        crops = sample(index, config=config).clean_4HWC
        for first, second in ((0, 1), (2, 3)):
            dy = abs(int(crops[first][0, 0, 0]) - int(crops[second][0, 0, 0]))
            dx = abs(int(crops[first][0, :, 1].min()) - int(crops[second][0, :, 1].min()))
            share = (64 - dy) * (64 - dx) / 64**2
            assert limits[0] <= share <= limits[1]


# Run without the variables that limit threads from outside. BLAS and torch are given work large enough for a pool.
WORKER = """
import os, sys
import numpy as np, torch, cv2
from threadpoolctl import threadpool_info
from dri_iqa.degradations import OPERATORS, degrade_clean, pin_threads

def helpers():
    ticks = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) != os.getpid():
            with open(f"/proc/self/task/{task}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks[task] = int(fields[11]) + int(fields[12])
    return ticks

pin_threads()
assert cv2.getNumThreads() == torch.get_num_threads() == 1
assert {pool["num_threads"] for pool in threadpool_info()} == {1}
assert os.environ["OMP_NUM_THREADS"] == "1"
before = helpers()
image = np.random.default_rng(0).random((400, 400, 3), dtype=np.float32)
for operator in OPERATORS.values():
    operator(image, 3, np.random.default_rng(0))
for index in range(4):
    degrade_clean((image * 255).astype(np.uint8), run_seed=0, epoch=0, image_index=index, crop=224)
square = np.ones((1500, 1500), np.float32)
square @ square
torch.from_numpy(square) @ torch.from_numpy(square)
after = helpers()
assert set(after) <= set(before), (before, after)
assert all(after[task] == before[task] for task in after), (before, after)
print("one thread")
"""


def test_pinned_workers_have_no_hidden_threads() -> None:
    outside = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=outside, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("one thread\n", 0), done.stderr
    with pytest.raises(ValueError, match="got 0 threads"):
        pin_threads(0)
