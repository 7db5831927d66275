"""A report from plain data and an ingested set: every section, in a real browser too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.config import DegradeConfig
from dri_iqa.data.batches import Source
from dri_iqa.data.cutting import png_bytes
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.evaluation import assembly, evaluate_table, figures
from dri_iqa.evaluation.assembly import Evidence, assemble
from dri_iqa.evaluation.choosing import choose_mapped, choose_strips, worst
from dri_iqa.evaluation.published import PUBLISHED, published_rows
from dri_iqa.evaluation.report import environment, write_report
from dri_iqa.evaluation.showing import (
    judged_strip,
    look,
    mapped_row,
    outlier,
    small_chains,
    small_gallery,
)
from dri_iqa.models import build_model
from dri_iqa.scoring import load_model
from tests.browser import Browser
from tests.tiny import tiny_model

SECTIONS = [
    *("Results", "Paired differences", "By subset", assembly.SCATTER, "Worst images"),
    *(assembly.TYPES, assembly.STRIPS, assembly.MAPS, assembly.RESTORATION, assembly.STAGE2),
    *(
        assembly.STAGE1,
        assembly.PROBES,
        assembly.GALLERY,
        assembly.CHAINS,
        assembly.TRIALS,
        assembly.PROTOCOL,
    ),
    *("Configuration", "Environment"),
]
EPOCHS = 3


def picture(seed: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return coarse.repeat(side // 8, axis=0).repeat(side // 8, axis=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two references of eight versions each; the first is larger than what a page shows."""
    folder = tmp_path_factory.mktemp("data")
    records = tuple(
        Record(
            name=f"i{n}",
            data=png_bytes(picture(n, 640 if n % 2 else 72)),
            score=float(n),
            group=f"r{n % 2}",
            reference=f"r{n % 2}",
            type="jpeg" if n % 3 else "white_noise",
            level=1 + n % 5,
            subset=f"r{n % 2}",
        )
        for n in range(16)
    )
    references = tuple(
        Record(name=f"r{n}", data=png_bytes(picture(90 + n, (72, 640)[n])), group=f"r{n}")
        for n in range(2)
    )
    dataset = DataSet(name="toy", records=records, references=references)
    results = [write_shard(plan, str(folder)) for plan in plan_shards(dataset, 50)]
    return Source(uri=str(folder), digest=publish(str(folder), dataset, results).digest)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    config, folder = tiny_model(), tmp_path_factory.mktemp("model") / "bundle"
    scale = ScoreScale(lo=0.0, hi=15.0)
    save_bundle(build_model(config, seed=0), folder, model_config=config, score=scale, meta={})
    return str(folder)


@pytest.fixture(scope="module")
def evidence(source: Source, bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    reader = source.open()
    table = reader.manifest.images().to_pylist()
    images = [row | {"given": row["score"], "score": 15 - row["score"]} for row in table]
    strips = choose_strips(images, higher_is_better=True)
    mapped = choose_mapped(images, strips[0], higher_is_better=True)
    names = [strip.reference or "" for strip in strips]
    looked = look(bundle, source, names, [image["image_id"] for image in mapped], crops=2)
    drawn = tmp_path_factory.mktemp("drawn") / "drawn.png"
    figures.curves({"any": {"picture": [1.0, 2.0]}}, drawn)
    given, score = ([image[name] for image in images] for name in ("given", "score"))
    history: list[dict[str, Any]] = [
        {"epoch": epoch, "loss_deg": 4.0, "loss_qual": 4.0, "loss_mos": 0.1, "val_srocc": 0.5}
        | {
            f"probe_{what}_{half}": 0.5
            for what in ("type", "level", "content")
            for half in ("up", "low")
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    return Evidence(
        title="Toy",
        data="koniq10k",
        summary="Nothing here was trained.",
        facts={"test SROCC": -1.0},
        notes=["Made up."],
        results=[{"model": "proposed", "data": "toy", "srocc": -1.0, "plcc": -1.0}],
        tables={"Paired differences": [{"variants": "V2 - V1", "srocc": 0.01}]},
        subsets=evaluate_table(score, given, None, [image["subset"] for image in images], n=10),
        images=images,
        worst=[outlier(reader, image) for image in worst(images)],
        strips=[judged_strip(reader, strip, looked) for strip in strips],
        maps=[mapped_row(reader, image, looked) for image in mapped],
        stage1=history,
        stage2=history,
        restoration=drawn,
        halves=drawn,
        gallery_HWC=small_gallery(reader.read_reference("r0"), DegradeConfig()),
        chains_HWC=small_chains(reader.read_reference("r0"), DegradeConfig()),
        trials=[{"trial": "a", "val_srocc": 0.5}],
        protocol={"split sha256": "0" * 64},
        configuration={"optim": {"lr": 1e-3}},
        environment=environment(),
    )


@pytest.fixture(scope="module")
def written(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(assemble(evidence, folder / "figures"), folder / "out")
    return folder / "out"


def test_every_section_is_there_in_its_order_in_both_forms(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    names = {path.stem for path in written.glob("*.csv")}
    assert {"results", "subsets", "paired-differences", "error-by-distortion-type"} <= names


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_in_a_browser_without_a_network(
    written: Path, browser: Browser, width: int
) -> None:
    browser.look(written / "report.html", width).check(SECTIONS)


@pytest.mark.parametrize(
    "broken",
    [
        '<img src="https://example.org/x.png">',
        '<img src="data:image/png;base64,AAAA">',
        '<div style="width: 500px">wide</div>',
        "<script>fetch('https://example.org')</script>",
        "<style>#results { display: none }</style>",
    ],
)
def test_the_browser_sees_what_is_broken(
    written: Path, browser: Browser, tmp_path: Path, broken: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text((written / "report.html").read_text().replace("<main>", f"<main>{broken}"))
    with pytest.raises(AssertionError):
        browser.look(page, 390).check(SECTIONS)


def test_a_report_of_many_models_needs_no_pictures(tmp_path: Path) -> None:
    rows = [{"model": name, "data": "koniq10k", "srocc": 0.9, "plcc": 0.9} for name in ("v1", "v2")]
    tables = {"Trained on, tested on": [{"trained on": "a", "b": 0.5}]}
    report = assemble(Evidence(title="t", data="koniq10k", results=rows, tables=tables), tmp_path)
    assert not report.figures
    assert [row["model"] for row in report.results[:2]] == ["v1", "v2"]
    assert len(report.results) == 2 + len(PUBLISHED)
    write_report(report, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Trained on, tested on" in text
    assert "## Worst images" not in text


def test_published_values_say_what_they_can_be_compared_with() -> None:
    rows = published_rows("koniq10k")
    same = [row["data"] for row in rows if row["comparable"] == "same data set, other splits"]
    assert set(same) == {"KonIQ-10k"}
    assert len(same) == 6
    assert {row["comparable"] for row in published_rows("sample")} == {"no: other data"}


def test_references_are_scored_as_the_model_scores_them_and_maps_fit(
    source: Source, bundle: str
) -> None:
    reader = source.open()
    looked = look(bundle, source, ["r0"], [3], crops=4)
    model = load_model(bundle)
    expected = model.score([reader.read_reference("r0")["bytes"]], crops=4)["score"][0]
    assert looked.scores == {"r0": expected}
    (maps,) = model.iter_rows([reader.read(3)["bytes"]], crops=1, maps=True)
    assert np.array_equal(looked.maps[3][0], maps["degradation_map"])
    assert np.array_equal(looked.maps[3][1], maps["quality_map"])
    assert look(bundle, source, [], [], crops=1).maps == {}


def test_large_pictures_are_shown_smaller(source: Source, evidence: Evidence) -> None:
    sides = {max(item.image_HWC.shape[:2]) for strip in evidence.strips for item in strip}
    assert sides == {72, 512}
    assert evidence.strips[0][0].given is None, "nobody judged the reference"
    assert evidence.strips[0][1].given is not None


def test_curves_need_two_points_and_keep_their_epochs() -> None:
    history = [{"epoch": float(n), "loss_mos": 0.1} for n in range(1, 7)]
    history[0]["val_srocc"] = 0.1
    history[2] |= {"val_psnr_input": 20.0}
    history[5] |= {"val_psnr_input": 21.0}
    panels = assembly._panels(history, assembly._STAGE2_PANELS)
    assert list(panels) == ["score loss", "validation PSNR in dB"]
    assert panels["validation PSNR in dB"] == {"degraded": {3: 20.0, 6: 21.0}}
