"""Time every operator at every level, and whole training samples; write a CSV file and the tables in the documentation.

    python benchmarks/degradations.py                    # one photograph that comes with scikit-image
    python benchmarks/degradations.py --images FOLDER    # four PNG or JPEG files of a folder, 512 x 512 or more
    python benchmarks/degradations.py --soak 100000      # only: memory and threads over that many (small) samples

Everything runs with one thread a process. Operators are timed in CPU time, which other work disturbs less; samples a
second are wall time, and need a machine that does nothing else. Seeds are fixed, all draws come from them.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import GROUPS, OPERATORS, degrade_clean, pin_threads
from dri_iqa.images import decode

ROOT = Path(__file__).resolve().parent.parent
CSV_FILE = ROOT / "benchmarks" / "results" / "degradations.csv"
DOCUMENT = ROOT / "docs" / "degradations.md"
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

RATE = 25.0
"""Samples a second of one core that are asked for, on the same machine."""

GROWTH = 8.0
"""Mebibytes by which a soak may end above its first twentieth: what allocators need to settle."""


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
    where = circumstances()
    rows, yardsticks = [], []
    for name in names():
        yardsticks.append(calibrate(photographs[0]))
        rows += time_operator(name, photographs, arguments.seconds)
    codecs = time_codecs(photographs, arguments.seconds)
    rates = sample_rates(photographs, arguments.samples)
    save_csv(rows)
    tables = markdown(rows, codecs, rates, statistics.median(yardsticks), len(photographs))
    replace_section("benchmark", [where, "", *tables])


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
    return milliseconds(lambda: cv2.GaussianBlur(image, (0, 0), 2), 0.2)


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


def time_codecs(photographs: list[np.ndarray], seconds: float) -> list[str]:
    """Both codecs beside what the public implementation does for them, in turn, on the same pictures.

    The time of a codec depends on the picture, and it is not said on which pictures the public figures were measured.
    """
    import torch
    from torchvision.io import decode_jpeg, encode_jpeg

    torch.set_num_threads(1)

    def public_jpeg(image: np.ndarray, quality: float) -> object:
        planes = torch.from_numpy(image).permute(2, 0, 1) * 255
        return decode_jpeg(encode_jpeg(planes.byte(), quality=int(quality))) / 255.0

    def public_jpeg2000(image: np.ndarray, ratio: float) -> object:
        target = io.BytesIO()
        rates = {"quality_mode": "rates", "quality_layers": [int(ratio)], "num_resolutions": 8}
        Image.fromarray((image * 255).astype(np.uint8)).save(target, "JPEG2000", **rates)
        return np.array(Image.open(target)).astype(np.float32) / 255

    lines = ["| codec, on these pictures | 224 | public | 512 | public |", "|---|" + "---:|" * 4]
    for name, public in (("jpeg", public_jpeg), ("jpeg2000", public_jpeg2000)):
        operator, cells = OPERATORS[name], [f"`{name}`"]
        for side in SIZES:
            ours, theirs = [], []
            for photo in photographs:
                image = (middle(photo, side) / np.float32(255)).astype(np.float32)
                for level in range(1, 6):
                    rng, value = np.random.default_rng(level), operator.value(level)
                    share = seconds / len(photographs)
                    ours.append(milliseconds(partial(operator, image, level, rng), share))
                    theirs.append(milliseconds(partial(public, image, value), share))
            cells += [f"**{statistics.mean(ours):.2f}**", f"{statistics.mean(theirs):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    print(*lines, sep="\n", flush=True)
    return lines


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
    image = decode(files[index % len(files)])
    degrade_clean(image, run_seed=0, epoch=0, image_index=index, crop=224)


def soak(count: int) -> None:
    """Many samples in one process, from files of several sizes: resident memory and the threads that worked."""
    where, photograph = circumstances(), load(None)[0]
    files = []
    for side in (96, 112, 128, 160):
        bgr = cv2.cvtColor(middle(photograph, side), cv2.COLOR_RGB2BGR)
        files += [cv2.imencode(form, bgr)[1].tobytes() for form in (".jpg", ".png")]
    config = DegradeConfig(region=112)
    steps, sizes, begin = max(1, count // 20), [], time.perf_counter()
    # Pools of BLAS may have been started, and used a little, by imports before the limit was set.
    types, ticks = 0, sum(helper_ticks())
    for index in range(count):
        image = decode(files[index % len(files)])
        result = degrade_clean(
            image, run_seed=0, epoch=0, image_index=index, crop=64, config=config
        )
        types |= int(result.type_mask_2[0] | result.type_mask_2[1])
        if (index + 1) % steps == 0:
            sizes.append(resident_mib())
            print(f"{index + 1} samples, {sizes[-1]:.1f} MiB resident", flush=True)
    growth, helpers = sizes[-1] - sizes[0], helper_ticks()
    ticks = sum(helpers) - ticks
    text = (
        f"{count} samples in {time.perf_counter() - begin:.0f} s, {types.bit_count()} types of degradation: resident "
        f"memory {sizes[0]:.1f} MiB after the first twentieth, {max(sizes):.1f} MiB at most, {sizes[-1]:.1f} MiB at "
        f"the end; threads other than the main one: {len(helpers)}, with {ticks} ticks (10 ms) of work in that time."
    )
    print(text)
    if growth > GROWTH or ticks:
        sys.exit(f"failed: {growth:+.1f} MiB, ticks of other threads {ticks}")
    replace_section("soak", [where, "", text])


def helper_ticks() -> list[int]:
    """CPU ticks of each thread of this process but the main one (Linux)."""
    ticks = []
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            fields = (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
            ticks.append(int(fields[11]) + int(fields[12]))
    return ticks


def resident_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def save_csv(rows: list[dict[str, object]]) -> None:
    CSV_FILE.parent.mkdir(parents=True, exist_ok=True)
    with CSV_FILE.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["operator", "side", "level", "ms"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def replace_section(name: str, lines: list[str]) -> None:
    """Write lines between the document's two markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    text = "\n".join(lines)
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def markdown(
    rows: list[dict[str, object]],
    codecs: list[str],
    rates: list[dict[str, object]],
    yardstick: float,
    photographs: int,
) -> list[str]:
    times = {(row["operator"], row["side"], row["level"]): float(str(row["ms"])) for row in rows}
    means = {
        (name, side): statistics.mean(times[name, side, level] for level in range(1, 6))
        for name in names()
        for side in SIZES
    }
    speed = yardstick / CALIBRATION
    lines = [
        f"One thread, median CPU ms, mean over {photographs} photograph(s). Yardstick: `cv2.GaussianBlur` (sigma 2, "
        f"224 x 224 x 3 float32) takes {yardstick:.3f} ms here. *Public* is ARNIQA's implementation, mean over levels, "
        f"measured where the yardstick took {CALIBRATION} ms and multiplied by {speed:.2f} here.",
        "",
        "| operator | 224: 1 | 2 | 3 | 4 | 5 | mean | public | 512: 1 | 2 | 3 | 4 | 5 | mean | public |",
        "|---|" + "---:|" * 14,
    ]
    slower = []
    for name in names():
        cells = [f"`{name}`"]
        for place, side in enumerate(SIZES):
            cells += [f"{times[name, side, level]:.2f}" for level in range(1, 6)]
            cells.append(f"**{means[name, side]:.2f}**")
            public = PUBLIC[name][place] * speed if name in PUBLIC else None
            cells.append("-" if public is None else f"{public:.2f}")
            if public is not None and means[name, side] > public:
                slower.append(f"`{name}` at {side} ({means[name, side]:.2f} > {public:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Slower than the scaled public figure: {', '.join(slower) or 'none'}. A codec's time depends on the picture, "
        "so the public implementation's two were also run on these, in turn with ours:",
        "",
        *codecs,
        "",
        "| mean over the operators with a public figure | 224 | public | ratio | 512 | public | ratio | asked |",
        "|---|" + "---:|" * 7,
    ]
    for title, chosen, asked in (
        ("without JPEG 2000", [name for name in PUBLIC if name != "jpeg2000"], 6),
        ("all", list(PUBLIC), 4),
    ):
        cells = [title]
        for place, side in enumerate(SIZES):
            ours = statistics.mean(means[name, side] for name in chosen)
            public = speed * statistics.mean(PUBLIC[name][place] for name in chosen)
            cells += [f"{ours:.2f}", f"{public:.2f}", f"1 / {public / ours:.1f}"]
        lines.append("| " + " | ".join([*cells, f"1 / {asked}"]) + " |")
    lines += [
        "",
        "Samples of the contrastive stage (decode a 480 x 480 sub-image, two recipes, four crops of 224 x 224). Asked "
        f"are {RATE:.0f} a second on one core where the yardstick takes {CALIBRATION} ms, that is {RATE / speed:.1f} "
        "here.",
        "",
        "| sub-image | processes | samples / s | samples / CPU s |",
        "|---|---:|---:|---:|",
    ]
    keys = ("format", "processes", "samples_per_s", "samples_per_cpu_s")
    lines += ["| " + " | ".join(str(rate[key]) for key in keys) + " |" for rate in rates]
    return lines


def circumstances() -> str:
    """One line: command, commit, machine, and whether other work was going on."""
    commit = git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"**busy** (load {load:.1f} before the run)" if load > 0.3 else "idle before the run"
    return (
        f"`python {' '.join(['benchmarks/degradations.py', *map(public_word, sys.argv[1:])])}`, commit {commit}, "
        f"{cpu()}, {cores} cores, {busy}, OpenCV {cv2.__version__}, seeds 0 to 5."
    )


def public_word(word: str) -> str:
    """A word of the command line; a folder only by its last name."""
    return Path(word).name if "/" in word else word


def git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def cpu() -> str:
    """The processor's name."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        if models:
            return models[0]
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
