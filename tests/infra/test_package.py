"""What `make submit` would send, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from pipelines.runtime.package import LIMIT_BYTES, PackageError, check_package

ROOT = Path(__file__).resolve().parents[2]


def test_this_project_is_small_enough() -> None:
    command = [sys.executable, "-m", "pipelines.runtime.package"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("working directory: ")
    assert "MiB of at most 20" in answer.stdout
    assert answer.stderr == ""


def test_the_size_is_that_of_what_ray_sends(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "code.py").write_bytes(os.urandom(300_000))
    (project / "data" / "big.bin").write_bytes(os.urandom(400_000))
    (project / "cache.tmp").write_bytes(os.urandom(500_000))
    (project / ".rayignore").write_text("/data/\n")
    (project / ".gitignore").write_text("*.tmp\n")
    target = tmp_path / "sent.zip"
    create_package(str(project), target, include_gitignore=True)
    size = target.stat().st_size
    assert 300_000 < size < 310_000
    told = check_package(project, limit=size)
    assert told.startswith("3 files, 0.3 MiB")
    with pytest.raises(PackageError, match=r"largest: code\.py \(0\.3 MiB\)"):
        check_package(project, limit=size - 1)


def test_too_much_is_refused_in_two_lines(tmp_path: Path) -> None:
    with (tmp_path / "weights.safetensors").open("wb") as stream:
        stream.truncate(LIMIT_BYTES + 1)
    command = [sys.executable, "-m", "pipelines.runtime.package"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0
    assert answer.stderr.startswith("error: the working directory is too large to submit: 1 files")
    assert "\nnext: move data out of it, or list it in .rayignore" in answer.stderr
    assert "weights.safetensors" in answer.stderr


def test_submit_checks_first() -> None:
    makefile = (ROOT / "Makefile").read_text()
    check, send = makefile.partition("\nsubmit:")[2].splitlines()[1:3]
    assert check.endswith("python -m pipelines.runtime.package")
    assert "ray job submit --working-dir ." in send
    assert '{"env_vars": {"DRI_IQA_COMMIT": "$(COMMIT)"}}' in send
