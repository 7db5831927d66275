from __future__ import annotations

import itertools

import pytest

from pipelines.runtime import clock


def test_a_long_count_says_every_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=25.0)  # seconds that each item takes
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(ticks))
    said: list[str] = []
    items = clock.told("abcdefgh", 8, "readout", "batches", said.append)
    assert "".join(items) == "abcdefgh"
    assert said == [
        "readout: 3 of 8 batches, 2.1 min left",
        "readout: 6 of 8 batches, 0.8 min left",
    ]
