"""The arguments of every section of the benchmark: its recorder, its device, and the size of its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.results import Recorder
from benchmarks.measuring import random_batch
from benchmarks.train_step import SRResNetAsDrawn
from pipeline.data.reader import Batch
from pipeline.networks.devices import has_bf16
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks


@dataclass(frozen=True)
class Size:
    """The amounts of work of all sections."""

    channels: int
    blocks: int
    crop: int
    """Side of an HR patch in pixels."""
    batches: tuple[int, ...]
    """Batches whose steps are timed."""
    main_batch: int
    """The one that is measured in more ways."""
    rounds: int
    """Turns of each variant."""
    steps: int
    """Steps of a turn."""
    copied_mb: int
    """Size of the tensor that is copied to measure bandwidth."""
    matrix: int
    """Side of the matrices that are multiplied."""
    patches: int
    """Patches whose gradients are compared."""
    memory_batches: tuple[int, ...]
    """Global batches whose memory is compared."""
    plain_batches: tuple[int, ...]
    """Batches that the plain loop holds at once."""
    read_steps: int
    """Steps that the reader reads or feeds in a turn."""
    length: str
    """Length of the training that is killed and resumed."""
    compared_steps: int
    """Steps of each training whose precisions are compared."""
    seeds: int
    """Trainings in each precision."""


FULL = Size(
    channels=64, blocks=16, crop=96, batches=(16, 64, 256), main_batch=64, rounds=5, steps=20, copied_mb=1024,
    matrix=8192, patches=8, memory_batches=(2, 16, 64, 256, 1024, 4096), plain_batches=(16, 64, 256, 1024, 4096),
    read_steps=200, length="3 minutes", compared_steps=4000, seeds=3,
)  # fmt: skip
"""The whole work, for a GPU."""

SMALL = Size(
    channels=8, blocks=1, crop=32, batches=(2, 4), main_batch=4, rounds=2, steps=2, copied_mb=8, matrix=128, patches=1,
    memory_batches=(2, 4, 16), plain_batches=(2, 4), read_steps=4, length="600 steps", compared_steps=10, seeds=1,
)  # fmt: skip
"""Every step of the way in small, for a CPU."""

HALVES: tuple[Precision, ...] = ("bf16", "fp16")
"""The precisions of 16 bits."""

MICRO_BATCH = 2
"""Micro-batch of the comparison of memory; the smallest global batch has one of it."""


@dataclass(frozen=True)
class Job:
    """The work of one section."""

    recorder: Recorder
    size: Size
    device: torch.device
    work: Path
    """Folder for patch sets and trainings, which all sections of a run share."""
    source: str = "builtin"
    """Training images, as the setting `source` names them."""
    set5: str | None = None
    """Folder of Set5."""

    @property
    def ranks(self) -> Ranks:
        """This process as the only rank."""
        return Ranks(self.device)

    @property
    def precisions(self) -> list[Precision]:
        """The precisions that the device computes in hardware; all of them on a CPU, which emulates some."""
        known: list[Precision] = ["fp32", "tf32", "bf16", "fp16"]
        return [p for p in known if p in ("fp32", "fp16") or self.half == "bf16"]

    @property
    def half(self) -> Precision:
        """The precision of 16 bits that trainings use by default: bf16, or fp16 on GPUs without it."""
        return "bf16" if self.device.type == "cpu" or has_bf16(self.device) else "fp16"

    def config(self, *options: str) -> Config:
        """Settings of a training of this size without BatchNorm, with further options."""
        size = self.size
        network = [f"model.channels={size.channels}", f"model.blocks={size.blocks}", "model.batch_norm=false"]
        return parse([*network, f"data.crop={size.crop}", f"home={self.work}", *options], "train", "")

    def learner(self, precision: Precision, batch: int, *options: str, compiled: bool = False) -> Learner:
        """The learner of a long training."""
        config = self.config(f"train.global_batch={batch}", *options)
        return Learner(config, 10**6, self.ranks, precision, compiled)

    def batch(self, size: int, seed: int = 0) -> Batch:
        """Random samples where a reader puts them: in page-locked memory for a GPU."""
        batch = random_batch(size, seed, self.size.crop)
        if self.device.type != "cuda":
            return batch
        return Batch(*(part.pin_memory() for part in batch))

    def training_options(self) -> list[str]:
        """Options that make a patch set of the source and train on it."""
        size, builtin = self.size, self.source == "builtin"
        holdout = ["preprocess.holdout=chelsea,coffee,motorcycle_*"] if builtin else []
        tile, stride = (192, 48) if size is FULL else (64, 64)
        return [
            *(f"source={self.source}", *holdout),
            *("preprocess.holdout_count=8", f"preprocess.max_side={2000 if size is FULL else 256}"),
            *(f"preprocess.tile={tile}", f"preprocess.stride={stride if builtin else tile}"),
            *("preprocess.row_group=8", "preprocess.shard_mb=8"),
            *("data.lanes=4", "data.window=64", f"data.scratch={self.work}/tiles"),
        ]


def as_drawn(job: Job, batch_norm: bool) -> SRResNetAsDrawn:
    """The network of a plain loop on the device of the job."""
    size = job.size
    return SRResNetAsDrawn(channels=size.channels, blocks=size.blocks, batch_norm=batch_norm).to(job.device)
