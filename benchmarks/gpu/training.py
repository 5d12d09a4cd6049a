"""A whole training that is killed in the middle and resumed, to its scores.

    python -m benchmarks.gpu.training PATCH_SET FOLDER SET5 KEY=VALUE...

trains in one process. The section starts this command, ends it with SIGKILL when half of the steps are in a checkpoint,
and starts it again.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.job import FULL, Job
from benchmarks.gpu.patches import make_patch_set
from pipeline import storage
from pipeline.data import benchmark_sets, patchset
from pipeline.networks.devices import best_device
from pipeline.settings.command_line import parse
from pipeline.tracking import JournalReader, TrainingResult
from pipeline.training.planning import Plan
from pipeline.training.ranks import Ranks
from pipeline.training.validation import stop_watching
from pipeline.training.worker import Worker

THROUGHPUT = "throughput, median of the records"
SET5_TARGET = 31.5
"""PSNR on Y in dB."""


def main(argv: Sequence[str]) -> None:
    """Train from the newest checkpoint to the end."""
    url, folder, set5, *options = argv
    config = parse(options, "train", "")
    images = {"Set5": benchmark_sets.list_images("Set5", set5, config.scale, config.downloads)} if set5 else {}
    Worker(config, patchset.load(url), folder, Ranks(best_device()), images).run()
    stop_watching()


def measure(job: Job) -> None:
    """Train, kill, resume, and record what came out."""
    record, size = job.recorder.add, job.size
    began = time.monotonic()
    patch_set = make_patch_set(job.config(*job.training_options()))
    record("making the patch set", time.monotonic() - began, "s", note=patchset.describe(patch_set))
    batch = size.main_batch
    options = [
        *(f"model.channels={size.channels}", f"model.blocks={size.blocks}", "model.batch_norm=false"),
        *(f"data.crop={size.crop}", f"home={job.work}", *job.training_options()),
        *(f"train.global_batch={batch}", f"train.length={size.length}", "train.lr=4e-4", "train.clip_norm=0.2"),
        *("train.checkpoint_every=20", "train.validate_every=50", "train.log_every=50"),
        *(("train.checkpoint_s=10", "train.validate_s=30") if size is FULL else ()),
    ]
    folder = f"{job.work}/training"
    command = [sys.executable, "-m", "benchmarks.gpu.training", patch_set.url, folder, job.set5 or "", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    began = time.monotonic()
    killed_at = _run_and_kill(command, environment, folder)
    record("checkpoint at the SIGKILL", killed_at, "steps", note="" if killed_at else "it ended before it was killed")
    subprocess.run(command, env=environment, check=True)
    seconds = time.monotonic() - began
    _record_outcome(job, folder, killed_at, seconds)


def _run_and_kill(command: Sequence[str], environment: Mapping[str, str], folder: str) -> int | None:
    """Run a training until half of its steps are in a checkpoint, kill it, and return the checkpoint's step."""
    process = subprocess.Popen(command, env=environment)
    try:
        while process.poll() is None:
            plan = storage.read_document(f"{folder}/plan.json", Plan)
            whole = [int(name) for name in storage.names(f"{folder}/checkpoints") if name.isdecimal()]
            whole = [step for step in whole if Path(f"{folder}/checkpoints/{step:09d}/state.json").exists()]
            if plan and whole and max(whole) >= plan.steps / 2:
                return max(whole)
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"the training ended with exit code {process.returncode} before it was killed")
    return None


def _record_outcome(job: Job, folder: str, killed_at: int | None, seconds: float) -> None:
    record = job.recorder.add
    result = storage.read_document(f"{folder}/result.json", TrainingResult)
    plan = storage.read_document(f"{folder}/plan.json", Plan)
    assert result is not None
    assert plan is not None
    records = list(JournalReader(f"{folder}/journal").new())
    sessions = [entry.step for entry in records if entry.kind == "session"]
    if killed_at is not None:
        resumed = max(sessions)
        record("steps lost before the checkpoint that was resumed", float(killed_at - resumed), "", 0)
    how = f"{plan.precision}, {'compiled' if plan.compiled else 'eager'}, micro-batches of {plan.micro_batch}"
    record("steps", result.steps, f"of {job.size.main_batch} patches", note=how)
    record("both sessions together", seconds, "s")
    trained = [entry.metrics for entry in records if entry.kind == "train"]
    record(THROUGHPUT, statistics.median(m["train/patches_per_s"] for m in trained), "patches/s", better="higher")
    waited = statistics.median(m["train/data_wait_share"] for m in trained)
    record("waiting for data, median of the records", waited, "share of the time")
    record("steps skipped", result.skipped, "")
    untrained = next(entry.metrics for entry in records if entry.kind == "validation")
    for name, value in result.metrics.items():
        if name.endswith("psnr_y"):
            target = SET5_TARGET if "Set5" in name and job.size is FULL else None
            note = f"{untrained[name]:.2f} dB before the first step"
            record(f"{name} after the last step", value, "dB", target, "higher", note)


if __name__ == "__main__":
    main(sys.argv[1:])
