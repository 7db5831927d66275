"""What the scoring service is told: by `conf/serve.yaml` and the command line, or by `args` in `infra/serve.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dri_iqa.config import ConfigError, StrictConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(StrictConfig):
    """The scoring service."""

    model: str | None = None
    """Bundle folder, `s3://` or `models:/` URI; None takes what `dri-iqa score` would: DRI_IQA_MODEL, else the champion
    of the newest run on human scores, else the model that comes along."""
    host: str = "127.0.0.1"
    """Address that `python pipelines/serve.py` listens on; keep it, and put a proxy in front."""
    port: int = 8000
    """Its port."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` is faster where the processor or card has it; last digits differ."""
    replicas: int = 1
    """Copies of the model."""
    cpus: float = 1.0
    """CPUs reserved for a replica, and its torch threads (rounded up)."""
    gpus: float = 0.0
    """GPUs reserved for a replica; a part of one shares it."""
    batch: int = 8
    """Requests that are answered together: their pictures are decoded side by side, each is one pass of its own."""
    wait_ms: float = 5.0
    """How long the first of them waits for others."""
    ongoing: int = 16
    """Requests that a replica takes; further ones queue."""
    queued: int = 64
    """Requests that queue; further ones are answered 503."""
    max_body_mb: float = 32.0
    """Largest body of a request, in 10^6 bytes; a larger one is answered 413 before it is read."""
    max_crops: int = 100
    """Most crops that a request may ask for."""
    timeout_s: float = 60.0
    """A request that takes longer is given up and answered 408."""

    def __post_init__(self) -> None:
        for name in ("replicas", "batch", "ongoing", "queued", "max_crops"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serve.{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch > self.ongoing:
            raise ConfigError(
                f"serve.batch: got {self.batch}, but no more than serve.ongoing={self.ongoing} "
                "can be there at once"
            )
        for name in ("cpus", "max_body_mb", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"serve.{name}: got {getattr(self, name)}, expected more than 0")
        for name in ("gpus", "wait_ms"):
            if getattr(self, name) < 0:
                raise ConfigError(f"serve.{name}: got {getattr(self, name)}, expected at least 0")
