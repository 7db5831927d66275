"""Time every operator at every level, and whole training samples; write a CSV file and the tables in the documentation.

    python benchmarks/degradations.py                    # one photograph that comes with scikit-image
    python benchmarks/degradations.py --images FOLDER    # four PNG or JPEG files of a folder, 512 x 512 or more
    python benchmarks/degradations.py --soak 100000      # only: does memory grow over that many (small) samples?

Everything runs with one thread a process. Operators are timed in CPU time, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import GROUPS, OPERATORS, degrade_clean, pin_threads

ROOT = Path(__file__).resolve().parent.parent
CSV_FILE = ROOT / "benchmarks" / "results" / "degradations.csv"
DOCUMENT = ROOT / "docs" / "degradations.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
SIZES = (224, 512)
EXTRA = ("colour_quantisation", "denoise", "down_up", "fast_fading")

# ARNIQA's operators (PyTorch and kornia, one thread, mean over levels), ms at 224 x 224 and 512 x 512, on a machine on
# which `calibrate` below gives CALIBRATION ms.
PUBLIC = {
    "gaussian_blur": (10.3, 48.8),
    "lens_blur": (3.5, 42.8),
    "motion_blur": (1.7, 36.6),
    "colour_diffusion": (41.8, 251.7),
    "colour_shift": (7.0, 36.2),
    "saturation_hsv": (2.0, 9.7),
    "saturation_lab": (2.9, 15.3),
    "jpeg2000": (23.0, 84.8),
    "jpeg": (0.6, 1.8),
    "white_noise": (1.1, 3.4),
    "white_noise_ycbcr": (1.3, 4.7),
    "multiplicative_noise": (1.1, 3.4),
    "mean_shift": (0.3, 1.1),
    "jitter": (26.5, 166.5),
    "non_eccentricity_patch": (0.4, 0.5),
    "pixelate": (0.2, 0.6),
    "quantisation": (1.8, 9.7),
    "colour_block": (0.2, 0.3),
    "high_sharpen": (5.1, 25.7),
    "linear_contrast": (11.4, 26.5),
    "non_linear_contrast": (0.2, 0.6),
}
CALIBRATION = 0.34


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--images", type=Path, help="folder of photographs of at least 512 x 512 pixels"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="time spent on one operator, level and size"
    )
    parser.add_argument("--samples", type=int, default=200, help="training samples a process")
    parser.add_argument(
        "--soak", type=int, default=0, help="only watch the memory over this many samples"
    )
    arguments = parser.parse_args()
    pin_threads()
    if arguments.soak:
        soak(arguments.soak)
        return
    photographs = load(arguments.images)
    calibration = calibrate(photographs[0])
    rows = [row for name in names() for row in time_operator(name, photographs, arguments.seconds)]
    rates = sample_rates(photographs, arguments.samples)
    write(rows, rates, calibration, len(photographs))


def names() -> list[str]:
    return [*(name for group in GROUPS.values() for name in group), *EXTRA]


def load(folder: Path | None) -> list[np.ndarray]:
    """8-bit RGB photographs of at least 512 x 512 pixels."""
    if folder is None:
        from skimage import data

        return [np.asarray(data.astronaut())]
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    images = [cv2.cvtColor(np.asarray(cv2.imread(str(file))), cv2.COLOR_BGR2RGB) for file in files]
    images = [image for image in images if min(image.shape[:2]) >= max(SIZES)][:4]
    if not images:
        raise SystemExit(
            f"{folder}: found no PNG or JPEG file of at least {max(SIZES)} pixels a side"
        )
    return images


def middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def milliseconds(call: Callable[[], object], seconds: float) -> float:
    """Median CPU time of a call, warm."""
    call()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < stop and len(times) < 200):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3


def calibrate(photograph: np.ndarray) -> float:
    """A yardstick for the machine: OpenCV's Gaussian blur, sigma 2, of a 224 x 224 colour image in float32."""
    image = (middle(photograph, 224) / np.float32(255)).astype(np.float32)
    return milliseconds(lambda: cv2.GaussianBlur(image, (0, 0), 2), 0.5)


def time_operator(
    name: str, photographs: list[np.ndarray], seconds: float
) -> list[dict[str, object]]:
    operator, rows = OPERATORS[name], []
    for side in SIZES:
        images = [
            (middle(photo, side) / np.float32(255)).astype(np.float32) for photo in photographs
        ]
        for level in range(1, 6):
            rng = np.random.default_rng(level)
            times = [
                milliseconds(partial(operator, image, level, rng), seconds / len(images))
                for image in images
            ]
            row = {
                "operator": name,
                "side": side,
                "level": level,
                "ms": round(statistics.mean(times), 3),
            }
            rows.append(row)
    print(name, [row["ms"] for row in rows], flush=True)
    return rows


def sample_rates(photographs: list[np.ndarray], count: int) -> list[dict[str, object]]:
    """Whole stage-1 samples a second: decode a 480 x 480 sub-image, two recipes, four 224 x 224 crops."""
    pieces = [cv2.cvtColor(middle(photo, 480), cv2.COLOR_RGB2BGR) for photo in photographs]
    rates = []
    for form, options in ((".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), (".png", [])):
        files = [cv2.imencode(form, piece, options)[1].tobytes() for piece in pieces]
        processes = 1
        while processes <= (os.cpu_count() or 1):
            wall, busy = parallel_rate(files, count, processes)
            rates.append(
                {
                    "format": form[1:],
                    "processes": processes,
                    "samples_per_s": round(wall, 1),
                    "samples_per_cpu_s": round(busy, 1),
                }
            )
            print(rates[-1], flush=True)
            processes *= 2
    return rates


def parallel_rate(files: list[bytes], count: int, processes: int) -> tuple[float, float]:
    """Samples a second of all processes together while all of them work, and samples a CPU second of one."""
    with multiprocessing.get_context("spawn").Pool(processes, pin_threads) as pool:
        jobs = [(files, count, 100_000 * number, time.time() + 4) for number in range(processes)]
        results = pool.map(work, jobs, chunksize=1)
    return sum(wall for wall, _ in results), statistics.mean(busy for _, busy in results)


def work(job: tuple[list[bytes], int, int, float]) -> tuple[float, float]:
    files, count, first, start = job
    sample(files, first)
    time.sleep(max(0.0, start - time.time()))
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for index in range(first, first + count):
        sample(files, index)
    return count / (time.perf_counter() - begin), count / (time.process_time() - begin_cpu)


def sample(files: list[bytes], index: int) -> None:
    data = np.frombuffer(files[index % len(files)], np.uint8)
    bgr = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    degrade_clean(image, run_seed=0, epoch=0, image_index=index, crop=224)


def soak(count: int) -> None:
    image = middle(load(None)[0], 128)
    config = DegradeConfig(region=96)
    for index in range(count):
        degrade_clean(image, run_seed=0, epoch=0, image_index=index, crop=64, config=config)
        if (index + 1) % max(1, count // 20) == 0:
            print(f"{index + 1} samples, {resident_mib():.1f} MiB resident", flush=True)


def resident_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def write(
    rows: list[dict[str, object]],
    rates: list[dict[str, object]],
    calibration: float,
    photographs: int,
) -> None:
    CSV_FILE.parent.mkdir(parents=True, exist_ok=True)
    with CSV_FILE.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["operator", "side", "level", "ms"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(markdown(rows, rates, calibration, photographs))
    DOCUMENT.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


def markdown(
    rows: list[dict[str, object]],
    rates: list[dict[str, object]],
    calibration: float,
    photographs: int,
) -> list[str]:
    times = {(row["operator"], row["side"], row["level"]): float(str(row["ms"])) for row in rows}
    means = {
        (name, side): statistics.mean(times[name, side, level] for level in range(1, 6))
        for name in names()
        for side in SIZES
    }
    lines = [
        f"One thread, median CPU ms, mean over {photographs} photograph(s); {cpu()}, OpenCV {cv2.__version__}. "
        f"Yardstick: `cv2.GaussianBlur` (sigma 2, 224 x 224 x 3 float32) takes {calibration:.2f} ms here. "
        f"*Public* is ARNIQA's implementation, mean over levels, where the yardstick took {CALIBRATION} ms.",
        "",
        "| operator | 224: 1 | 2 | 3 | 4 | 5 | mean | public | 512: 1 | 2 | 3 | 4 | 5 | mean | public |",
        "|---|" + "---:|" * 14,
    ]
    for name in names():
        cells = [f"`{name}`"]
        for place, side in enumerate(SIZES):
            cells += [f"{times[name, side, level]:.2f}" for level in range(1, 6)]
            cells += [
                f"**{means[name, side]:.2f}**",
                str(PUBLIC[name][place]) if name in PUBLIC else "-",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| mean over the operators with a public figure | 224 | public | ratio | 512 | public | ratio |",
    ]
    lines.append("|---|" + "---:|" * 6)
    for title, chosen in (
        ("without JPEG 2000", [name for name in PUBLIC if name != "jpeg2000"]),
        ("all", list(PUBLIC)),
    ):
        cells = [title]
        for place, side in enumerate(SIZES):
            ours = statistics.mean(means[name, side] for name in chosen)
            public = statistics.mean(PUBLIC[name][place] for name in chosen)
            cells += [f"{ours:.2f}", f"{public:.2f}", f"1 / {public / ours:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Samples of the contrastive stage (decode a 480 x 480 sub-image, two recipes, four crops of 224 x 224):",
        "",
        "| sub-image | processes | samples / s | samples / CPU s |",
        "|---|---:|---:|---:|",
    ]
    keys = ("format", "processes", "samples_per_s", "samples_per_cpu_s")
    lines += ["| " + " | ".join(str(rate[key]) for key in keys) + " |" for rate in rates]
    return lines


def cpu() -> str:
    """The processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
