"""Stage 2: predictor, restoration network and extractor train together (paper 3.1-3.4).

L = w_mos MSE + w_res (pixel + lambda perceptual) + w_rs representation
  + w_nce (w_deg L_deg + w_qual L_qual) [+ w_order order of levels, where it is asked for]

Labelled crops and, where the plan asks for them, auxiliary crops go through the extractor in one
pass; its lower halves guide the predictor, its upper halves the restoration network.

Shapes: B labelled images, A auxiliary images and P pairs of levels of this rank, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dri_iqa.config import ModelConfig, Stage1Config, Stage2Config
from dri_iqa.losses.restoration import pixel_loss, psnr, representation_loss
from dri_iqa.losses.score import order_loss, score_loss
from dri_iqa.models.checks import check_restoration
from dri_iqa.models.dre import DREEncoder, ProjectionHeads
from dri_iqa.models.dri_iqa import (
    DRIIQA,
    EXTRACTOR,
    PERCEPTUAL,
    RESTORATION,
    build_model,
    evaluating,
)
from dri_iqa.models.nafnet import PADDING, NAFNet
from dri_iqa.models.parallel import average_running_statistics, freeze_running_statistics
from dri_iqa.models.perceptual import PerceptualDistance
from dri_iqa.models.readout import pooled_statistics
from dri_iqa.models.weights import RANDOM, seeded
from dri_iqa.models.windows import in_windows
from dri_iqa.plan import Plan, Streams, model_of_variant, stage2_plan
from dri_iqa.stages.base import Batch, Metrics, Stage, to_float
from dri_iqa.stages.handover import load_stage1
from dri_iqa.stages.momentum import MomentumContrast

# number of the projection heads for their initial weights, beside the parts in models/dri_iqa.py
_HEADS = 5


class TrainStage(Stage):
    """The inference model with everything that trains it.

    Args:
        model: sizes; `variant = maniqa` turns its predictor into the baseline, see `model_config`.
        stage1: the contrast that is carried on.
        stage2: variant, weights, rates, sources.
        seed: of the run.
        has_references: whether the data set has a pristine reference for every image.
        global_batch: labelled images of all ranks per optimisation step.
        pretrained: state dict of a `PretrainStage`, or None to start from random weights.

    Raises:
        ConfigError: sizes, sources or stage-1 weights that do not fit.
    """

    def __init__(
        self,
        model: ModelConfig,
        stage1: Stage1Config,
        stage2: Stage2Config,
        *,
        seed: int,
        has_references: bool,
        global_batch: int,
        pretrained: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__()
        self.plan: Plan = stage2_plan(stage2, has_references)
        self.needs: Streams = self.plan.streams
        self.config, self.stage1_config = stage2, stage1
        self.model_config = model_of_variant(model, stage2)
        self.model: DRIIQA = build_model(self.model_config, seed=seed)
        self.heads: ProjectionHeads | None = None
        self.contrast: MomentumContrast | None = None
        self.frozen: DREEncoder | None = None
        self.ram: NAFNet | None = None
        self.perceptual: PerceptualDistance | None = None
        if self.plan.extractor:
            self._build_extractor(stage1, seed, global_batch, pretrained)
        if self.plan.restoration:
            check_restoration(self.model_config)
            with seeded(seed, RESTORATION):
                self.ram = NAFNet(model.ram, self.encoder.widths)
        if self.plan.perceptual:
            self.perceptual = PerceptualDistance(stage2.perceptual, seed=seed, part=PERCEPTUAL)
        if stage2.freeze_backbone:
            self.model.backbone.requires_grad_(False)
        if stage2.grad_checkpoint:
            self._checkpoint_activations()
        self.train()

    @property
    def encoder(self) -> DREEncoder:
        """The extractor that trains; every variant but the baseline has one."""
        assert self.model.dre is not None
        return self.model.dre

    def _build_extractor(
        self,
        stage1: Stage1Config,
        seed: int,
        global_batch: int,
        pretrained: Mapping[str, Tensor] | None,
    ) -> None:
        plan, dre = self.plan, self.model_config.dre
        if plan.halves:
            batch = global_batch if plan.streams.views else self.config.aux_batch
            with seeded(seed, _HEADS):
                self.heads = ProjectionHeads(dre)
                self.contrast = MomentumContrast(
                    dre, stage1.moco, plan.halves, seed=seed, batch=batch
                )
            self.heads.up.requires_grad_("up" in plan.halves)
        if pretrained is not None:
            load_stage1(self.encoder, self.heads, self.contrast, pretrained)
        elif self.contrast is not None and self.heads is not None:
            self.contrast.copy_query(self.encoder, self.heads)
        if self.contrast is not None and (
            stage1.moco.reset_queue or plan.streams.views or plan.reference == "self"
        ):
            # stage 1 numbered the clean images; here numbers mean references or labelled images
            self.contrast.queue.clear()
        if plan.representation:
            with seeded(seed, EXTRACTOR):
                self.frozen = DREEncoder(dre)
            self.frozen.load_state_dict(self.encoder.state_dict())
            self.frozen.requires_grad_(False)

    def _checkpoint_activations(self) -> None:
        self.model.backbone.set_checkpointing()
        for part in (self.model.dre, self.ram):
            if part is not None:
                part.checkpointing = True

    def train(self, mode: bool = True) -> TrainStage:
        """As usual, but frozen parts stay in evaluation mode, and so do frozen statistics."""
        super().train(mode)
        for part in (self.frozen, self.perceptual):
            if part is not None:
                part.eval()
        if self.config.freeze_backbone:
            self.model.backbone.eval()
        if self.config.freeze_bn_stats:
            frozen: list[nn.Module | None] = [self.model.dre, self.contrast]
            if self.model_config.backbone.weights not in RANDOM:
                frozen.append(self.model.backbone)
            for part in frozen:
                freeze_running_statistics(part)
        return self

    def begin(
        self, batches: Callable[[], Iterable[Batch]], add: Callable[[Tensor], object]
    ) -> str | None:
        """Fits the readout (`predictor.readout=linear`) on the first epoch's crops as they are."""
        readout = self.model.readout
        if readout is None:
            return None
        images = 0

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal images
            for batch in batches():
                image_BCHW = to_float(batch["image_BCHW"])
                features = self.model.dre(image_BCHW) if self.model.dre is not None else ()
                maps, quality = self.model.read(image_BCHW, features)
                images += len(image_BCHW)
                yield pooled_statistics([*maps, *quality]), batch["score_B"].float()

        with evaluating(self), torch.no_grad():
            penalty = readout.fit(rows(), add)
        return f"the readout is fitted on {images} crops a rank (ridge, penalty {penalty:.3g})"

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Weighted sum of the active terms, and every term unweighted.

        Args:
            batch: `image_BCHW` uint8 and `score_B` float in [0, 1]; with `needs.reference`
                `reference_BCHW`; with `needs.views` `views_B4CHW` (its first crop is the image),
                `type_mask_B2`, `recipe_hash_B2`, `image_id_B`, `has_sibling_B`; with `needs.aux`
                `aux_crops_A4CHW`, `aux_clean_ACHW`, `aux_type_mask_A2`, `aux_recipe_hash_A2`,
                `aux_image_id_A`; with `needs.order` `order_crops_P2CHW`.
        """
        terms, metrics = self.terms(batch)
        weights = self.term_weights()
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        metrics |= {f"loss_{name}": term.detach() for name, term in terms.items()}
        return loss, {"loss": loss.detach(), **metrics}

    def term_weights(self) -> dict[str, float]:
        """Factor of every active term in the total."""
        config, moco = self.config, self.stage1_config.moco
        weights = {
            "mos": config.w_mos,
            "order": config.w_order,
            "pixel": config.w_res,
            "perceptual": config.w_res * config.lambda_perceptual,
            "representation": config.w_rs,
            "deg": config.w_nce * moco.w_deg,
            "qual": config.w_nce * moco.w_qual,
        }
        return {name: weights[name] for name in self.plan.terms}

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Metrics]:
        """Every active term with its graph, unweighted, and metrics; fills the queue."""
        image_BCHW = to_float(batch["image_BCHW"])
        labelled, extra, score_B, score_P2 = self._scored(batch, image_BCHW)
        terms = {"mos": score_loss(score_B, batch["score_B"], self.config.score_loss)}
        metrics: Metrics = {}
        if score_P2 is not None:
            terms["order"] = order_loss(score_P2, self.config.order_margin)
            metrics["order_share"] = (score_P2[:, 0] > score_P2[:, 1]).float().mean()
        if self.ram is not None:
            restoration, more = self._restoration(batch, image_BCHW, labelled, extra)
            terms |= restoration
            metrics |= more
        if self.contrast is not None and self.heads is not None:
            losses, more = self._contrast(batch, labelled, extra)
            terms |= losses
            metrics |= more
        return {name: terms[name] for name in self.plan.terms}, metrics

    def _scored(
        self, batch: Batch, image_BCHW: Tensor
    ) -> tuple[Sequence[Tensor], dict[str, Sequence[Tensor]], Tensor, Tensor | None]:
        """`_features`, the labelled crops' scores, and those of pairs of levels, in one pass."""
        if not self.needs.order:
            labelled, extra = self._features(batch, image_BCHW)
            return labelled, extra, self.model.score(image_BCHW, labelled), None
        images = len(image_BCHW)
        pairs = to_float(batch["order_crops_P2CHW"].flatten(0, 1))
        scored = torch.cat((image_BCHW, pairs))
        features, extra = self._features(batch, scored)
        scores = self.model.score(scored, features)
        labelled = [layer[:images] for layer in features]
        return labelled, extra, scores[:images], scores[images:].unflatten(0, (-1, 2))

    def _features(
        self, batch: Batch, image_BCHW: Tensor
    ) -> tuple[Sequence[Tensor], dict[str, Sequence[Tensor]]]:
        """The extractor's maps of the crops to be scored, and of further crops by name, in one pass."""
        if self.model.dre is None:
            return (), {}
        inputs = {"image": image_BCHW}
        if self.needs.aux:
            inputs["aux"] = to_float(batch["aux_crops_A4CHW"][:, 0])
        if self.contrast is not None and len(self.contrast.anchor_crops) == 2:
            views = batch["views_B4CHW" if self.needs.views else "aux_crops_A4CHW"]
            inputs["x21"] = to_float(views[:, 2])
        maps = self.model.dre(torch.cat(list(inputs.values())) if len(inputs) > 1 else image_BCHW)
        sizes = [part.shape[0] for part in inputs.values()]
        parts = zip(*(layer.split(sizes) for layer in maps), strict=True)
        by_name: dict[str, Sequence[Tensor]] = dict(zip(inputs, parts, strict=True))
        return by_name.pop("image"), by_name

    def _restoration(
        self,
        batch: Batch,
        image_BCHW: Tensor,
        labelled: Sequence[Tensor],
        extra: dict[str, Sequence[Tensor]],
    ) -> tuple[dict[str, Tensor], Metrics]:
        assert self.ram is not None
        if self.plan.reference == "dataset":
            degraded, features, clean = image_BCHW, labelled, batch["reference_BCHW"]
        else:
            degraded = to_float(batch["aux_crops_A4CHW"][:, 0])
            features, clean = extra["aux"], batch["aux_clean_ACHW"]
        reference = to_float(clean)
        restored = self.ram(degraded, features).float()
        terms: dict[str, Tensor] = {}
        if self.plan.pixel:
            terms["pixel"] = pixel_loss(restored, reference, self.config.l2_kind)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(restored, reference)
        if self.frozen is not None:
            terms["representation"] = representation_loss(self.frozen, restored, reference)
        with torch.no_grad():
            metrics = {
                "psnr_restored": psnr(restored, reference),
                "psnr_input": psnr(degraded, reference),
            }
        return terms, metrics

    def _contrast(
        self, batch: Batch, labelled: Sequence[Tensor], extra: dict[str, Sequence[Tensor]]
    ) -> tuple[dict[str, Tensor], Metrics]:
        assert self.contrast is not None
        anchors = [labelled[-1] if self.needs.views else extra["aux"][-1]]
        if "x21" in extra:
            anchors.append(extra["x21"][-1])
        query = torch.cat(anchors) if len(anchors) > 1 else anchors[0]
        keys, _, *meta = self._contrast_names()
        if keys not in batch:
            batch = self.prepare(batch)
        return self.contrast(query, self.heads, *(batch[name] for name in (keys, *meta)))

    def prepare(self, batch: Batch) -> Batch:
        """Adds the keys of the contrastive losses, and fills the queues with them."""
        if self.contrast is None:
            return batch
        keys, *names = self._contrast_names()
        return batch | {keys: self.contrast.enqueue(*(batch[name] for name in names))}

    def _contrast_names(self) -> tuple[str, ...]:
        """Entries of a batch that the contrast reads: keys, crops, and what the masks compare."""
        if self.needs.views:
            names = ("views_B4CHW", "type_mask_B2", "recipe_hash_B2", "image_id_B", "has_sibling_B")
            return ("keys_BPD", *names)
        names = ("aux_crops_A4CHW", "aux_type_mask_A2", "aux_recipe_hash_A2", "aux_image_id_A")
        return ("aux_keys_APD", *names)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups `backbone`, `dre` (extractor and heads), `predictor`, `readout` and `ram`, as far as
        they train.
        """
        config = self.config
        parts: list[tuple[str, list[nn.Module | None], float]] = [
            ("backbone", [self.model.backbone], config.lr_backbone),
            ("dre", [self.model.dre, self.heads], config.lr_dre),
            ("predictor", [self.model.predictor], config.lr_predictor),
            ("readout", [self.model.readout], config.lr_readout),
            ("ram", [self.ram], config.lr_ram),
        ]
        groups: list[dict[str, Any]] = []
        for name, modules, rate in parts:
            params = [
                p
                for module in modules
                if module is not None
                for p in module.parameters()
                if p.requires_grad
            ]
            if params:
                groups.append({"name": name, "params": params, "lr": rate})
        return groups

    def after_step(self) -> None:
        """The key encoder follows; ranks agree on BatchNorm's running statistics."""
        if self.contrast is not None and self.heads is not None:
            self.contrast.follow(self.encoder, self.heads)
        average_running_statistics(self)

    def networks(self) -> list[nn.Module]:
        """Extractor, backbone, predictor and restoration network, as far as there are."""
        parts = (self.model.dre, self.model.backbone, self.model.predictor, self.ram)
        return [part for part in parts if part is not None]

    def inference_model(self) -> DRIIQA:
        """The part that a bundle holds; shares its weights with the stage."""
        return self.model

    def restore(self, image_BCHW: Tensor) -> Tensor:
        """Restored RGB in [0, 1] of images of any size in [0, 1], by windows of a crop's size; no gradient.

        Raises:
            ValueError: a variant without restoration.
        """
        if (ram := self.ram) is None:
            raise ValueError(f"variant {self.config.variant} has no restoration network")
        with evaluating(self), torch.no_grad():
            return in_windows(
                lambda window_BCHW: ram(window_BCHW, self.encoder(window_BCHW)).float().clamp(0, 1),
                image_BCHW,
                self.model_config.crop,
                multiple=PADDING,
            )

    def gradient_norms(self, batch: Batch) -> dict[str, Tensor]:
        """L2 norm of every term's own gradient on the extractor, `grad_dre_` + term; leaves all
        state as it was.

        One backward pass a term: for an occasional look, not for every step. With several ranks all
        must call it.
        """
        if self.model.dre is None:
            return {}
        params = [p for p in self.model.dre.parameters() if p.requires_grad]
        saved = {name: buffer.clone() for name, buffer in self.named_buffers()}
        norms: dict[str, Tensor] = {}
        devices = [params[0].device] if params[0].is_cuda else []
        with torch.random.fork_rng(devices=devices):
            terms, _ = self.terms(batch)
            for name, term in terms.items():
                grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
                norms[f"grad_dre_{name}"] = torch.stack(
                    [grad.float().norm() for grad in grads if grad is not None]
                    or [term.new_zeros(())]
                ).norm()
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                buffer.copy_(saved[name])
        return norms
