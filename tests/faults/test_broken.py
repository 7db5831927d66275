"""What no start anew can mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Pretraining
from tests.pipelines import jobs

pytestmark = pytest.mark.ray


def test_a_loss_that_is_no_number(pretraining: Pretraining, tmp_path: Path) -> None:
    """Every rank raises, the images are named, and nothing is tried again that would fail again."""
    answer = jobs.run(
        "pretrain",
        f"output={tmp_path / 'runs'}",
        *pretraining.arguments,
        "stage1.optim.lr=1e30",
        variables=pretraining.machines.variables,
    )
    assert answer.returncode == 2, answer.stdout
    assert "the loss is not finite (images " in answer.stderr
    assert "lower the learning rate" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "resumed" not in answer.stdout
