"""Figures are real PNG files; the report is complete, self-contained and safe against its data."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dri_iqa.evaluation import evaluate_table, figures
from dri_iqa.evaluation.report import (
    Drawing,
    Outlier,
    Report,
    environment,
    render_html,
    render_markdown,
    write_report,
)

RNG = np.random.default_rng(0)
TRUE_N = RNG.uniform(0, 100, 120)
PRED_N = TRUE_N + RNG.normal(0, 12, 120)
PHOTO_HWC = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def draw_all(folder: Path) -> dict[str, Path]:
    subsets = ["blur", "jpeg", "noise"] * 40
    rows = evaluate_table(PRED_N, TRUE_N, None, subsets, n=50)
    noisy = np.clip(PHOTO_HWC.astype(int) + 20, 0, 255).astype(np.uint8)
    restored = figures.Restored(
        degraded_HWC=noisy, restored_HWC=PHOTO_HWC, reference_HWC=PHOTO_HWC, name="jpeg:3"
    )
    bare = figures.Restored(degraded_HWC=noisy, restored_HWC=PHOTO_HWC)
    mapped = figures.Mapped(
        image_HWC=PHOTO_HWC, degradation_HW=RNG.random((5, 8)), quality_HW=RNG.random((5, 8))
    )
    judged = [figures.Judged(image_HWC=PHOTO_HWC, given=29.23, predicted=28.62, name="WN")] * 3
    history = {"loss": {"train": [1.0, 0.5, 0.3], "val": [1.1, float("nan"), 0.4]}}
    return {
        "scatter": figures.scatter(PRED_N, TRUE_N, folder / "a" / "s.png", subsets=subsets),
        "curves": figures.curves(history, folder / "c.png", log=["loss"]),
        "bars": figures.subset_bars(rows, folder / "b.png"),
        "restored": figures.restoration_strip([restored, bare], folder / "r.png"),
        "maps": figures.map_figure([mapped, mapped], folder / "m.png"),
        "strip": figures.quality_strip([judged, judged[:1]], folder / "q.png"),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_all(tmp_path_factory.mktemp("drawn"))


def test_every_figure_is_drawn_and_not_blank(drawn: dict[str, Path]) -> None:
    for name, path in drawn.items():
        image_HWC = pixels(path)
        assert min(image_HWC.shape[:2]) > 100, name
        assert image_HWC.std() > 5, name


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    first = figures.scatter(PRED_N, TRUE_N, tmp_path / "1.png").read_bytes()
    assert first == figures.scatter(PRED_N, TRUE_N, tmp_path / "2.png").read_bytes()
    assert first != figures.scatter(PRED_N + 1, TRUE_N, tmp_path / "3.png").read_bytes()


@pytest.mark.parametrize(
    ("pred", "true"),
    [([], []), ([1.0] * 5, [1, 2, 3, 4, 5]), ([np.nan, 1, 2], [1, 2, 3]), ([1.0], [2.0])],
)
def test_scatter_survives_what_has_no_correlation(tmp_path: Path, pred, true) -> None:
    assert pixels(figures.scatter(pred, true, tmp_path / "s.png")).size


def test_curves_and_bars_survive_gaps_and_undefined_values(tmp_path: Path) -> None:
    nothing = {"loss": {"train": [float("nan")] * 2}, "empty": {"train": []}}
    assert pixels(figures.curves(nothing, tmp_path / "c.png", log=["loss"])).size
    rows = evaluate_table([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], None, ["a", "a", "b"], n=0)
    assert pixels(figures.subset_bars(rows, tmp_path / "b.png")).size


def test_restored_images_stand_below_what_they_were(tmp_path: Path) -> None:
    green, red = (np.zeros((20, 20, 3), np.uint8) for _ in range(2))
    green[..., 1], red[..., 0] = 255, 255
    pair = [figures.Restored(degraded_HWC=red, restored_HWC=green)] * 4
    image_HWC = pixels(figures.restoration_strip(pair, tmp_path / "r.png"))
    rows = [
        np.flatnonzero((image_HWC == colour).all(2).any(1)) for colour in (red[0, 0], green[0, 0])
    ]
    assert rows[0].max() < rows[1].min()
    assert image_HWC.shape[1] > image_HWC.shape[0]


def test_maps_share_one_scale_unless_told_otherwise(tmp_path: Path) -> None:
    weak = figures.Mapped(image_HWC=PHOTO_HWC, degradation_HW=np.eye(4) * 0.1, quality_HW=np.eye(4))
    strong = figures.Mapped(image_HWC=PHOTO_HWC, degradation_HW=np.eye(4), quality_HW=np.eye(4))
    shared = figures.map_figure([weak, strong], tmp_path / "1.png")
    own = figures.map_figure([weak, strong], tmp_path / "2.png", shared_scale=False)
    assert shared.read_bytes() != own.read_bytes()


def test_psnr() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 10, np.uint8)
    assert figures.psnr(black, grey) == pytest.approx(20 * np.log10(255 / 10))
    assert figures.psnr(grey, grey) == float("inf")


class Page(HTMLParser):
    """Collects tags, checks that they are balanced, and keeps the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(source)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + "\n"


def full_report(drawn: dict[str, Path], name: str = "a.jpg") -> Report:
    rows = evaluate_table(PRED_N, TRUE_N, None, ["blur", "jpeg"] * 60, n=20)
    return Report(
        title="DRI-IQA on the built-in sample",
        summary="Pseudo scores.",
        facts={"SROCC": 0.91234567, "images": 120, "kind": "pseudo"},
        notes=["Pseudo scores, not human ones."],
        results=[
            {"variant": "proposed", "srocc": 0.91, "plcc": float("nan"), "note": ""},
            {"variant": "V1", "srocc": 0.8, "plcc": 0.7, "note": ""},
        ],
        subsets=rows,
        tables={"Trials": [{"trial": 1, "lr": 1.5e-5}]},
        figures=[Drawing(path=path, title=title) for title, path in drawn.items()],
        outliers=[Outlier(name=name, predicted=10.0, given=90.0, image_HWC=PHOTO_HWC)],
        configuration={"preset": "tiny", "optim": {"lr": 1e-4}},
        environment=environment(),
    )


def test_report_holds_every_section_and_needs_nothing_else(
    drawn: dict[str, Path], tmp_path: Path
) -> None:
    files = write_report(full_report(drawn), tmp_path / "out")
    source = files.html.read_text()
    page = Page(source)
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == [
        *("Results", "By subset", "Trials", "scatter", "curves", "bars", "restored", "maps"),
        *("strip", "Worst images", "Configuration", "Environment"),
    ]
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 7
    for image in images:
        _, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", image).groups()  # type: ignore
        assert base64.b64decode(data)[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    assert not re.search(r"https?://|url\(", source)
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert anchors == {f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"}
    assert "0.912" in page.words
    assert "undefined" in page.words


def test_sections_without_data_are_left_out() -> None:
    source = render_html(Report(title="Empty"))
    page = Page(source)
    assert not any(tag in ("section", "nav", "img", "table") for tag, _ in page.tags)
    assert "Empty" in page.words
    assert render_markdown(Report(title="Empty")) == "# Empty\n"


def test_markdown_links_and_csv_are_next_to_the_page(
    drawn: dict[str, Path], tmp_path: Path
) -> None:
    files = write_report(full_report(drawn), tmp_path / "out")
    text = files.markdown.read_text()
    for link in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (files.markdown.parent / link).is_file()
    assert [path.name for path in files.tables] == ["results.csv", "subsets.csv", "trials.csv"]
    with open(files.tables[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subset"] for row in rows] == ["all", "blur", "jpeg"]
    assert float(rows[0]["srocc"]) == full_report(drawn).subsets[0]["srocc"]


def test_data_cannot_become_mark_up(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>|`*'
    report = Report(
        title=evil,
        summary=evil,
        facts={evil: evil},
        notes=[evil],
        results=[{evil: evil}],
        outliers=[Outlier(name=evil, predicted=1, given=2, image_HWC=PHOTO_HWC, note=evil)],
        configuration={evil: {evil: evil}},
    )
    page = Page(render_html(report))
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.words.count(evil) >= 8
    table_line = next(line for line in render_markdown(report).splitlines() if line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", table_line)) == 2


def test_what_has_one_title_shares_a_section_but_no_file(tmp_path: Path) -> None:
    paths = []
    for index in range(3):
        path = tmp_path / str(index) / "same.png"
        path.parent.mkdir()
        Image.fromarray(np.full((4, 4, 3), index * 100, np.uint8)).save(path)
        paths.append(path)
    report = Report(
        title="t",
        figures=[Drawing(path=path, title="Same") for path in paths],
        tables={"First": [{"a": 1}], "Same": [{"b": 2}]},
        texts={"Same": "Said once."},
        order=("Same", "Absent"),
    )
    files = write_report(report, tmp_path / "out")
    links = re.findall(r"!\[.*?\]\((.*?)\)", files.markdown.read_text())
    assert [pixels(files.markdown.parent / link)[0, 0, 0] for link in links] == [0, 100, 200]
    source = files.html.read_text()
    assert re.findall(r'<section id="(.*?)"', source) == ["same", "first"]
    assert source.count("Said once.") == files.markdown.read_text().count("Said once.") == 1


def test_figures_need_no_display_and_pyplot_stays_out(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from dri_iqa.evaluation import figures;"
        f"figures.scatter([1, 2, 3, 5, 8], [1, 2, 4, 4, 9], {str(tmp_path / 'x.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"MPLBACKEND": "TkAgg"})


def test_intervals_share_a_cell_with_their_estimate() -> None:
    row = {"subset": "all", "srocc": 0.9124, "srocc_low": 0.88, "srocc_high": 0.93, "plcc": 0.5}
    undefined = {"subset": "x", "srocc": 0.1, "srocc_low": float("nan"), "srocc_high": 1.0}
    text = render_markdown(Report(title="t", subsets=[row, undefined]))
    assert r"| all | 0.912 \[0.880, 0.930\] | 0.500 |" in text
    assert "| x | 0.100 |  |" in text
