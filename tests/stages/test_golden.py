"""A change of numerics must change the asset on purpose: `python -m tests.stages.golden`."""

from __future__ import annotations

import pytest

from tests.stages import golden

FIRST = {"loss_deg": 1e-4, "loss_qual": 1e-4, "grad_norm": 1e-3}
LATER = {"loss_deg": 5e-3, "loss_qual": 5e-3, "grad_norm": 0.1}
"""Relative. Processors round differently, and Adam's first steps, which follow the gradient's sign, carry that on:
between one with AVX-512 and one without it losses differ by 0.00001 in the first step and by up to 0.0024 later, the
gradient's norm by 0.0001 and up to 0.034."""
SAMPLES = 1e-5
"""Numbers of negatives depend on the samples only; six digits are written."""


def test_losses_per_step_are_those_of_the_asset() -> None:
    expected, found = golden.read(), golden.curve()
    assert len(found) == len(expected) == 16
    for step, (now, then) in enumerate(zip(found, expected, strict=True)):
        tolerance = LATER if step else FIRST
        for name, value, wanted in zip(golden.COLUMNS, now, then, strict=True):
            about = pytest.approx(wanted, rel=tolerance.get(name, SAMPLES))
            assert value == about, f"{name} in step {step}"
