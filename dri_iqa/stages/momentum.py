"""Momentum contrast on the extractor: key encoder, queue and the two losses, shared by both stages.

Paper 4.2 ("following the configuration proposed in MoCo"). The key encoder is a moving average of
the query's parameters; keys have no gradient. Crops come in fours: x11, x12 of one view and x21,
x22 of the other.

Shapes: B images of this rank, G of all ranks, D size of a vector, N keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dri_iqa.config import ConfigError, DREConfig, MoCoConfig
from dri_iqa.losses.contrastive import (
    Contrast,
    KeyQueue,
    Meta,
    degradation_sets,
    info_nce,
    quality_negatives,
)
from dri_iqa.models.dre import DREEncoder, ProjectionHeads
from dri_iqa.models.parallel import gather_rows, rank
from dri_iqa.seeds import Purpose, generator
from dri_iqa.stages.base import Metrics, to_float


class KeyEncoder(nn.Module):
    """Copy of the query encoder and its heads that follows them slowly.

    Args:
        config: the extractor's sizes.
    """

    def __init__(self, config: DREConfig) -> None:
        super().__init__()
        self.encoder = DREEncoder(config)
        self.heads = ProjectionHeads(config)
        self.requires_grad_(False)


class MomentumContrast(nn.Module):
    """Key encoder, queue and losses.

    Args:
        dre: the extractor's sizes.
        moco: sizes and switches of the contrast.
        halves: which halves are contrasted, ("up", "low") or ("low",).
        seed: of the run; the shuffle of key crops depends on it and on the step.
        batch: images of all ranks per optimisation step.

    Raises:
        ConfigError: a queue that does not hold a whole number of steps.
    """

    def __init__(
        self,
        dre: DREConfig,
        moco: MoCoConfig,
        halves: tuple[str, ...],
        *,
        seed: int,
        batch: int,
    ) -> None:
        super().__init__()
        check_queue(moco, batch)
        self.config, self.halves, self.seed = moco, halves, seed
        self.key = KeyEncoder(dre)
        self.queue = KeyQueue(
            moco.queue_size, self.key.heads.dim, halves, moco.queue_init == "random"
        )
        symmetric = moco.anchors == "symmetric"
        self.anchor_crops = (0, 2) if symmetric else (0,)
        self.key_crops = (0, 1, 2, 3) if symmetric else (1, 2, 3)
        self.mixes_images = dre.norm == "bn"

    def copy_query(self, encoder: nn.Module, heads: nn.Module) -> None:
        """Start the key encoder as an exact copy of the query's."""
        self.key.encoder.load_state_dict(encoder.state_dict())
        self.key.heads.load_state_dict(heads.state_dict())

    @torch.no_grad()
    def follow(self, encoder: nn.Module, heads: nn.Module) -> None:
        """key <- momentum * key + (1 - momentum) * query.

        Called after the optimiser's step, which is the same as MoCo's update before the next key
        pass, because both start equal.
        """
        keys: list[Tensor] = list(self.key.parameters())
        query: list[Tensor] = [*encoder.parameters(), *heads.parameters()]
        torch._foreach_lerp_(keys, query, 1 - self.config.momentum)  # pyright: ignore

    @torch.no_grad()
    def enqueue(
        self,
        crops_B4CHW: Tensor,
        types_B2: Tensor,
        recipe_B2: Tensor,
        image_B: Tensor,
        sibling_B: Tensor | None = None,
    ) -> Tensor:
        """Compute the keys of a step and fill the queue with all ranks' (once a step, before its
        losses).

        Args:
            crops_B4CHW: uint8; keys are computed from those in `key_crops`.
            types_B2: type masks of views x1 and x2.
            recipe_B2: recipe hashes of the views.
            image_B: image numbers.
            sibling_B: False where an image has no second view; None means all have one.

        Returns:
            This rank's keys (B, P, D) for `forward`: `key_crops` of the first half, then of the
            next.
        """
        if sibling_B is None:
            sibling_B = torch.ones_like(image_B, dtype=torch.bool)
        keys = self._keys(crops_B4CHW)
        self._enqueue(keys, types_B2, recipe_B2, image_B, sibling_B)
        return torch.stack(
            [keys[half][crop] for half in self.halves for crop in self.key_crops], dim=1
        )

    def forward(
        self,
        query_map: Tensor,
        heads: ProjectionHeads,
        keys_BPD: Tensor,
        types_B2: Tensor,
        recipe_B2: Tensor,
        image_B: Tensor,
        sibling_B: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Losses {"deg", "qual"} of the contrasted halves, and metrics.

        Args:
            query_map: last map of the anchors, (A B, ...), the crops in `anchor_crops` one after
                the other.
            heads: the query's.
            keys_BPD: what `enqueue` gave for these images.
            types_B2: type masks of views x1 and x2.
            recipe_B2: recipe hashes of the views.
            image_B: image numbers.
            sibling_B: False where an image has no second view; None means all have one.
        """
        if sibling_B is None:
            sibling_B = torch.ones_like(image_B, dtype=torch.bool)
        vectors = iter(keys_BPD.unbind(1))
        keys = {half: {crop: next(vectors) for crop in self.key_crops} for half in self.halves}
        metrics: Metrics = self.queue.health()
        losses: dict[str, Tensor] = {}
        if "up" in self.halves:
            query_BD = heads.project_up(query_map)
            result = self._degradation(query_BD, keys["up"], types_B2, recipe_B2, image_B)
            self._report("deg", result, query_BD, keys["up"], sibling_B, losses, metrics)
        query_BD = heads.project_low(query_map)
        result = self._quality(query_BD, keys["low"], types_B2, recipe_B2, image_B, sibling_B)
        self._report("qual", result, query_BD, keys["low"], sibling_B, losses, metrics)
        return losses, metrics

    def _degradation(
        self,
        query: Tensor,
        keys: dict[int, Tensor],
        types_B2: Tensor,
        recipe_B2: Tensor,
        image_B: Tensor,
    ) -> list[Contrast]:
        config = self.config
        results: list[Contrast] = []
        for crop, query_BD in zip(self.anchor_crops, query.split(image_B.shape[0]), strict=True):
            anchor = Meta(image_B, types_B2[:, crop // 2], recipe_B2[:, crop // 2])
            negative_BK, also_BK = degradation_sets(anchor, self.queue, config)
            temperature = (
                config.temperature if config.temperature_deg is None else config.temperature_deg
            )
            results.append(
                info_nce(
                    query_BD,
                    keys[crop + 1],
                    self.queue.keys("up"),
                    negative_BK,
                    temperature,
                    also_positive_BK=also_BK if config.deg_positive == "cross_content" else None,
                )
            )
        return results

    def _quality(
        self,
        query: Tensor,
        keys: dict[int, Tensor],
        types_B2: Tensor,
        recipe_B2: Tensor,
        image_B: Tensor,
        sibling_B: Tensor,
    ) -> list[Contrast]:
        results: list[Contrast] = []
        other_B = sibling_B & (recipe_B2[:, 0] != recipe_B2[:, 1])
        for crop, query_BD in zip(self.anchor_crops, query.split(image_B.shape[0]), strict=True):
            anchor = Meta(image_B, types_B2[:, crop // 2], recipe_B2[:, crop // 2])
            negative_BK = quality_negatives(anchor, self.queue, self.config)
            # of the other view's two keys the queue already holds the second, unless this step's
            # keys are left out
            first = 2 - crop
            own = (first,) if self.config.in_batch_negatives else (first, first + 1)
            results.append(
                info_nce(
                    query_BD,
                    keys[crop + 1],
                    self.queue.keys("low"),
                    negative_BK,
                    self.config.temperature,
                    own_BPD=torch.stack([keys[number] for number in own], dim=1),
                    own_negative_BP=other_B[:, None].expand(-1, len(own)),
                )
            )
        return results

    def _report(
        self,
        name: str,
        results: Sequence[Contrast],
        query: Tensor,
        keys: dict[int, Tensor],
        sibling_B: Tensor,
        losses: dict[str, Tensor],
        metrics: Metrics,
    ) -> None:
        # an anchor x21 exists only where the second view does; without one the row contributes 0
        rows = [result.loss_B for result in results]
        if len(rows) == 2:
            rows[1] = rows[1] * sibling_B
        loss = torch.stack([row.mean() for row in rows]).mean()
        losses[name] = loss
        with torch.no_grad():
            hit = torch.cat([result.hit_B for result in results])
            negatives = torch.cat([result.negatives_B for result in results])
            known = negatives > 0
            positive = torch.cat([keys[crop + 1] for crop in self.anchor_crops])
            metrics[f"loss_{name}"] = loss.detach()
            metrics[f"top1_{name}"] = (hit & known).sum() / known.sum().clamp(min=1)
            metrics[f"negatives_{name}"] = negatives.float().mean()
            metrics[f"empty_{name}"] = (~known).sum().float()
            metrics[f"alignment_{name}"] = (query - positive).square().sum(1).mean()
            metrics[f"uniformity_{name}"] = uniformity(query)

    @torch.no_grad()
    def _keys(self, crops_B4CHW: Tensor) -> dict[str, dict[int, Tensor]]:
        """half -> crop number -> (B, D) of this rank's images."""
        B = crops_B4CHW.shape[0]
        crops = crops_B4CHW[:, list(self.key_crops)].transpose(0, 1).flatten(0, 1)
        if self.mixes_images and self.training:
            vectors = self._keys_in_chunks(crops, B)
        else:
            vectors = self._encode(crops)
        return {
            half: dict(zip(self.key_crops, vectors_NB.split(B), strict=True))
            for half, vectors_NB in vectors.items()
        }

    def _keys_in_chunks(self, crops_NCHW: Tensor, B: int) -> dict[str, Tensor]:
        """Keys under BatchNorm: B crops share statistics, after a shuffle over all ranks and views.

        The shuffle is a pure function of seed and step, so ranks need not exchange it.
        """
        if not self.config.shuffle_bn:
            parts = [self._encode(part) for part in crops_NCHW.split(B)]
            return {half: torch.cat([part[half] for part in parts]) for half in self.halves}
        count = crops_NCHW.shape[0]
        everyone = gather_rows(crops_NCHW)
        rng = generator(self.seed, Purpose.SHUFFLE_BN, int(self.queue.step))
        order = torch.from_numpy(rng.permutation(everyone.shape[0]).astype(np.int64)).to(
            everyone.device
        )
        mine = everyone[order[rank() * count : (rank() + 1) * count]]
        parts = [self._encode(part) for part in mine.split(B)]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.shape[0], device=order.device)
        own = inverse[rank() * count : (rank() + 1) * count]
        return {
            half: gather_rows(torch.cat([part[half] for part in parts]))[own]
            for half in self.halves
        }

    def _encode(self, crops_NCHW: Tensor) -> dict[str, Tensor]:
        last_NCHW = self.key.encoder(to_float(crops_NCHW))[-1]
        heads = self.key.heads
        project = {"up": heads.project_up, "low": heads.project_low}
        return {half: project[half](last_NCHW) for half in self.halves}

    @torch.no_grad()
    def _enqueue(
        self,
        keys: dict[str, dict[int, Tensor]],
        types_B2: Tensor,
        recipe_B2: Tensor,
        image_B: Tensor,
        sibling_B: Tensor,
    ) -> None:
        """k(x12) and k(x22) of all ranks: first all first views, then all second views, in rank
        order.
        """
        new_BX = torch.cat([keys[half][crop] for half in self.halves for crop in (1, 3)], dim=1)
        numbers = (image_B, types_B2[:, 0], types_B2[:, 1], recipe_B2[:, 0], recipe_B2[:, 1])
        meta_B6 = torch.stack((*numbers, sibling_B.to(torch.int64)), dim=1)
        new_GX, meta_G6 = gather_rows(new_BX), gather_rows(meta_B6)
        image_G, types1, types2, recipe1, recipe2, sibling_G = meta_G6.unbind(1)
        parts = iter(new_GX.chunk(2 * len(self.halves), dim=1))
        by_half = {half: torch.cat((next(parts), next(parts))) for half in self.halves}
        meta = Meta(
            torch.cat((image_G, image_G)),
            torch.cat((types1, types2)),
            torch.cat((recipe1, recipe2)),
        )
        valid = torch.cat((torch.ones_like(sibling_G), sibling_G)).bool()
        self.queue.enqueue(by_half, meta, valid)


def check_queue(moco: MoCoConfig, batch: int) -> None:
    """Whether the queue holds a whole number of steps.

    Raises:
        ConfigError: with both numbers, or an empty batch.
    """
    if batch < 1:
        raise ConfigError(f"a global batch of {batch} images cannot be trained on")
    if moco.queue_size < 2 * batch or moco.queue_size % (2 * batch):
        raise ConfigError(
            f"moco.queue_size={moco.queue_size} must be a multiple of the keys per step, "
            f"{2 * batch} (two for each of {batch} images)"
        )


def uniformity(vectors_BD: Tensor) -> Tensor:
    """log of the mean of exp(-2 |a - b|^2) over pairs of different rows (Wang and Isola 2020); 0
    for a single row.
    """
    B = vectors_BD.shape[0]
    if B < 2:
        return vectors_BD.new_zeros(())
    distance_BB = (2 - 2 * vectors_BD @ vectors_BD.T).clamp(min=0)
    off_BB = ~torch.eye(B, dtype=torch.bool, device=vectors_BD.device)
    return ((-2 * distance_BB).exp() * off_BB).sum().div(B * (B - 1)).log()
