"""A pause in Ray Data's executor. A module of its own and light on purpose: the executor's process imports it."""

from __future__ import annotations

import time
from typing import Any

from ray.data import DataContext

PAUSE_S = 0.02


class Pause:
    """Called by the executor once a round.

    A round asks Ray which tasks have output. While the consumer is the slower side there always is some, so rounds
    follow each other without rest and use up a core that the chains, or on a small machine the model, could have.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        """Rest; short against a task, which makes several batches."""
        time.sleep(PAUSE_S)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def pace(context: DataContext) -> None:
    """Make executors of this context rest between rounds."""
    classes: list[Any] = context.custom_execution_callback_classes
    if Pause not in classes:
        classes.append(Pause)
