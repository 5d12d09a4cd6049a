"""Settings of a training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.settings.fields import STRICT, Decay, Weight, absolute_path
from sr_model import losses, perceptual


class Perceptual(BaseModel):
    """The term "perceptual" of the objective: a distance between VGG features."""

    model_config = STRICT

    network: Literal["vgg16", "vgg19"] = "vgg19"
    """Which VGG."""
    layers: dict[str, Weight] = {"conv2_2": 1.0}
    """Weight of each layer: "conv5_4" is before the activation, "relu5_4" after it. The paper's VGG22 and VGG54 are
    relu2_2 and relu5_4; before the activation, features say more."""
    distance: Literal["mse", "l1"] = "mse"
    """Between features, the mean over a layer."""
    scale: float = Field(1.0, gt=0)
    """Factor on features; 1/12.75 = 0.0784 for the published weights in the paper."""
    start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps after which the term joins the others, which train alone until then; Ledig et al. 2017 let
    networks learn pixels first, too."""
    weights: str = "torchvision"
    """Path or URL of a .safetensors or .pth file with torchvision's names (features.N.weight); "torchvision" downloads
    the published file, 550 MB."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return value if value == "torchvision" else absolute_path(value)

    @model_validator(mode="after")
    def _known_layers(self) -> Perceptual:
        if not self.layers:
            raise ValueError("train.perceptual.layers is empty, expected at least one layer, such as conv2_2")
        for layer in self.layers:
            perceptual.layer_index(self.network, layer)
        return self


class Train(BaseModel):
    """The training run."""

    model_config = STRICT

    length: str = "1000 steps"
    """Such as "1000 steps", "20 epochs" or "25 minutes"; minutes, validation included, are turned into steps by
    measuring a few before the start."""
    global_batch: int = Field(16, ge=1)
    """Patches an optimizer step, over all workers and micro-batches."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Largest number of patches a worker holds at once; gradients are accumulated up to the global batch. "auto" takes
    what fits four fifths of `memory_mb`, by measuring small ones before the start."""
    memory_mb: float | None = Field(None, gt=0)
    """MB a worker may use; its share of what is free on its device where not given."""
    recompute: bool = False
    """Compute the activations of a block again instead of keeping them (activation checkpointing): less memory, more
    time, the same gradients."""
    loss: dict[str, Weight] = {"mse": 1.0}
    """Weight of each term of the objective: mse, l1, charbonnier, tv, perceptual."""
    perceptual: Perceptual = Perceptual()
    """The term "perceptual"."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Adam; or Muon for the hidden 3x3 convolutions (Jordan et al. 2024) and Adam for the rest: the same PSNR in fewer
    steps."""
    lr: float = Field(4e-4, gt=0)
    """Peak learning rate, at a global batch of `lr_batch`."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How the peak learning rate grows with global_batch / lr_batch: not at all, with its square root (Krizhevsky 2014,
    arXiv:1404.5997), or in proportion (Goyal et al. 2017, arXiv:1706.02677)."""
    lr_batch: int = Field(16, ge=1)
    """Global batch that `lr` is meant for."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    stable: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, the warm-up included, after which the learning rate begins to fall."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How it falls: along half a cosine, or in proportion to the steps. "linear" with `stable` is the trapezoid, also
    called warmup-stable-decay (Hägele et al. 2024, arXiv:2405.18392)."""
    lr_final: float = Field(0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' moving average (EMA), which is what is validated and shipped. It warms up from 0.1: a
    constant 0.999 from the first step would lag by a thousand steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward and backward pass; "auto" takes bf16 where the device computes it in hardware."""
    channels_last: bool = True
    """Memory layout in which channels of a pixel lie together: what convolutions on CPU and tensor cores want."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile, which takes half a minute before the first step; "auto" takes it from 2000 steps on, where a
    compiler is at hand."""
    max_skipped: int = Field(10, ge=1)
    """Steps in a row with a non-finite loss or gradient, which are skipped, after which training stops."""
    seed: int = 0
    """Seed of initialisation, sample order and augmentation."""
    init_from: str | None = None
    """Weights to start from: a .safetensors file (path or URL) of the same network."""
    validate_every: int = Field(200, ge=1)
    """Steps between validations on the held-out images."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; those since the newest are repeated after an interruption."""
    keep: int = Field(1, ge=0)
    """Checkpoints kept beside the newest, and beside the weights that were best on the held-out images."""
    log_every: int = Field(10, ge=1)
    """Steps between records of loss, learning rate and throughput."""

    @field_validator("length")
    @classmethod
    def _amount_and_unit(cls, value: str) -> str:
        if not re.fullmatch(r"(0\.0*[1-9]\d*|[1-9]\d*(\.\d+)?) (steps|epochs|minutes)", value):
            raise ValueError('such as "1000 steps", "20 epochs" or "25 minutes"')
        return value

    @field_validator("init_from")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_path(value)

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(losses.NAMES))
        if unknown or not value:
            raise ValueError(f"terms among {sorted(losses.NAMES)}")
        return value

    @model_validator(mode="after")
    def _pixels_until_the_start(self) -> Train:
        if self.perceptual.start and "perceptual" in self.loss and set(self.loss) <= {"perceptual", "tv"}:
            raise ValueError("train.perceptual.start needs a term of pixels until then, such as l1 in train.loss")
        return self
