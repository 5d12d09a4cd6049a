"""Progress of a training as lines on the screen."""

from __future__ import annotations

import time

from pipeline.tracking import JournalRecord

_EVERY_S = 10
"""Seconds between lines about the steps."""


class Progress:
    """Prints a line for each session, validation and skipped step, and one every few seconds for the other steps."""

    def __init__(self) -> None:
        self._next = 0.0
        self._psnr = ""

    def show(self, record: JournalRecord) -> None:
        """Print what a record of the journal tells, if it is time."""
        metrics, step = record.metrics, record.step
        if record.kind == "validation":
            if "val/psnr_y" in metrics:
                self._psnr = f", held-out {metrics['val/psnr_y']:.2f} dB at step {step}"
                print(f"train: step {step}, held-out PSNR(Y) {metrics['val/psnr_y']:.3f} dB", flush=True)
        elif record.kind == "session":
            workers = f"{metrics['train/workers']:.0f} workers"
            print(f"train: {f'resuming from step {step}' if step else 'starting'} with {workers}", flush=True)
        elif record.kind == "skipped":
            culprit = next(iter(metrics)).removeprefix("skipped/")
            print(f"train: step {step} skipped: {culprit} not finite", flush=True)
        elif "train/objective" in metrics and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            total, rate = metrics["train/steps_total"], metrics["train/steps_per_s"]
            print(
                f"train: step {step} of {total:.0f}, loss {metrics['train/objective']:.5f}, "
                f"lr {metrics['train/lr']:.1e}, {metrics['train/patches_per_s']:.1f} patches/s, "
                f"about {(total - step) / rate / 60:.1f} min left{self._psnr}",
                flush=True,
            )
