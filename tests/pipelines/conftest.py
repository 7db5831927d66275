from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipelines import jobs


@dataclass
class Finished:
    """A finished run of the main job on the built-in sample."""

    output: Path
    answer: subprocess.CompletedProcess[str]
    arguments: tuple[str, ...]

    @property
    def summary(self) -> dict:
        return jobs.summary(self.output)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    output = tmp_path_factory.mktemp("finished") / "runs"
    arguments = (f"output={output}", *jobs.BRIEF)
    answer = jobs.run("full", *arguments)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Finished(output, answer, arguments)
