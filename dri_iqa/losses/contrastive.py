"""Masked InfoNCE over two queues: who is a negative decides what a half learns (paper 3.2, Fig. 3).

Every key carries the image it shows, the set of degradation types in its view and a hash of the
whole recipe. The sets for an anchor crop x11 of view x1 of an image:

- degradation: positive x12; negatives are keys of other images *and* other sets of types; neither are
  keys of this image (of any epoch) and keys with just these types;
- quality: positive x12; negatives are x21, x22 and every key with another (image, recipe); neither
  are keys of this image under this recipe.

The queue is filled before it is read, so the other images of the batch are among the keys. Its
contents, positions and metadata are buffers: they survive a restart, and are equal on all ranks
because all ranks enqueue all ranks' keys.

Shapes: B anchors, K slots, N new keys, D size of a vector, P own keys appended to the queue's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.config import MoCoConfig

_NOBODY = -1
"""Image, types and recipe of a slot that was filled at random: no view has them."""


class Meta(NamedTuple):
    """What masks are made of; all (B,) int64."""

    image: Tensor
    types: Tensor
    recipe: Tensor


class KeyQueue(nn.Module):
    """First-in first-out store of keys with their metadata.

    Args:
        size: K.
        dim: D.
        halves: which halves have keys, ("up", "low") or ("low",).
        random_init: fill it with random unit vectors as MoCo does, instead of masking empty slots.
    """

    image_K: Tensor
    types_K: Tensor
    recipe_K: Tensor
    valid_K: Tensor
    step_K: Tensor
    pointer: Tensor
    step: Tensor

    def __init__(self, size: int, dim: int, halves: tuple[str, ...], random_init: bool) -> None:
        super().__init__()
        self.size, self.halves, self.random_init = size, halves, random_init
        for half in halves:
            keys_KD = (
                F.normalize(torch.randn(size, dim), dim=1)
                if random_init
                else torch.zeros(size, dim)
            )
            self.register_buffer(f"{half}_KD", keys_KD)
        for name in ("image_K", "types_K", "recipe_K"):
            self.register_buffer(name, torch.full((size,), _NOBODY, dtype=torch.int64))
        self.register_buffer("valid_K", torch.full((size,), random_init, dtype=torch.bool))
        self.register_buffer("step_K", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def keys(self, half: str) -> Tensor:
        """All slots of one half, (K, D), valid or not."""
        return self.get_buffer(f"{half}_KD")

    def enqueue(self, keys: dict[str, Tensor], meta: Meta, valid_N: Tensor) -> None:
        """Overwrite the N oldest slots.

        Args:
            keys: half -> (N, D).
            meta: of the N keys.
            valid_N: False leaves the slot empty (a view that does not exist). So does a key that
                is not finite: kept, it would spoil every loss until it is overwritten.
        """
        count = valid_N.shape[0]
        for half in self.halves:
            valid_N = valid_N & keys[half].isfinite().all(1)
        self.step += 1
        slots_N = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        for half in self.halves:
            own_KD = self.keys(half)
            new_ND = keys[half].detach().to(own_KD.dtype).nan_to_num(0.0, 0.0, 0.0)
            own_KD.index_copy_(0, slots_N, new_ND)
        self.image_K.index_copy_(0, slots_N, meta.image)
        self.types_K.index_copy_(0, slots_N, meta.types)
        self.recipe_K.index_copy_(0, slots_N, meta.recipe)
        self.valid_K.index_copy_(0, slots_N, valid_N)
        self.step_K.index_copy_(0, slots_N, self.step.expand(count))
        self.pointer.copy_((self.pointer + count) % self.size)

    def clear(self) -> None:
        """Empty it, as when image numbers change their meaning; random vectors stay where they were
        asked for.
        """
        self.image_K.fill_(_NOBODY)
        self.types_K.fill_(_NOBODY)
        self.recipe_K.fill_(_NOBODY)
        self.valid_K.fill_(self.random_init)
        self.step_K.zero_()
        self.pointer.zero_()
        self.step.zero_()

    def health(self) -> dict[str, Tensor]:
        """`queue_fill`, share of slots with a key, and `queue_age`, their mean age in steps."""
        valid_K = self.valid_K.float()
        age_K = (self.step - self.step_K).float() * valid_K
        return {"queue_fill": valid_K.mean(), "queue_age": age_K.sum() / valid_K.sum().clamp(min=1)}


def degradation_sets(anchor: Meta, queue: KeyQueue, config: MoCoConfig) -> tuple[Tensor, Tensor]:
    """Negatives and further positives of the degradation half, both (B, K).

    Further positives exist with `deg_positive = cross_content` only: other images under the
    anchor's very recipe (ARNIQA's notion of a positive pair).
    """
    other_BK = (anchor.image[:, None] != queue.image_K) & _usable(queue, config)
    same_recipe_BK = anchor.recipe[:, None] == queue.recipe_K
    negative_BK = other_BK
    if config.deg_exclude_same_types:
        negative_BK = negative_BK & (anchor.types[:, None] != queue.types_K)
    if config.deg_positive == "same_image":
        return negative_BK, torch.zeros_like(negative_BK)
    return negative_BK & ~same_recipe_BK, other_BK & same_recipe_BK


def quality_negatives(anchor: Meta, queue: KeyQueue, config: MoCoConfig) -> Tensor:
    """Negatives of the quality half in the queue, (B, K): all but the same image under the same
    recipe.
    """
    same_BK = (anchor.image[:, None] == queue.image_K) & (anchor.recipe[:, None] == queue.recipe_K)
    return ~same_BK & _usable(queue, config)


def _usable(queue: KeyQueue, config: MoCoConfig) -> Tensor:
    if config.in_batch_negatives:
        return queue.valid_K
    return queue.valid_K & (queue.step_K != queue.step)


class Contrast(NamedTuple):
    """One half's result for B anchors."""

    loss_B: Tensor
    """InfoNCE of each anchor; 0 without negatives."""
    hit_B: Tensor
    """Whether the positive beats every negative."""
    negatives_B: Tensor
    """Number of negatives."""


def info_nce(
    anchor_BD: Tensor,
    positive_BD: Tensor,
    keys_KD: Tensor,
    negative_BK: Tensor,
    temperature: float,
    *,
    own_BPD: Tensor | None = None,
    own_negative_BP: Tensor | None = None,
    also_positive_BK: Tensor | None = None,
) -> Contrast:
    """-log exp(s+) / (exp(s+) + sum of exp(s-)), with s = cosine / temperature; mean over an
    anchor's positives.

    Args:
        anchor_BD: unit vectors with gradient.
        positive_BD: the key of the anchor's other crop.
        keys_KD: the queue.
        negative_BK: which of its slots are negatives.
        temperature: tau.
        own_BPD: further keys of the anchor's own image that are not in the queue.
        own_negative_BP: which of them are negatives.
        also_positive_BK: slots that are positives too, each with a term of its own.
    """
    # a cosine rounded to bfloat16 is off by 0.004, which a temperature of 0.07 makes 0.06
    with torch.autocast(anchor_BD.device.type, enabled=False):
        positive_B = (anchor_BD * positive_BD).sum(1) / temperature
        logits_BK = anchor_BD @ keys_KD.T / temperature
        # a finite floor: a row without negatives then has loss 0 and gradient 0, where -inf would
        # give nan
        floor = torch.finfo(logits_BK.dtype).min / 4
        negatives_BM, mask_BM = logits_BK.masked_fill(~negative_BK, floor), negative_BK
        if own_BPD is not None and own_negative_BP is not None:
            own_BP = torch.einsum("bd,bpd->bp", anchor_BD, own_BPD) / temperature
            negatives_BM = torch.cat(
                (negatives_BM, own_BP.masked_fill(~own_negative_BP, floor)), dim=1
            )
            mask_BM = torch.cat((mask_BM, own_negative_BP), dim=1)
        pool_B = negatives_BM.logsumexp(1)
        loss_B = F.softplus(pool_B - positive_B)
        if also_positive_BK is not None:
            more_BK = F.softplus(pool_B[:, None] - logits_BK) * also_positive_BK
            loss_B = (loss_B + more_BK.sum(1)) / (1 + also_positive_BK.sum(1))
    with torch.no_grad():
        hit_B = positive_B > negatives_BM.amax(1)
        count_B = mask_BM.sum(1)
    return Contrast(loss_B, hit_B, count_B)
