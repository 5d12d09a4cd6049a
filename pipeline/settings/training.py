"""Settings of a training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from pipeline.settings.fields import STRICT, Decay, MethodSettings, Weight, absolute_model, absolute_path
from pipeline.settings.methods import DEFAULT_METHOD, METHODS, has_settings
from sr_model.pretrained import Pretrained
from sr_model.terms import TERMS, TermSettings

if TYPE_CHECKING:
    Sections = BaseModel
else:
    Sections = create_model(
        "Sections",
        __config__=STRICT,
        **{
            kind.name: (kind.settings, Field(kind.settings(), description=f'Settings of the term "{kind.name}".'))
            for kind in TERMS.values()
            if kind.settings is not TermSettings
        },
        **{
            kind.name: (kind.settings, Field(kind.settings(), description=f'Settings of the method "{kind.name}".'))
            for kind in METHODS.values()
            if has_settings(kind)
        },
    )


_LONGEST = 1e12
"""Steps, epochs or minutes of a training."""


class Train(Sections):
    """The training run."""

    model_config = STRICT

    method: str = DEFAULT_METHOD
    """Training method: "supervised" minimises the objective `loss`; "gan" also trains a discriminator (SRGAN);
    "flow" trains the network "refiner", which draws images in steps."""
    length: str = "1000 steps"
    """Length of the training, such as "1000 steps", "20 epochs" or "25 minutes". Minutes include validation and are
    turned into steps before the start, by measuring a few steps."""
    global_batch: int = Field(16, ge=1)
    """Number of patches in an optimizer step, over all workers and micro-batches."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Largest number of patches that a worker holds at once; gradients are accumulated up to the global batch. "auto"
    measures small batches before the start and takes what fits four fifths of `memory_mb`."""
    memory_mb: float | None = Field(None, gt=0)
    """Memory in MB that a worker may use; by default, its share of the free memory of its device."""
    recompute: bool = False
    """Activation checkpointing: compute activations again in the backward pass instead of keeping them. It saves
    memory, takes more time and gives the same gradients."""
    loss: dict[str, Weight] = Field({"mse": 1.0}, examples=["mse=1"])
    """Weight of each term of the objective: mse, l1, charbonnier, tv, phase, perceptual."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Optimizer: "adam", or "muon", which uses Muon (Jordan et al. 2024) for the hidden 3x3 convolutions and Adam for
    all other weights. Muon reaches the same PSNR in fewer steps."""
    lr: float = Field(4e-4, gt=0)
    """Peak learning rate at a global batch of `lr_batch`."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Growth of the peak learning rate with global_batch / lr_batch: none, with the square root (Krizhevsky 2014,
    arXiv:1404.5997), or linear (Goyal et al. 2017, arXiv:1706.02677)."""
    lr_batch: int = Field(16, ge=1)
    """Global batch for which `lr` was chosen."""
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), examples=["0.9,0.999"])
    """Decay rates of Adam's first and second moments."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    stable: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, warm-up included, after which the learning rate begins to fall."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Shape of the learning rate's decay: half a cosine, or linear. "linear" with `stable` is the trapezoid, also
    called warmup-stable-decay (Hägele et al. 2024, arXiv:2405.18392)."""
    lr_final: float = Field(0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the exponential moving average (EMA) of the weights, which is validated and shipped. It warms up from
    0.1: a constant 0.999 from the first step on would lag by a thousand steps."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of the forward and backward pass. "auto" takes bf16 where the device computes it in hardware, fp16 on
    older GPUs with tensor cores such as a T4, and fp32 on all others. fp16 scales the loss dynamically. tf32 rounds the
    inputs of convolutions on GPUs from A100 on; fp32 does not. Validation and metrics are always computed in fp32."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side in memory, which speeds up convolutions on CPUs and tensor cores."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network with torch.compile, which takes half a minute before the first step. "auto" does so for 2000
    steps or more, if a compiled step works on this machine."""
    max_skipped: int = Field(10, ge=1)
    """Consecutive steps with a non-finite loss or gradient after which training stops. Such steps are skipped. Steps
    that only calibrate the loss scale of fp16 do not count."""
    seed: int = 0
    """Seed of the initial weights, the sample order and the augmentation."""
    init_from: str | None = None
    """Initial weights of the same network: a .safetensors file, the folder of a training or workflow, a bundled model,
    or models:/NAME@ALIAS or runs:/ID of MLflow."""
    validate_every: int = Field(200, ge=1)
    """Number of steps between validations on the held-out images, or a multiple of it where `validate_s` skips some."""
    validate_s: float = Field(0, ge=0)
    """Minimum seconds between validations, for GPUs whose steps take milliseconds: a validation that is due earlier is
    skipped. The last step is always validated."""
    checkpoint_every: int = Field(100, ge=1)
    """Number of steps between checkpoints, or a multiple of it where `checkpoint_s` skips some. After an interruption,
    training repeats the steps since the newest checkpoint."""
    checkpoint_s: float = Field(10, ge=0)
    """Minimum seconds between checkpoints: one that is due earlier is skipped. The last step is always saved."""
    keep_checkpoints: int = Field(1, ge=0)
    """Number of checkpoints to keep besides the newest. The weights with the best held-out score are always kept."""
    log_every: int = Field(10, ge=1)
    """Number of steps between records of loss, learning rate and throughput."""

    def term_settings(self, name: str) -> TermSettings:
        """The settings of a term of the objective; empty for a term that has none."""
        return getattr(self, name, None) or TermSettings()

    def method_settings(self) -> MethodSettings:
        """The settings of the method; empty for a method that has none, or is not known."""
        kind = METHODS.get(self.method)
        return getattr(self, self.method) if kind and has_settings(kind) else MethodSettings()

    def unused_sections(self) -> list[str]:
        """Dotted keys of the sections of terms and methods that do not take part, and of those inside the method's."""
        terms = [name for name, kind in TERMS.items() if kind.settings is not TermSettings and name not in self.loss]
        methods = [name for name, kind in METHODS.items() if has_settings(kind) and name != self.method]
        inner = [f"{self.method}.{name}" for name in self.method_settings().unused_sections]
        return [*terms, *methods, *inner]

    def term_starts(self) -> dict[str, float]:
        """Share of the steps after which each term of the objective joins the others."""
        return {name: TERMS[name].start(self.term_settings(name)) for name in self.loss}

    def pretrained(self) -> dict[str, Pretrained]:
        """The pretrained weights that the objective needs, by the name of the term."""
        needed = {name: TERMS[name].pretrained(self.term_settings(name)) for name in self.loss}
        return {name: weights for name, weights in needed.items() if weights}

    def with_pretrained(self, sources: Mapping[str, str]) -> Train:
        """A copy whose terms take their pretrained weights from other files, given by the name of the term."""
        changed = {name: self.term_settings(name).model_copy(update={"weights": url}) for name, url in sources.items()}
        return self.model_copy(update=changed)

    @field_validator("length")
    @classmethod
    def _amount_and_unit(cls, value: str) -> str:
        if not re.fullmatch(r"(0\.0*[1-9]\d*|[1-9]\d*(\.\d+)?) (steps|epochs|minutes)", value):
            raise ValueError('a number of steps, epochs or minutes, such as "1000 steps", "20 epochs" or "25 minutes"')
        if float(value.split()[0]) > _LONGEST:
            raise ValueError(f"a length of at most {_LONGEST:,.0f} steps, epochs or minutes")
        return value

    @field_validator("seed")
    @classmethod
    def _seed_of_64_bits(cls, value: int) -> int:
        if not -(2**63) <= value < 2**63:
            raise ValueError("a number from -2^63 to 2^63 - 1")
        return value

    @field_validator("init_from")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_model(value)

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(TERMS))
        if unknown or not value:
            raise ValueError(f"weights of terms among {', '.join(TERMS)}, such as mse=1")
        return value

    @model_validator(mode="after")
    def _absolute_weights(self) -> Train:
        for name in TERMS:
            settings = self.term_settings(name)
            needed = TERMS[name].pretrained(settings)
            if needed and needed.source != "torchvision":
                try:
                    local = settings.model_copy(update={"weights": absolute_path(needed.source)})
                except ValueError as error:
                    raise ValueError(f"{needed.setting} is {needed.source!r}, expected {error}") from None
                object.__setattr__(self, name, local)  # the model is frozen once it is validated
        return self

    @model_validator(mode="after")
    def _pixels_until_the_start(self) -> Train:
        late = [name for name, start in self.term_starts().items() if start]
        if late and not any(TERMS[name].compares_pixels for name in self.loss if name not in late):
            raise ValueError(
                f"train.{late[0]}.start needs a term that compares pixels until then, such as l1 in train.loss"
            )
        return self
