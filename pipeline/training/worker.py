"""What runs on every worker of a training: one optimizer step after the other, seen to, kept and made good.

Ranks see the same numbers where they decide something, so that none goes on while another stops.
"""

from __future__ import annotations

import copy
import faulthandler
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist

from pipeline import storage
from pipeline.data import patchset
from pipeline.data.images import RejectedImageError
from pipeline.data.patchset import HeldOutImage, PatchSet
from pipeline.data.reader import BatchReader, hold
from pipeline.data.sampler import SampleOrder
from pipeline.evaluation import scoring
from pipeline.networks import upscaling
from pipeline.networks.weights import build_network, contiguous, load_weights
from pipeline.settings import Config, UserError
from pipeline.tracking import Journal
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.learner import Learner
from pipeline.training.meter import _Meter
from pipeline.training.planning import Plan, Rank, decide
from sr_model.srresnet import SRResNet

T = TypeVar("T")

_SHOWN_IMAGES = 3


def train_loop(job: dict[str, Any]) -> dict[str, Any]:
    """Train, or only plan; what Ray Train runs on every worker.

    Args:
        job: "config", "patch_set" (URL), "folder" (URL of the training), "benchmarks" ({set: [(name, HR, LR)]}),
            "threads" (of a CPU worker), "dry_run".

    Returns:
        {"mistake": sentence} for what no restart would mend, else {"plan": what was decided}.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # compile here, not in processes of one's own
    import ray.train.torch

    context = ray.train.get_context()
    me = Rank(
        ray.train.torch.get_device(),
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_world_size(),
    )
    if me.device.type == "cpu":
        torch.set_num_threads(job["threads"])
    config = Config(**job["config"])
    mistake = None
    try:
        patch_set = patchset.load(job["patch_set"])
        if config.train.init_from:
            load_weights(build_network(config.scale, config.model, 0), config.train.init_from)
    except UserError as error:  # perhaps on this node only: the others must not wait
        mistake = str(error)
    mistake = next(filter(None, _from_all(mistake, me)), None)
    if mistake:
        return {"mistake": mistake}
    try:
        worker = Worker(config, patch_set, job["folder"], me, job["benchmarks"])
        return {"plan": asdict(worker.plan(measure=True) if job["dry_run"] else worker.run())}
    except UserError as error:  # which all ranks raise alike
        return {"mistake": str(error)}
    finally:
        faulthandler.cancel_dump_traceback_later()


class Worker:
    """One rank of a training.

    Args:
        config: the pipeline's configuration.
        patch_set: what to train and validate on.
        folder: path or URL of the training.
        me: device and place among the workers; a process group must exist if there are several.
        benchmarks: images that are scored for display, {set: [(name, HR, LR or None)]}.
    """

    def __init__(
        self,
        config: Config,
        patch_set: PatchSet,
        folder: str,
        me: Rank,
        benchmarks: dict[str, list[tuple[str, str, str | None]]] | None = None,
    ) -> None:
        self.config, self.patch_set, self.folder, self.me = config, patch_set, folder, me
        self.order = sample_order(config, patch_set)
        self.journal = Journal(f"{folder}/journal")
        self.checkpoints = Checkpoints(f"{folder}/checkpoints", config.train.keep + 1)
        held_out = [("val", name, "", None) for name in patch_set.holdout_names]
        shown = [(f"bench/{s}", *image) for s, images in (benchmarks or {}).items() for image in images]
        self.images: list[tuple[str, str, str, str | None]] = [*held_out, *shown]
        self.best: dict[str, float] = {}

    def run(self) -> Plan:
        """Train from the newest checkpoint, or the start, to the end.

        Raises:
            UserError: on all ranks alike, if training diverged or checkpoints cannot be written.
        """
        settings, me = self.config.train, self.me
        plan = self._settled_plan()
        learner = Learner(self.config, plan.steps, me.device, me.world, plan.bf16, plan.compiled)
        done = self._restore(learner)
        reader = self._reader(plan)
        self._say("session", done, {"train/workers": me.world}, flush=True)
        untrained = copy.deepcopy(learner.ema) if done == 0 else None  # scored after the first step
        scores = self._validate(learner.ema, done) if done == plan.steps else {}
        meter = _Meter(settings.global_batch, plan.steps)
        started = time.monotonic()
        batches = meter.waiting(self._watched(reader.read(done, plan.steps)))
        while done < plan.steps:
            sizes = reader.sizes(done)
            result = learner.step(done, batches, len(sizes))
            done += 1
            meter.add(result, sum(sizes))
            if result.skipped:
                self._skipped(learner, done, result.skipped)
            checkpoint = done % settings.checkpoint_every == 0 or done == plan.steps
            if done % settings.log_every == 0 or checkpoint:  # so that means never span an interruption
                self._log(learner, meter, done)
            with meter.paused():
                if untrained is not None:
                    self._validate(untrained, 0)
                    untrained = None
                if done % settings.validate_every == 0 or done == plan.steps:
                    scores = self._validate(learner.ema, done)
                if checkpoint and not learner.skipped_in_a_row:
                    self._checkpoint(learner, done)
        self._together(self.checkpoints.wait, "the last checkpoint cannot be written (those before it are whole)")
        if me.rank == 0:
            self._finish(learner, plan, {**scores, "seconds_last_session": time.monotonic() - started})
        faulthandler.cancel_dump_traceback_later()
        return plan

    def plan(self, measure: bool = False, workers: int | None = None) -> Plan:
        """Decide how to train; with `measure`, the time of a step and memory are measured in any case.

        Alone, this process may stand for one of several `workers`.
        """
        validation_s = 0.0
        if self.config.train.length.endswith("minutes"):
            start = time.monotonic()
            self._scores(Learner(self.config, 1, self.me.device).ema)
            validation_s = max(_from_all(time.monotonic() - start, self.me))
            faulthandler.cancel_dump_traceback_later()  # what follows has no limit
        return decide(self.config, self.order, self.me, validation_s, measure, workers)

    def _settled_plan(self) -> Plan:
        """The plan that was made before the first step, or is made now; the same on all ranks."""
        url = f"{self.folder}/plan.json"
        known = _from_all(storage.read_json(url) if self.me.rank == 0 else None, self.me)[0]
        if known is None:
            known = _from_all(asdict(self.plan()), self.me)[0]
            if self.me.rank == 0:
                storage.write_json(url, known)
        return Plan(**known)

    def _reader(self, plan: Plan) -> BatchReader:
        data = self.config.data
        return BatchReader(
            self.patch_set,
            self.order,
            batch=self.config.train.global_batch,
            micro_batch=plan.micro_batch,
            crop=data.crop,
            augment=data.augment,
            rank=self.me.rank,
            world=self.me.world,
            tiles=self._together(lambda: hold(self.patch_set, data.hold, data.hold_mb, data.scratch)),
            pin=self.me.device.type == "cuda",
        )

    def _restore(self, learner: Learner) -> int:
        found = self._together(self.checkpoints.restore, "cannot read the newest checkpoint")
        done = 0
        if found:
            files, state = found
            learner.load(files, state)
            self.best, done = state["best"], state["step"]
        if len(set(_from_all(done, self.me))) > 1:
            raise UserError(
                f"workers see different checkpoints in {self.folder}, expected a folder that all nodes share"
            )
        return done

    def _log(self, learner: Learner, meter: _Meter, done: int) -> None:
        metrics = meter.read(learner)
        metrics["train/lr"] = learner.optimizers[0].param_groups[0]["lr"]
        metrics["train/skipped"] = float(learner.skipped)
        self._say("train", done, metrics, flush=meter.flush_due())

    def _skipped(self, learner: Learner, done: int, culprit: str) -> None:
        self._say("skipped", done, {f"skipped/{culprit}": float(learner.skipped)})
        if learner.skipped_in_a_row >= self.config.train.max_skipped:
            self.journal.flush()
            self._together(self.checkpoints.wait, "cannot write a checkpoint")
            steps = self.checkpoints.steps()
            last = (
                f"the last good checkpoint is {self.checkpoints.url}/{steps[-1]:09d}" if steps else "no checkpoint yet"
            )
            raise UserError(
                f"training diverged: {learner.skipped_in_a_row} steps in a row up to step {done} were not finite "
                f"({culprit}), expected fewer than train.max_skipped; {last}; a lower train.lr helps"
            )

    def _validate(self, net: SRResNet, done: int) -> dict[str, float]:
        """Score, record, and keep the weights if they are the best so far."""
        metrics, images = self._scores(net, done)
        self._say("validation", done, metrics, images, flush=True)
        psnr = metrics.get("val/psnr_y", -math.inf)
        if done and psnr > self.best.get("val/psnr_y", -math.inf):
            self.best = {"step": done, "val/psnr_y": psnr}
            self._together(lambda: self._write_weights(net, "best"), "cannot keep the best weights")
        return metrics

    def _scores(self, net: SRResNet, step: int | None = None) -> tuple[dict[str, float], dict[str, str]]:
        """Score held-out and shown images, spread over the ranks; means in image order, the same for any number."""
        if self.me.world > 1:  # BatchNorm's statistics are those of rank 0, which a checkpoint holds
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        places = range(self.me.rank, len(self.images), self.me.world)
        mine = self._together(lambda: [self._score(net, i, step) for i in self._watched(places)])
        ordered = sorted((entry for part in _from_all(mine, self.me) for entry in part), key=lambda entry: entry[0])
        metrics = {}
        for name in dict.fromkeys(name for name, *_ in self.images):
            means = scoring.mean_scores([scores for i, scores, _ in ordered if self.images[i][0] == name])
            metrics.update({f"{name}/{key}": value for key, value in means.items()})
        return metrics, {key: file for _, _, images in ordered for key, file in images.items()}

    def _score(self, net: SRResNet, number: int, step: int | None) -> tuple[int, dict[str, float], dict[str, str]]:
        """Number and scores of an image, and what of it is shown at this step."""
        image = self._image(number)
        sr = upscaling.upscale_image(net, image.lr)
        images = {}
        if step is not None and number < min(_SHOWN_IMAGES, len(self.patch_set.holdout_names)):
            strip = scoring.comparison_strip(image, sr, self.config.scale)
            name = f"{number}_{storage.plain_name(image.name)}"
            images[f"bicubic_sr_hr/{name}"] = self.journal.save_image(f"{name}-{step:09d}", strip)
        return number, asdict(scoring.score_image(sr, image.hr, self.config.scale)), images

    def _image(self, number: int) -> HeldOutImage:
        kind, name, hr, lr = self.images[number]
        if kind == "val":
            return self.patch_set.read_holdout(number)
        try:
            hr_image, lr_image, _ = scoring.load_pair(hr, lr, self.config.scale, self.config.preprocess.max_pixels)
        except RejectedImageError as error:
            raise UserError(f"evaluate.benchmarks: {name} {error}") from None
        return HeldOutImage(name, hr_image, lr_image)

    def _checkpoint(self, learner: Learner, done: int) -> None:
        self.journal.flush()

        def save() -> None:
            if self.me.rank == 0:
                files, state = learner.save()
                self.checkpoints.save(done, files, {**state, "best": self.best})

        self._together(
            save, f"training stops at step {done}: its newest checkpoint cannot be written (those before it are whole)"
        )

    def _finish(self, learner: Learner, plan: Plan, metrics: dict[str, Any]) -> None:
        self._write_weights(learner.ema, "model")
        result = {
            "steps": plan.steps,
            "workers": self.me.world,
            "device": self.me.device.type,
            "threads": torch.get_num_threads(),
            "bf16": plan.bf16,
            "compiled": plan.compiled,
            "micro_batch": plan.micro_batch,
            "skipped": learner.skipped,
            "best": self.best,
            **metrics,
        }
        storage.write_json(f"{self.folder}/result.json", result)

    def _write_weights(self, net: SRResNet, name: str) -> None:
        if self.me.rank == 0:
            weights = safetensors.torch.save(
                contiguous(net), metadata={"format": "pt", "scale": str(self.config.scale)}
            )
            storage.write(f"{self.folder}/{name}.safetensors", weights)

    def _say(
        self,
        kind: str,
        step: int,
        metrics: dict[str, float],
        images: dict[str, str] | None = None,
        flush: bool = False,
    ) -> None:
        if self.me.rank == 0:
            self.journal.append(kind, step, metrics, images)
            if flush:
                self.journal.flush()

    def _together(self, action: Callable[[], T], trouble: str = "") -> T:
        """Do something on every rank; if it fails on one, all raise the same `UserError`."""
        result, mistake = None, None
        try:
            result = action()
        except (OSError, UserError) as error:
            mistake = f"{trouble}: {error}" if trouble else str(error)
        mistake = next(filter(None, _from_all(mistake, self.me)), None)
        if mistake:
            raise UserError(mistake)
        return result  # type: ignore[return-value]

    def _watched(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            self._alive()
            yield item

    def _alive(self) -> None:
        """Start the time anew after which this process counts as hung, and is ended with all its tracebacks."""
        faulthandler.dump_traceback_later(self.config.cluster.timeout_s, exit=True, file=sys.stderr)


def sample_order(config: Config, patch_set: PatchSet) -> SampleOrder:
    """The order of samples that the configuration defines on a patch set.

    Raises:
        UserError: if they don't fit.
    """
    data = config.data
    crops = data.crops_per_tile or max(round((patch_set.tile / data.crop) ** 2), 1)
    try:
        return SampleOrder(patch_set.row_groups, config.train.seed, data.lanes, data.window, crops)
    except ValueError as error:
        raise UserError(
            f"data.lanes is {data.lanes}, but the patch set has {len(patch_set.row_groups)} row groups: "
            "expected fewer lanes, a smaller preprocess.row_group or more images"
        ) from error


def _from_all(value: T, me: Rank) -> list[T]:
    """Every rank's value, in order of ranks."""
    if me.world == 1:
        return [value]
    values: list[Any] = [None] * me.world
    dist.all_gather_object(values, value)
    return values
