"""The progress of a training on the screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline import storage, terminal
from pipeline.evaluation.scores import METRICS, higher_is_better
from pipeline.tracking import JournalRecord
from pipeline.training.planning import Plan

Remark = Callable[[Sequence[Mapping[str, float]]], str]
"""Returns a sentence about recorded means, oldest first, each with its "step"; "" if there is nothing to say."""

_REMEMBERED = 1000
"""Records of means that a remark may be about."""

Watch = Callable[[Sequence[JournalRecord], bool], None]
"""Called with new records of the journal, and with True if they are those of earlier sessions."""


class Remarks:
    """Tells what the recorded means of a training are worth saying, once each time that it changes.

    Args:
        remark: the remark of the training's method.
    """

    def __init__(self, remark: Remark) -> None:
        self._remark = remark
        self._means: deque[dict[str, float]] = deque(maxlen=_REMEMBERED)
        self._said = ""

    def take(self, record: JournalRecord, earlier: bool) -> str:
        """Take the means of a record; return a sentence if there is a new one, else "".

        Args:
            record: a record of training steps.
            earlier: True for a record of an earlier session, which is remembered without a sentence.
        """
        self._means.append({**record.metrics, "step": record.step})
        if earlier:
            return ""
        sentence = self._remark(self._means)
        if sentence.partition(": ")[2] == self._said.partition(": ")[2]:  # its figures change at each record
            return ""
        self._said = sentence
        return sentence and f"step {record.step}: {sentence}"


@contextmanager
def show_progress(folder: str, remark: Remark = lambda _: "") -> Iterator[Watch]:
    """Show the training in a folder while the block runs: its steps, and a line for each session and validation.

    Args:
        folder: path or URL of the training.
        remark: returns a sentence about the recorded means, which is printed when it changes; "" for none.

    Yields:
        A function to call with the records of the journal.
    """
    with terminal.stage("train", "the workers are starting", unit="steps") as stage:
        yield _Progress(stage, folder, remark).show


class _Progress:
    def __init__(self, stage: terminal.Stage, folder: str, remark: Remark) -> None:
        self._stage, self._folder, self._remarks = stage, folder, Remarks(remark)
        self._first_step = 0
        self._total = 0.0
        self._held_out = self._speed = ""
        self._skipped = 0

    def show(self, records: Sequence[JournalRecord], earlier: bool) -> None:
        """Show what new records of the journal tell; earlier ones change the figures but print no line."""
        step = None
        for record in records:
            if record.kind == "validation":
                self._show_validation(record, earlier)
            elif record.kind == "skipped":
                self._skipped += 1
                if self._skipped == 1 and not earlier:
                    culprit = next(iter(record.metrics)).removeprefix("skipped/")
                    print(f"train: step {record.step} skipped: {culprit} not finite", flush=True)
            elif record.kind == "session" and not earlier:
                self._begin_session(record)
                step = None
            elif record.kind == "train":
                self._take_means(record, earlier)
                step = None if earlier else record.step
        self._stage.update(step)
        skipped = f"{self._skipped} steps skipped" if self._skipped else ""
        self._stage.update(details=", ".join(filter(None, (self._held_out, self._speed, skipped))))

    def _begin_session(self, record: JournalRecord) -> None:
        beginning = f"resuming from step {record.step}" if record.step else "starting"
        workers = f"{record.metrics['train/workers']:.0f} workers"
        print(f"train: {beginning} with {workers}", flush=True)
        plan = storage.read_expendable(f"{self._folder}/plan.json", Plan)
        if plan and plan.note:
            print(f"train: {plan.note}", flush=True)
        self._first_step, self._total = record.step, 0.0
        self._stage.update(message="the first steps run")

    def _take_means(self, record: JournalRecord, earlier: bool) -> None:
        metrics = record.metrics
        sentence = self._remarks.take(record, earlier)
        if earlier:
            return
        if sentence:
            print(f"train: {sentence}", flush=True)
        if self._total != metrics["train/steps_total"]:
            self._total = metrics["train/steps_total"]
            self._stage.begin_at(self._first_step, int(self._total))
        loss = f"loss {metrics['train/objective']:.5f}, " if "train/objective" in metrics else ""
        self._speed = f"{loss}{metrics['train/patches_per_s']:.1f} patches/s, lr {metrics['train/lr']:.1e}"

    def _show_validation(self, record: JournalRecord, earlier: bool) -> None:
        if "val/psnr_y" in record.metrics:
            psnr = record.metrics["val/psnr_y"]
            distances = "".join(
                f", {METRICS[name]} {record.metrics[f'val/{name}']:.4f}"
                for name in METRICS
                if not higher_is_better(name) and f"val/{name}" in record.metrics
            )
            self._held_out = f"{psnr:.2f} dB{distances} at step {record.step}"
            if not earlier:
                print(f"train: step {record.step}, held-out PSNR (Y) {psnr:.3f} dB{distances}", flush=True)
