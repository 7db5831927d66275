"""A change of numerics must change the asset on purpose: `python -m tests.stages.golden`."""

from __future__ import annotations

import pytest

from tests.stages import golden


def test_losses_per_step_are_those_of_the_asset() -> None:
    expected, found = golden.read(), golden.curve()
    assert len(found) == len(expected) == 16
    for step, (now, then) in enumerate(zip(found, expected, strict=True)):
        # processors round differently, and every step of Adam carries that on
        named = dict(zip(golden.COLUMNS, now, strict=True))
        assert named == pytest.approx(
            dict(zip(golden.COLUMNS, then, strict=True)), rel=1e-4 * (1 + step)
        ), f"step {step}"
