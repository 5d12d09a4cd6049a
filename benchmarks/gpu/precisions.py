"""Held-out PSNR of trainings in fp32, bf16 and fp16, with equal steps and seeds."""

from __future__ import annotations

import statistics
import time

from benchmarks.gpu.job import FULL, Job
from benchmarks.gpu.patches import make_patch_set
from pipeline import storage
from pipeline.data.patchset import PatchSet
from pipeline.tracking import TrainingResult
from pipeline.training.precision import Precision
from pipeline.training.validation import stop_watching
from pipeline.training.worker import Worker

_BATCH = 16
_METRIC = "val/psnr_y"


def measure(job: Job) -> None:
    """Train with one seed after the other, so that what is there when time ends can be compared."""
    patch_set = make_patch_set(job.config(*job.training_options()))
    scores: dict[Precision, list[float]] = {p: [] for p in ("fp32", "bf16", "fp16") if p in job.precisions}
    for seed in range(job.size.seeds):
        for precision, values in scores.items():
            began = time.monotonic()
            values.append(_train(job, patch_set, precision, seed))
            note = f"{time.monotonic() - began:.0f} s"
            job.recorder.add(f"seed {seed}, {precision}", values[-1], "dB held-out (Y)", better="higher", note=note)
        for precision in [p for p in scores if p != "fp32"]:
            gains = [a - b for a, b in zip(scores[precision], scores["fp32"], strict=True)]
            name = f"{precision} over fp32, seeds 0 to {seed}"
            job.recorder.add(name, statistics.fmean(gains), "dB, mean", better="higher")


def _train(job: Job, patch_set: PatchSet, precision: Precision, seed: int) -> float:
    """Train, and return the mean PSNR of the moving average on the held-out images in dB."""
    size, batch = job.size, min(_BATCH, max(job.size.batches))
    config = job.config(
        *job.training_options(),
        *(f"train.length={size.compared_steps} steps", f"train.global_batch={batch}", f"train.micro_batch={batch}"),
        *(f"train.precision={precision}", f"train.seed={seed}", f"train.compile={'on' if size is FULL else 'off'}"),
        *("train.validate_every=1000000", "train.checkpoint_every=1000000", "train.log_every=100", "train.lr=6e-4"),
    )
    folder = f"{job.work}/{precision}-{seed}"
    Worker(config, patch_set, folder, job.ranks).run()
    stop_watching()
    result = storage.read_document(f"{folder}/result.json", TrainingResult)
    assert result is not None
    return result.metrics[_METRIC]
