"""The built-in sample: a miniature image quality data set that needs no download.

Seven colour photographs that ship inside scikit-image and scikit-learn are cut into tiles of 96 x
96 pixels; a tile with something in it is a *scene*. Each scene is degraded by single operators,
which go round all 24 operators and five levels, and by random recipes.

The scores are **pseudo scores**: no person has seen these images. They are the structural
similarity (Wang et al. 2004) of scikit-image between the image and its reference, with the paper's
Gaussian window, as the mean over Y, Cb and Cr; on grey alone, changes of colour would hardly count.
Averaged over scenes this score falls with the level for all operators but three: colour_block puts
one block on a tile this small at any level, colour_shift is nearly the same from level 3 on, and
JPEG 2000's header alone fills the budget of levels 4 and 5.

Training, validation and test have references of their own. By default (`split=region`) the tiles of
the last column of each photograph are test, those of the column before are validation, the rest is
training; the clean set is cut from the training region. So no pixel of a test image is seen in
training, but other parts of its photograph are. `split=photograph` holds out whole photographs, which
is much harder with seven of them. Either way figures show that the pipeline works, nothing more.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal, get_args

import cv2
import numpy as np
from PIL import Image

from dri_iqa.config import DegradeConfig
from dri_iqa.data.limit import take
from dri_iqa.data.records import DataError, DataSet, Record
from dri_iqa.degradations import SETS, Recipe, Step, apply_recipe, draw_recipe
from dri_iqa.images import decode
from dri_iqa.seeds import Purpose, generator

TILE = 96
"""Side of a scene in pixels."""
CLEAN_TILE, CLEAN_STRIDE = 192, 64
"""Side and spacing in pixels of the images of the clean set."""
NOTES = (
    "pseudo scores: structural similarity to the reference (mean over Y, Cb, Cr), computed by"
    " scikit-image; not human opinion and not a benchmark"
)
LICENCE = "photographs as shipped with scikit-image and scikit-learn (public domain, CC0, CC BY)"
Part = Literal["train", "val", "test"]
SplitBy = Literal["region", "photograph"]

PHOTOGRAPHS: dict[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
"""Package and file of every photograph."""

HELD_OUT: dict[str, Part] = {"flower": "val", "chelsea": "test", "motorcycle": "test"}
"""Part of the photographs that are not for training under `split=photograph`."""

VERSIONS: dict[Part, tuple[int, int]] = {"train": (4, 4), "val": (6, 4), "test": (6, 4)}
"""Single-operator and random-recipe versions of each scene, by part."""
RECIPES = DegradeConfig(level_dist="uniform")
"""Levels of the random recipes: all alike, so that the scores spread over their range."""


@dataclass(frozen=True)
class Scene:
    """One tile of a photograph."""

    photograph: str
    row: int
    column: int
    part: Part
    """Which part of the split it belongs to."""
    reference_HWC: np.ndarray

    @property
    def name(self) -> str:
        """For example china-r1c2."""
        return f"{self.photograph}-r{self.row}c{self.column}"


def build_sample(seed: int = 0) -> tuple[DataSet, DataSet]:
    """The scored set with references and a split of its own, and the clean set of stage 1.

    The same seed gives the same records; PNG bytes depend on the version of Pillow, and degraded
    pixels on the codecs in it.

    Args:
        seed: of the recipes; the clean set has nothing random.

    Raises:
        DataError: scikit-image or scikit-learn is not installed.
    """
    return read_sample(part="scored", seed=seed), read_sample(part="clean", seed=seed)


def read_sample(
    *,
    part: Literal["scored", "clean"] = "scored",
    split: SplitBy = "region",
    seed: int = 0,
    limit: int | None = None,
) -> DataSet:
    """One of the two sets of `build_sample`, as a reader.

    Args:
        part: `scored` or `clean`.
        split: what is held out, a `region` of each photograph or whole photographs.
        seed: of the recipes.
        limit: largest number of scored images (see `take`); others are not even made.

    Raises:
        DataError: another part or split, or a package is not installed.
    """
    if split not in get_args(SplitBy):
        raise DataError(f"sample: split is {split!r}\nUse region or photograph.")
    if part == "scored":
        return _scored(seed, split, limit)
    if part == "clean":
        return DataSet(
            name="sample-clean",
            records=tuple(_clean(split)),
            score_kind="none",
            licence=LICENCE,
            notes="the training part of the sample's photographs",
        )
    raise DataError(f"sample: part is {part!r}\nUse scored or clean.")


def pseudo_score(reference_HWC: np.ndarray, image_HWC: np.ndarray) -> float:
    """Structural similarity of two uint8 RGB images: 1 for equal ones, towards 0 for unlike ones.

    Wang et al. 2004 (Gaussian window of sigma 1.5, K1 .01, K2 .03), mean over Y, Cb and Cr, as
    scikit-image computes it.
    """
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        cv2.cvtColor(reference_HWC, cv2.COLOR_RGB2YCrCb),
        cv2.cvtColor(image_HWC, cv2.COLOR_RGB2YCrCb),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(np.asarray(value))


def _scored(seed: int, split: SplitBy, limit: int | None) -> DataSet:
    scenes = [scene for name in PHOTOGRAPHS for scene in _scenes(name, _load(name), split)]
    plans = list(_plan(scenes, seed))
    references = tuple(
        Record(
            name=scene.name,
            data=_png(scene.reference_HWC),
            group=scene.name,
            subset=scene.photograph,
            split=scene.part,
        )
        for scene in scenes
    )
    outline = DataSet(
        name="sample",
        records=tuple(record for plan in plans for record in _outlines(*plan)),
        references=references,
        score_kind="pseudo",
        licence=LICENCE,
        notes=NOTES,
    )
    kept = take(outline, limit, seed)
    groups = {record.group for record in kept.records}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = [plan for plan in plans if plan[0].name in groups]
        made = pool.map(lambda plan: list(_versions(plan[0], plan[1], seed)), wanted)
        return replace(kept, records=tuple(record for some in made for record in some))


def _load(name: str) -> np.ndarray:
    package, file = PHOTOGRAPHS[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the built-in sample needs {package}, which is not installed\n"
            "Install it: pip install 'dri-iqa[sample]'."
        )
    path = os.path.join(next(iter(spec.submodule_search_locations)), *file.split("/"))
    try:
        with open(path, "rb") as stream:
            return decode(stream.read())
    except FileNotFoundError:
        raise DataError(
            f"{package} no longer ships {file}\nInstall the version that constraints.txt names."
        ) from None


def _part(name: str, column: int, columns: int, split: SplitBy) -> Part:
    if split == "photograph":
        return HELD_OUT.get(name, "train")
    by_column: dict[int, Part] = {columns - 1: "test", columns - 2: "val"}
    return by_column.get(column, "train")


def _scenes(name: str, image_HWC: np.ndarray, split: SplitBy) -> Iterator[Scene]:
    """Tiles with something in them, row by row; the grid is centred."""
    height, width = image_HWC.shape[:2]
    top, left = height % TILE // 2, width % TILE // 2
    columns = width // TILE
    for row in range(height // TILE):
        for column in range(columns):
            y, x = top + row * TILE, left + column * TILE
            tile_HWC = np.ascontiguousarray(image_HWC[y : y + TILE, x : x + TILE])
            if _active(tile_HWC):
                yield Scene(name, row, column, _part(name, column, columns, split), tile_HWC)


def _active(tile_HWC: np.ndarray) -> bool:
    """Whether a tile shows something: bare sky and blurred backgrounds hide most distortions."""
    grey_HW = tile_HWC.mean(axis=2)
    return grey_HW.std() >= 10 and np.abs(cv2.Laplacian(grey_HW, cv2.CV_64F)).mean() >= 3


def _plan(scenes: list[Scene], seed: int) -> Iterator[tuple[Scene, list[Recipe]]]:
    """The recipes of every scene; in each part, single operators go round all types and levels."""
    names = [name for group in SETS["default"].values() for name in group]
    single = [(name, level) for name in names for level in range(1, 6)]
    for number, part in enumerate(VERSIONS):
        deck: list[tuple[str, int]] = []
        rng = generator(seed, Purpose.SAMPLE, number)
        for scene in [scene for scene in scenes if scene.part == part]:
            recipes = []
            for _ in range(VERSIONS[part][0]):
                if not deck:
                    deck = [single[place] for place in rng.permutation(len(single))]
                recipes.append(Recipe((Step(*deck.pop()),)))
            yield scene, recipes + [draw_recipe(rng, RECIPES) for _ in range(VERSIONS[part][1])]


def _outlines(scene: Scene, recipes: list[Recipe]) -> Iterator[Record]:
    """The versions of a scene as they are named, before any is made."""
    for number, recipe in enumerate(recipes):
        only = recipe.steps[0] if len(recipe.steps) == 1 else None
        yield Record(
            name=f"{scene.name}-{number:02d}",
            group=scene.name,
            reference=scene.name,
            type=only.name if only else None,
            level=only.level if only else None,
            recipe=str(recipe),
            subset=scene.photograph,
            split=scene.part,
        )


def _versions(scene: Scene, recipes: list[Recipe], seed: int) -> Iterator[Record]:
    """The versions of a scene, with their pixels and scores."""
    outlines = _outlines(scene, recipes)
    for number, (recipe, outline) in enumerate(zip(recipes, outlines, strict=True)):
        words = (list(PHOTOGRAPHS).index(scene.photograph), scene.row, scene.column, number)
        rng = generator(seed, Purpose.SAMPLE, len(VERSIONS), *words)
        image_HWC = apply_recipe(scene.reference_HWC, recipe, rng)
        score = pseudo_score(scene.reference_HWC, image_HWC)
        yield replace(outline, data=_png(image_HWC), score=score)


def _clean(split: SplitBy) -> Iterator[Record]:
    """Larger, overlapping tiles of the training part of the photographs."""
    for name in PHOTOGRAPHS:
        if split == "photograph" and name in HELD_OUT:
            continue
        image_HWC = _load(name)
        if split == "region":
            width = image_HWC.shape[1]
            image_HWC = image_HWC[:, : width % TILE // 2 + (width // TILE - 2) * TILE]
        for top in _starts(image_HWC.shape[0]):
            for left in _starts(image_HWC.shape[1]):
                tile_HWC = image_HWC[top : top + CLEAN_TILE, left : left + CLEAN_TILE]
                if _active(tile_HWC):
                    yield Record(
                        name=f"{name}-y{top}x{left}",
                        data=_png(np.ascontiguousarray(tile_HWC)),
                        group=name,
                        subset=name,
                        split="train",
                    )


def _starts(length: int) -> list[int]:
    found = list(range(0, length - CLEAN_TILE + 1, CLEAN_STRIDE))
    return found if found[-1] == length - CLEAN_TILE else [*found, length - CLEAN_TILE]


def _png(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
