"""What the yardstick's kept features follow from."""

from __future__ import annotations

from pipelines.runtime.config import compose
from pipelines.yardstick import pooling


def test_another_seed_is_another_network_only_where_weights_are_drawn() -> None:
    def pooled(weights: str, seed: int) -> object:
        job = [f"model.backbone.weights={weights}", f"seed={seed}", "preset=small"]
        return pooling(compose("yardstick", job))

    assert pooled("mobilenetv2_100.safetensors", 1) == pooled("mobilenetv2_100.safetensors", 2)
    assert pooled("none", 1) != pooled("none", 2)
