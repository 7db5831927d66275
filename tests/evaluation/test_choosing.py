"""Pictures of a report are chosen by what was given; only the worst by what was predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dri_iqa.evaluation.choosing import (
    SEVERAL,
    choose_mapped,
    choose_strips,
    describe,
    type_rows,
    worst,
)


def image(number: int, **known: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(("reference", "type", "level", "recipe", "subset"))
    scores = {"given": float(number), "score": float(number)}
    return {"image_id": number, "name": f"i{number}", **unknown, **scores} | known


VERSIONS = [
    *[image(n, reference="few", type="jpeg", level=1) for n in range(3)],
    *[image(n, reference="narrow", type="jpeg", level=1, given=n / 100) for n in range(10, 19)],
    *[
        image(n, reference="wide", type=("blur", "jpeg", None)[n % 3], level=2)
        for n in range(20, 29)
    ],
]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_strips_show_the_scenes_with_most_versions_from_best_to_worst(
    higher_is_better: bool,
) -> None:
    strips = choose_strips(VERSIONS, higher_is_better=higher_is_better)
    assert [strip.reference for strip in strips] == ["wide", "narrow"]
    for strip in strips:
        given = [item["given"] for item in strip.images]
        assert len(given) == 5
        assert given == sorted(given, reverse=higher_is_better)
        versions = [item["given"] for item in VERSIONS if item["reference"] == strip.reference]
        assert {min(versions), max(versions)} <= set(given)


def test_what_is_chosen_does_not_depend_on_predictions_or_order() -> None:
    rng = np.random.default_rng(0)
    others = [item | {"score": float(rng.random())} for item in VERSIONS]
    others = [others[place] for place in rng.permutation(len(others))]

    def ids(images: list[dict[str, Any]]) -> list[Any]:
        strips = choose_strips(images, higher_is_better=True)
        mapped = choose_mapped(images, strips[0], higher_is_better=True)
        return [
            [item["image_id"] for item in part] for part in (*[s.images for s in strips], mapped)
        ]

    assert ids(VERSIONS) == ids(others)


def test_maps_show_bad_versions_of_one_scene_under_different_degradations() -> None:
    strip = choose_strips(VERSIONS, higher_is_better=True)[0]
    mapped = choose_mapped(VERSIONS, strip, higher_is_better=True, rows=3)
    # the worst of each type, then the worst that is left
    assert [item["image_id"] for item in mapped] == [21, 22, 20]
    assert all(item["reference"] == "wide" for item in mapped)


def test_without_references_subsets_take_their_place() -> None:
    images = [image(n, subset="a" if n < 20 else "b") for n in range(30)]
    strips = choose_strips(images, higher_is_better=True)
    assert [strip.reference for strip in strips] == [None, None]
    assert [item["given"] for item in strips[0].images] == [19, 15, 11, 8, 4, 0]
    assert {item["subset"] for item in strips[1].images} == {"b"}
    mapped = choose_mapped(images, strips[0], higher_is_better=True)
    assert [item["image_id"] for item in mapped] == [0, 20, 1, 2]
    assert len(choose_strips([image(1)], higher_is_better=True)[0].images) == 1


def test_errors_by_type_and_the_worst_images() -> None:
    images = [
        image(0, type="jpeg", score=3.0),
        image(1, type="jpeg", score=-3.0),
        image(2, type="blur", score=3.0),
        image(3, recipe="jpeg:1 blur:2", score=3.5),
    ]
    rows = type_rows(images)
    assert [(row["type"], row["images"]) for row in rows] == [
        ("jpeg", 2),
        ("blur", 1),
        (SEVERAL, 1),
    ]
    assert rows[0]["rmse"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert [row["mean_error"] for row in rows] == pytest.approx([-0.5, 1.0, 0.5])
    assert type_rows([image(0), image(1)]) == []
    assert [item["image_id"] for item in worst(images, 3)] == [1, 0, 2]


def test_descriptions() -> None:
    assert describe(image(0, type="jpeg", level=3.0)) == "jpeg 3"
    assert describe(image(0, type="fnoise")) == "fnoise"
    assert describe(image(0, recipe="jpeg:1 darken:2")) == "jpeg:1 darken:2"
    assert describe(image(0)) == ""
