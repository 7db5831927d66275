"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UPWARD = {"ray", "mlflow", "hydra", "omegaconf", "pipelines"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    "path", sorted((ROOT / "dri_iqa").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_science_knows_nothing_of_the_cluster(path: Path) -> None:
    assert not imported(path) & UPWARD


def test_importing_the_whole_science_floor_loads_no_cluster_library() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "dri_iqa").rglob("*.py"))
    ]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps(sorted(set({sorted(UPWARD)!r}) & set(sys.modules))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == []


def test_pipelines_hold_no_model_code() -> None:
    for path in (ROOT / "pipelines").glob("*.py"):
        assert "nn.Module" not in path.read_text(), path


def test_nothing_that_loads_executes() -> None:
    forbidden = re.compile(r"\beval\(|\bexec\(|pickle\.load|weights_only=False|allow_pickle=True")
    for folder in ("dri_iqa", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                # model.eval() and stage.eval() switch a network's mode.
                assert not forbidden.search(line.replace(".eval()", "")), f"{path}: {line.strip()}"


def test_every_constraint_is_a_name_and_a_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_-]+", line) for line in lines)
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # They start often and several at a time; torch would cost each of them seconds and hundreds of megabytes.
        ("pipelines.runtime.streams, dri_iqa.data.batches", "torch"),
        # What a worker needs to begin its batches; layers and their compilers come after that.
        ("pipelines.runtime.host, pipelines.runtime.failures, pipelines.runtime.feeds", "timm"),
        # What a person waits for before a job says what is wrong with its options.
        *(
            ("pipelines.full, pipelines.evaluate, pipelines.score", name)
            for name in ("torch", "matplotlib")
        ),
        # What a person waits for before a first photograph is scored (dri_iqa/models/quick_start.py).
        ("dri_iqa.cli, dri_iqa.scoring, dri_iqa.graph", "torch"),
        ("dri_iqa.running", "torch._dynamo"),
        ("dri_iqa.cli, dri_iqa.scoring", "pandas"),
    ],
)
def test_processes_import_no_more_than_they_need(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; print({absent!r} in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.split() == ["False"]
