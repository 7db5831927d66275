"""The dials of the method: frozen, keyword-only dataclasses with a sentence under each field.

Defaults are the paper's sizes, with our choices where it is silent (docs/deviations.md); presets scale them together.
`from_dict` (`dri_iqa/strict.py`) turns plain data (composed YAML, a bundle's JSON) into these types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dri_iqa.strict import ConfigError, StrictConfig, from_dict, known_keys, nearest, to_dict

__all__ = [
    "MOST_HELD_OUT",
    "Augment",
    "BackboneConfig",
    "CompanionConfig",
    "ConfigError",
    "DREConfig",
    "DegradeConfig",
    "MoCoConfig",
    "ModelConfig",
    "OptimConfig",
    "PerceptualConfig",
    "PredictorConfig",
    "ProbeConfig",
    "RAMConfig",
    "Stage1Config",
    "Stage2Config",
    "StrictConfig",
    "from_dict",
    "known_keys",
    "nearest",
    "to_dict",
]

Augment = Literal["flip", "dihedral", "dihedral_channels"]
"""What is done to a labelled crop, and to its reference alike."""


@dataclass(frozen=True, kw_only=True)
class DegradeConfig(StrictConfig):
    """The degradation chain (paper 3.1, Eq. 1)."""

    set: Literal["default", "kadid25", "qpt", "realesrgan"] = "default"
    """Which operators and groups a chain draws from."""
    levels: Literal["default", "kadis", "arniqa"] = "default"
    """Which table gives the parameter of each level."""
    n_max: int = 6
    """Groups of a random permutation that a chain may use, i.e. the longest chain."""
    p_keep: float | dict[str, float] = 0.5
    """Probability that a slot is executed: one number, or one per group (the p_i of Eq. 1)."""
    min_ops: int = 0
    """Shortest chain; 0 lets pristine views through."""
    level_dist: Literal["half_normal", "uniform"] = "half_normal"
    """Distribution of the level over 1..5."""
    level_sigma: float = 2.5
    """Standard deviation of the half-normal level distribution."""
    speckle: Literal["gaussian", "uniform"] = "gaussian"
    """Distribution of multiplicative noise; `uniform` is MATLAB's."""
    n_scope: Literal["sample", "batch"] = "sample"
    """Whether the chain length is drawn per view or once per batch."""
    scope: Literal["region", "image"] = "region"
    """Degrade a random region of the clean image (cheap) or the whole image (the paper's literal order)."""
    region: int = 512
    """Side of that region in pixels; smaller images are used whole."""
    crop_overlap: tuple[float, float] | None = None
    """Optional range of the overlap (share of the crop's area) between two crops of one view."""


@dataclass(frozen=True, kw_only=True)
class DREConfig(StrictConfig):
    """The Dual-Representation Extractor's encoder and heads (paper 3.1, Eq. 4-5)."""

    width: int = 64
    """Channels of the first layer; each further layer doubles them."""
    strides: tuple[int, int, int, int, int] = (1, 2, 2, 2, 2)
    """Stride of each of the five layers."""
    norm: Literal["bn", "gn", "syncbn"] = "bn"
    """Normalisation: BatchNorm, GroupNorm or synchronised BatchNorm."""
    proj: Literal["mlp", "none"] = "mlp"
    """Projection head of each half before the contrastive loss, or none (pooled maps)."""
    proj_dim: int = 256
    """Size of the projected vectors."""


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(StrictConfig):
    """Momentum contrast with masked negatives (paper 3.2, Fig. 3)."""

    queue_size: int = 8192
    """Keys held per half; a multiple of twice the global batch."""
    momentum: float = 0.999
    """EMA factor of the key encoder."""
    temperature: float = 0.07
    """Temperature of the quality half, and of the degradation half unless `temperature_deg` is set."""
    temperature_deg: float | None = None
    """Temperature of the degradation half where it differs."""
    w_deg: float = 1.0
    """Weight of the degradation half's loss."""
    w_qual: float = 1.0
    """Weight of the quality half's loss."""
    deg_exclude_same_types: bool = True
    """A key with the same set of degradation types is no degradation negative."""
    in_batch_negatives: bool = True
    """Keys of the current batch are negatives too."""
    deg_positive: Literal["same_image", "cross_content"] = "same_image"
    """The degradation half's positive: the image's own second crop, or also other images under the same recipe
    (neighbours in a batch then share one)."""
    anchors: Literal["x11", "symmetric"] = "x11"
    """Anchor x11 only, or x21 as well."""
    queue_init: Literal["masked", "random"] = "masked"
    """Unfilled slots are masked out, or filled with random unit vectors as MoCo does."""
    shuffle_bn: bool = True
    """Shuffle key crops so that BatchNorm statistics do not give the positive away (MoCo)."""
    reset_queue: bool = False
    """Empty the queues when stage 2 starts (needed when image ids change meaning)."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(StrictConfig):
    """The image-feature backbone of the predictor, any timm model with intermediate features (MANIQA)."""

    name: str = "vit_base_patch8_224.augreg_in21k_ft_in1k"
    """timm model name, with its tag pinned."""
    weights: str = "pretrained"
    """`pretrained` (the hub), `none` (random), or the path or URI of a safetensors file with timm's keys."""
    blocks: tuple[int, ...] = (6, 7, 8, 9)
    """0-based indices of the blocks (ViT) or feature levels (convolutional) whose outputs are concatenated."""
    kwargs: dict[str, int] = field(default_factory=dict)
    """Architecture arguments that scale the timm model, e.g. {embed_dim: 48, depth: 4, num_heads: 3}."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(StrictConfig):
    """Score predictor: fusion, transposed guidance, Swin, weighted head (paper 3.1, Fig. 4)."""

    token: int = 8
    """Pixels of the crop per token of the grid, along each side. 8 is the ViT's patch; 16 or 32 suit a convolutional
    backbone and make attention between channels, whose width is the number of tokens, 16 or 256 times cheaper."""
    embed_dim: int = 768
    """Channels after the first stage's 1x1 convolution; half of it after the second."""
    num_tgb: int = 2
    """Transposed Guidance Blocks per stage."""
    tgb_layout: Literal["all", "first"] = "all"
    """Guide every block of a stage, or only its first (the others become plain TABs)."""
    cfb_levels: tuple[int, ...] = (4, 5)
    """1-based DRE layers whose lower halves the Convolutional Fusion Block fuses."""
    swin_depths: tuple[int, ...] = (2, 2)
    """Blocks of each Swin layer."""
    swin_heads: tuple[int, ...] = (4, 4)
    """Heads of each Swin layer."""
    window: int = 4
    """Swin window in tokens."""
    swin_mlp: int = 768
    """Hidden width of the Swin MLP (a width, not a ratio)."""
    swin_scale: float = 0.8
    """Residual scale of each Swin layer."""
    dropout: float = 0.1
    """Dropout of TGB, Swin input and head."""
    drop_path: float = 0.1
    """Largest stochastic-depth rate, growing linearly over the Swin blocks."""
    score_act: Literal["relu", "none"] = "relu"
    """Final activation of the per-token score."""
    maniqa_compat: bool = False
    """Reproduce MANIQA's transpose-reshape of the attention output (needed to load its official weights)."""
    readout: Literal["none", "linear"] = "none"
    """`linear` adds to the weighted head's score a linear function of the pooled maps of backbone and extractor, which
    stage 2 fits in closed form before its first step. Not in the paper."""
    baseline: Literal["none", "maniqa"] = "none"
    """`maniqa`: plain TABs and no extractor, the yardstick of the ablation."""


@dataclass(frozen=True, kw_only=True)
class RAMConfig(StrictConfig):
    """Restoration-Assistance Module: guided NAFNet (paper 3.3, Eq. 2)."""

    width: int = 32
    """Channels at full resolution; equals half the DRE's width so that guidance needs no resizing."""
    size: Literal["sidd", "gopro", "light", "tiny"] = "sidd"
    """Number of NAFBlocks per level."""
    guidance: Literal["sft", "add", "concat", "da", "none"] = "sft"
    """How the degradation representation enters at nine points."""
    guide_channels: Literal["upper", "full"] = "upper"
    """Guide with the upper halves (Eq. 2) or with whole DRE layers."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(StrictConfig):
    """Perceptual term of the restoration loss (paper Eq. 3)."""

    backbone: Literal["vgg19", "squeezenet1_1", "none"] = "vgg19"
    """Feature network, frozen."""
    weights: str = "pretrained"
    """`pretrained` (the hub), the path or URI of a safetensors file with torchvision's keys, or `random`."""
    imagenet_norm: bool = True
    """Normalise its input with ImageNet's mean and deviation."""


MOST_REMEMBERED = 16_384
"""Pictures of a companion: fitting solves as many equations (8 GB of memory, an hour), a bundle holds as many rows."""


@dataclass(frozen=True, kw_only=True)
class CompanionConfig(StrictConfig):
    """A kernel regression beside the trained network, on maps of the backbone's first weights. Not in the paper."""

    images: int = 0
    """Most training images that it is fitted on and keeps statistics of (in a bundle, how many it has); 0: none."""
    blocks: tuple[int, ...] = ()
    """0-based blocks of the backbone whose maps it pools; () takes `backbone.blocks`."""
    gamma: float = 0.5
    """Width of the Gaussian kernel: exp(-gamma d^2), d^2 the mean over standardised statistics."""
    weight: float = 0.5
    """Its share in the score; the network has the rest."""
    order_series: int = 0
    """Clean photographs degraded by one operator in steps, over which its scores should fall; 0 leaves this out."""
    order_weight: float = 1.0
    """Weight of what lacks in order beside the errors of the scores, mean square against mean square."""
    order_margin: float = 0.05
    """By how much of the normalised score a level should lie above the next."""

    def __post_init__(self) -> None:
        if min(self.images, self.order_series) < 0 or self.landmarks > MOST_REMEMBERED:
            raise ConfigError(
                f"companion: got images={self.images} and order_series={self.order_series}; "
                f"expected none below 0, and {MOST_REMEMBERED} together at most"
            )
        if self.gamma <= 0 or not 0 <= self.weight <= 1:
            raise ConfigError(
                f"companion: got gamma={self.gamma}, weight={self.weight}; expected gamma > 0 and a weight in [0, 1]"
            )
        if self.order_weight < 0 or self.order_margin < 0:
            raise ConfigError(
                f"companion: got order_weight={self.order_weight}, order_margin={self.order_margin}, below 0"
            )

    @property
    def landmarks(self) -> int:
        """Pictures whose statistics it keeps; none without images."""
        return self.images + self.order_series if self.images else 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StrictConfig):
    """Everything that decides the shapes of the whole model; stored in every bundle."""

    crop: int = 224
    """Side of the crops the model is trained and tested on, in pixels."""
    dre: DREConfig = field(default_factory=DREConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    ram: RAMConfig = field(default_factory=RAMConfig)
    companion: CompanionConfig = field(default_factory=CompanionConfig)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(StrictConfig):
    """Adam with cosine annealing per epoch (paper 4.2)."""

    batch_size: int = 64
    """Global batch over all workers."""
    epochs: int = 300
    """Passes over the training set."""
    lr: float = 2e-4
    """Learning rate of parameters without a rate of their own."""
    lr_scale: float = 1.0
    """Scales the rates of all parameter groups together; what the search tunes."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's moment factors."""
    weight_decay: float = 1e-8
    """L2 penalty inside Adam."""
    eta_min: float = 1e-6
    """Final rate of the cosine."""
    t_max: int | None = None
    """Epochs until the cosine reaches eta_min; None means `epochs`."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up before the cosine."""
    clip_norm: float | None = None
    """Largest global gradient norm; None leaves gradients alone."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints inside an epoch; None saves at the end of each epoch."""
    accumulate: int = 1
    """Micro-batches that a step's batch is split into; the gradient is that of the whole batch."""
    ema: float | None = None
    """Factor of a moving average of the trained weights, which is then validated and exported; None keeps the last."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward."""
    channels_last: bool = False
    """Keep images and convolution weights channel by channel of a pixel, as tensor cores want them."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    log_steps: int | None = 50
    """Steps between reports of throughput, waiting for data and the loss; None reports at ends of epochs only."""
    preemption_steps: int = 10
    """Steps between looks for the notice that a node is about to be taken away."""
    max_non_finite: int = 10
    """Steps with a non-finite loss that are skipped before the run stops."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(StrictConfig):
    """Linear probes on the frozen halves during stage 1: degradation type, level and content."""

    epochs: int | None = 10
    """Epochs between probes; the last epoch has one too. None never probes."""
    images: int = 48
    """Clean images, each seen under every single degradation; a third of them is what the probes are tested on."""


MOST_HELD_OUT = 1024
"""Photographs that are held out at most: no probe looks at more, and each is looked up by itself."""


@dataclass(frozen=True, kw_only=True)
class Stage1Config(StrictConfig):
    """Contrastive pre-training of the extractor (paper 3.2)."""

    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    moco: MoCoConfig = field(default_factory=MoCoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    n_clean: int | None = 3392
    """Clean images used; capped by what exists; None takes all."""
    held_out: float = 0.0
    """Share of the clean images (whole photographs, `MOST_HELD_OUT` at most) that stage 1 never trains on; probes are
    tested on them."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    halves: Literal["dual", "quality"] = "dual"
    """`quality` trains the lower half only (the paper's V1)."""


@dataclass(frozen=True, kw_only=True)
class Stage2Config(StrictConfig):
    """Joint training of predictor, restoration and extractor (paper 3.1, 3.3)."""

    variant: Literal["v1", "v2", "v3", "proposed", "maniqa"] = "proposed"
    """Which of the paper's variants (Table 3), or the MANIQA baseline."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(batch_size=16, epochs=200, t_max=300)
    )
    max_images: int | None = None
    """Training images used, a seeded choice; None takes all. A search trains its trials on fewer."""
    lr_backbone: float = 1e-5
    """Learning rate of the backbone."""
    lr_dre: float = 1e-5
    """Learning rate of the trainable extractor."""
    lr_predictor: float = 1e-4
    """Learning rate of fusion, guidance, Swin and head."""
    lr_readout: float = 3e-5
    """Learning rate of the linear readout (`predictor.readout=linear`), which starts where regression put it."""
    lr_ram: float = 2e-4
    """Learning rate of the restoration network."""
    freeze_backbone: bool = False
    """Keep the backbone as it was loaded."""
    freeze_bn_stats: bool = True
    """Use running BatchNorm statistics of extractor and loaded backbone in stage 2 (affine parameters still train)."""
    w_mos: float = 1.0
    """Weight of the score loss."""
    w_res: float = 1.0
    """Weight of the restoration loss (Eq. 3)."""
    w_rs: float = 1.0
    """Weight of the representation loss (Eq. 4-6)."""
    w_nce: float = 0.1
    """Weight of the contrastive losses carried on from stage 1."""
    lambda_perceptual: float = 0.01
    """The lambda of Eq. 3: weight of the perceptual term inside the restoration loss."""
    l2_kind: Literal["mse", "norm", "rmse", "psnr"] = "mse"
    """How the pixel term's L2 is reduced; `psnr` is the logarithm of the mse, which NAFNet is trained with."""
    score_loss: Literal["mse", "mse+plcc", "mse+rank"] = "mse"
    """Score regression loss, optionally with a correlation or ranking term."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    ref_source: Literal["auto", "dataset", "aux", "self", "none"] = "auto"
    """Where restoration targets come from (paper Eq. 3)."""
    aux_batch: int = 16
    """Clean regions drawn per step for the auxiliary stream."""
    order_batch: int = 0
    """Clean photographs a step that are scored at two neighbouring levels of one degradation, so that scores fall with
    it; 0 leaves this out, as the paper does."""
    w_order: float = 0.1
    """Weight of the loss of such pairs."""
    order_margin: float = 0.02
    """By how much of the normalised score a level should lie above the next."""
    nce_source: Literal["auto", "iqa", "aux", "iqa_pair"] = "auto"
    """Whose crops carry the contrastive losses in stage 2."""
    augment: Augment = "flip"
    """How crops of labelled images, and auxiliary clean photographs before they are degraded, are turned: mirrored at
    random (paper 4.2), or by quarter turns as well, so that few scenes teach restoration for longer. Photographs are
    judged upright: people may score a turned one otherwise. `dihedral_channels` also exchanges the colour channels, so
    that restoration meets colours that no training scene has: for scores that treat channels alike, as the sample's
    SSIM does and people do not."""
    val_crops: int = 5
    """Crops per validation image at the end of an epoch."""
    select: Literal["last", "val"] = "last"
    """Which epoch's weights are kept: the last one's, or those with the best validation SROCC. Never by test images."""
    probe_images: int = 48
    """Clean images for the probe of the degradation type that is fitted on the finished extractor and kept in the
    bundle; a third of them is what its accuracy is measured on. 0 keeps none."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass to save memory."""
