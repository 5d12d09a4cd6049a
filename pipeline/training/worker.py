"""The loop that every worker of a training runs: steps, validations, checkpoints and records.

Wherever the ranks take a decision, they see the same numbers, so none continues while another stops.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from dataclasses import asdict

import torch
from pydantic import TypeAdapter, ValidationError

from pipeline import storage
from pipeline.data import patchset
from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import BatchReader
from pipeline.data.tiles import Tiles, open_tiles
from pipeline.evaluation.scores import is_better
from pipeline.networks.weights import build_network, load_weights, read_about, to_safetensors
from pipeline.settings import Config, UserError
from pipeline.tracking import Best, Journal, RecordKind, TrainingResult, this_machine
from pipeline.training import memory
from pipeline.training.checkpoints import Checkpoints, Files, TrainingState
from pipeline.training.compilers import has_compiler
from pipeline.training.job import LoopResult, TrainJob
from pipeline.training.learner import Learner, SkippedStep
from pipeline.training.meter import Meter
from pipeline.training.methods import find_method
from pipeline.training.planning import Plan, describe_devices, plan_training, sample_order
from pipeline.training.ranks import Ranks
from pipeline.training.runs import STOPPED
from pipeline.training.session import NodeLeavesError, Session, ray_session
from pipeline.training.validation import HELD_OUT, Validation, Validator, stop_watching, watch_for_hangs
from sr_model.networks.super_resolver import SuperResolver

_UNWRITTEN = "training stops at step {}: its checkpoint cannot be written (the earlier ones are whole)"


def train_loop(arguments: dict[str, TrainJob]) -> LoopResult:
    """Train, or only plan; Ray Train calls it on every worker.

    Args:
        arguments: {"job": the work}, since Ray Train passes a dictionary.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # compile in this process, without a pool of others
    import ray.train.torch

    job = arguments["job"]
    context = ray.train.get_context()
    ranks = Ranks(
        ray.train.torch.get_device(),
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_world_size(),
    )
    if ranks.device.type == "cpu":
        torch.set_num_threads(job.threads)
    try:
        patch_set = ranks.call_on_all(lambda: _check_inputs(job))
        worker = Worker(job.config, patch_set, job.folder, ranks, job.benchmarks, ray_session(ranks, job))
        return worker.dry_run() if job.plan_only else worker.run()
    except memory.OutOfMemoryError:  # perhaps on this rank alone: Ray Train then ends the others, which wait for it
        raise
    except UserError as error:  # all ranks raise it alike
        return LoopResult(mistake=str(error))
    finally:
        stop_watching()


def _check_inputs(job: TrainJob) -> PatchSet:
    """Open what a training reads, which may fail on some node only."""
    config = job.config
    if config.train.init_from:
        load_weights(build_network(config.scale, config.model, 0).started(), config.train.init_from)
    return patchset.load(job.patch_set)


class Worker:
    """One rank of a training.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set for training and validation.
        folder: path or URL of the training.
        ranks: this process among the ranks.
        benchmarks: images that are scored for display only, by the name of their set.
        session: what may end the training early; by default nothing.
    """

    def __init__(
        self,
        config: Config,
        patch_set: PatchSet,
        folder: str,
        ranks: Ranks,
        benchmarks: dict[str, list[BenchmarkImage]] | None = None,
        session: Session | None = None,
    ) -> None:
        self.config, self.patch_set, self.folder, self.ranks = config, patch_set, folder, ranks
        self.order = sample_order(config, patch_set)
        self._journal = Journal(f"{folder}/journal")
        self._validator = Validator(config, patch_set, benchmarks or {}, ranks, self._journal)
        self._best: Best | None = None
        self._micro_batch = config.train.micro_batch
        self._session = session or Session(ranks)
        kept = config.train.keep_checkpoints + 1
        self._checkpoints = Checkpoints(f"{folder}/checkpoints", kept, self._session.observe_checkpoint)
        self._saved_at = self._validated_at = time.monotonic()

    def run(self) -> LoopResult:
        """Train from the newest checkpoint, or from the start, to the end or until the time is up.

        Raises:
            UserError: on all ranks alike, if training diverged or checkpoints cannot be written.
            OutOfMemoryError: on this rank alone, if its device has too little memory.
            NodeLeavesError: on all ranks alike, after a checkpoint, if a node is about to be taken away.
        """
        with memory.explain_lack(self.config, self.ranks.device, lambda: self._micro_batch):
            return self._train()

    def _train(self) -> LoopResult:
        settings, ranks = self.config.train, self.ranks
        tiles = self.open_tiles()  # first, because a plan measures the memory that they leave
        plan = self._load_or_make_plan()
        self._micro_batch = plan.micro_batch
        learner = Learner(self.config, plan.steps, ranks, plan.precision, plan.compiled)
        done = self._restore(learner)
        reader = self.make_reader(plan.micro_batch, tiles)
        self._record("session", done, {"train/workers": ranks.world_size}, flush=True)
        untrained = copy.deepcopy(learner.ema) if done == 0 else None  # scored after the first step
        metrics = self._validate(learner.ema, done) if done == plan.steps else {}
        meter = Meter(ranks, settings.global_batch, plan.steps, settings.log_every)
        started = time.monotonic()
        batches = watch_for_hangs(reader.read(done, plan.steps), self.config.cluster.timeout_s)
        batches = meter.time_waiting(batches)
        stopped = leaves = False
        while done < plan.steps and not stopped:
            sizes = reader.sizes(done)
            own = self.order.share(done, settings.global_batch, ranks.rank, ranks.world_size)
            result = learner.step(done, batches, len(sizes), torch.from_numpy(own))
            done += 1
            meter.add(result, sum(sizes))
            logged = meter.is_due(done)
            leaves = self._session.must_leave(done)
            ends = leaves or self._session.is_time_up(logged)
            checkpoint = done == plan.steps or self._is_due(
                done, settings.checkpoint_every, settings.checkpoint_s, self._saved_at
            )
            for skipped in learner.take_skipped(wait=logged or checkpoint or ends):
                self._record_skip(skipped)
            stopped = ends and not learner.skips.in_a_row  # after a skipped step there is nothing to save
            checkpoint |= stopped
            if logged or checkpoint:  # so that no mean spans an interruption
                self._record_progress(learner, meter, done)
            with meter.paused():
                if untrained is not None:
                    self._validate(untrained, 0)
                    untrained = None
                if done == plan.steps or (
                    not stopped and self._is_due(done, settings.validate_every, settings.validate_s, self._validated_at)
                ):
                    metrics = self._validate(learner.ema, done)
                if checkpoint and not learner.skips.in_a_row:
                    self._save_checkpoint(learner, done)
        ranks.call_on_all(self._checkpoints.wait, "the last checkpoint cannot be written (the earlier ones are whole)")
        self._session.end()
        if done < plan.steps:
            self._journal.flush()
            if leaves:
                raise NodeLeavesError(done)
        if ranks.rank == 0:
            self._write_result(learner, plan, done, metrics, time.monotonic() - started)
        stop_watching()
        return LoopResult(plan, done if done < plan.steps else None)

    def _is_due(self, done: int, every: int, seconds: float, last: float) -> bool:
        """Tell on all ranks alike whether a step is one of every so many, and so many seconds have passed since."""
        if done % every:
            return False
        return seconds == 0 or self.ranks.gather(time.monotonic() - last >= seconds)[0]

    def dry_run(self) -> LoopResult:
        """Plan and measure without training."""
        tiles = self.open_tiles()  # the plan measures the memory that they leave
        plan = self.plan(measure=True)
        del tiles
        return LoopResult(plan)

    def plan(self, measure: bool = False, workers: int | None = None, steps: int | None = None) -> Plan:
        """Decide how to train.

        Args:
            measure: whether to measure time and memory even if no decision depends on them.
            workers: number of workers that this single process stands for.
            steps: the length, if it was decided earlier.

        Raises:
            UserError: on all ranks alike, if the training cannot be planned.
            OutOfMemoryError: on this rank alone, if its device has too little memory.
        """
        validation_s = 0.0
        with memory.explain_lack(self.config, self.ranks.device, lambda: self._micro_batch):
            if steps is None and self.config.train.length.endswith("minutes"):
                net = build_network(self.config.scale, self.config.model, 0).eval().to(self.ranks.device)
                start = time.monotonic()
                self._validator.validate(net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
                (validation_s,) = self.ranks.largest([time.monotonic() - start])
                stop_watching()  # planning has no time limit
            return plan_training(
                self.config,
                self.order,
                self.ranks,
                validation_s=validation_s,
                measure=measure,
                workers=workers,
                steps=steps,
            )

    def open_tiles(self) -> Tiles:
        """Open the place that this rank reads tiles from, which may be another one on each rank."""
        data, device = self.config.data, self.ranks.device
        available = self.config.train.memory_mb or memory.available_mb(device, self.ranks.per_node)
        return self.ranks.call_on_all(
            lambda: open_tiles(
                self.patch_set, data.hold, data.hold_mb, data.scratch, device, available, self.ranks.per_node
            ),
            slow=True,
        )

    def make_reader(self, micro_batch: int, tiles: Tiles | None = None) -> BatchReader:
        """Make the reader of this rank's micro-batches.

        Args:
            micro_batch: the most samples in a micro-batch.
            tiles: where to read tiles from; by default `open_tiles` decides.
        """
        data = self.config.data
        return BatchReader(
            self.patch_set,
            self.order,
            batch=self.config.train.global_batch,
            micro_batch=micro_batch,
            crop=data.crop,
            augment=data.augment,
            rank=self.ranks.rank,
            world=self.ranks.world_size,
            tiles=tiles or self.open_tiles(),
            pin=self.ranks.device.type == "cuda",
        )

    def _load_or_make_plan(self) -> Plan:
        """The plan that was made before the first step, or a new one; the same on all ranks.

        On other kinds of devices than before, or if the compiler is gone, all but the number of steps is decided anew.
        """
        url, ranks = f"{self.folder}/plan.json", self.ranks
        remedy = f"delete {self.folder} to train again from the start, because the plan shaped the steps so far"
        known = ranks.call_on_all(lambda: storage.read_document(url, Plan, remedy) if ranks.rank == 0 else None)
        plan, devices = ranks.gather(known)[0], describe_devices(ranks)
        compiles = all(ranks.gather(has_compiler(ranks.device)))
        if plan is None or plan.device != devices or (plan.compiled and not compiles):
            made = ranks.gather(self.plan(steps=plan.steps if plan else None))[0]
            ranks.call_on_all(lambda: storage.write_document(url, made) if ranks.rank == 0 else None)
            return made
        return plan

    def _restore(self, learner: Learner) -> int:
        """Load the newest checkpoint, and return the number of finished steps."""
        found = self.ranks.call_on_all(self._checkpoints.restore, "cannot read the newest checkpoint")
        done = 0
        if found:
            files, state = found
            self.ranks.call_on_all(lambda: self._load(learner, files, state))
            done = state.step
            best = self._read_best(state.best) if self.ranks.rank == 0 else None
            self._best = self.ranks.gather(best)[0]
        if len(set(self.ranks.gather(done))) > 1:
            raise UserError(
                f"workers see different checkpoints in {self.folder}, expected a folder that all nodes share"
            )
        return done

    def _load(self, learner: Learner, files: Files, state: TrainingState) -> None:
        try:
            learner.load(files, state.skips, state.loss_scale)
        except Exception as error:  # its checksums are right, so it was written by something else
            if memory.is_lack(error):
                raise
            raise UserError(
                f"the checkpoint {self._checkpoints.url}/{state.step:09d} does not fit this training "
                f"({storage.one_line(error, 200)}): delete {self._checkpoints.url} to train again from the start"
            ) from error

    def _record_progress(self, learner: Learner, meter: Meter, done: int) -> None:
        self.ranks.call_on_all(self._checkpoints.check, _UNWRITTEN.format(done))
        metrics = meter.read(done)
        metrics["train/lr"] = learner.learning_rate
        metrics["train/skipped"] = float(learner.skips.total)
        self._record("train", done, metrics, flush=meter.flush_due())

    def _record_skip(self, skipped: SkippedStep) -> None:
        self._record("skipped", skipped.step, {f"skipped/{skipped.culprit}": float(skipped.skips.total)})
        if skipped.skips.in_a_row >= self.config.train.max_skipped:
            self._journal.flush()
            self.ranks.call_on_all(self._checkpoints.wait, "cannot write a checkpoint")
            steps = self._checkpoints.steps()
            last = (
                f"the last good checkpoint is {self._checkpoints.url}/{steps[-1]:09d}"
                if steps
                else "there is no checkpoint yet"
            )
            raise UserError(
                f"training diverged: {skipped.skips.in_a_row} steps in a row up to step {skipped.step} were not finite "
                f"({skipped.culprit}), expected fewer than train.max_skipped; {last}; a lower train.lr helps"
            )

    def _validate(self, net: SuperResolver, done: int) -> dict[str, float]:
        """Score and record a network, and write its weights if they are the best so far."""
        validation: Validation = self._validator.validate(net, done)
        self._validated_at = time.monotonic()
        self._record("validation", done, validation.metrics, validation.images, flush=True)
        metric = find_method(self.config).selects(self.config)
        score = validation.metrics.get(f"{HELD_OUT}/{metric}", math.nan)
        comparable = self._best if self._best and self._best.metric == f"{HELD_OUT}/{metric}" else None
        if done and is_better(metric, score, comparable.value if comparable else None):
            best = self._best = Best(done, score, f"{HELD_OUT}/{metric}")
            self.ranks.call_on_all(lambda: self._write_weights(net, "best", best), "cannot write the best weights")
        return validation.metrics

    def _save_checkpoint(self, learner: Learner, done: int) -> None:
        self._journal.flush()
        self._saved_at = time.monotonic()
        state = TrainingState(done, learner.skips, self._best, learner.loss_scale)

        def save() -> None:
            if self.ranks.rank == 0:
                self._checkpoints.save(learner.save(), state)

        self.ranks.call_on_all(save, _UNWRITTEN.format(done))
        self._session.add_checkpoint(state)

    def _write_result(self, learner: Learner, plan: Plan, done: int, metrics: dict[str, float], seconds: float) -> None:
        """Write weights and result of a training that has ended, or of the part of it that ends here."""
        weights, document = ("model", "result") if done == plan.steps else (STOPPED, STOPPED)
        self._write_weights(learner.ema, weights)
        device = self.ranks.device
        result = TrainingResult(
            steps=done,
            workers=self.ranks.world_size,
            device=device.type,
            threads=torch.get_num_threads(),
            precision=plan.precision,
            compiled=plan.compiled,
            micro_batch=plan.micro_batch,
            skipped=learner.skips.total,
            seconds_last_session=seconds,
            best=self._best,
            metrics=metrics,
            machine=this_machine(memory.describe(device) if device.type == "cuda" else ""),
            versions={"python": platform.python_version(), "torch": torch.__version__},
        )
        storage.write_document(f"{self.folder}/{document}.json", result)

    def _write_weights(self, net: SuperResolver, name: str, best: Best | None = None) -> None:
        if self.ranks.rank == 0:
            about = {"validation": json.dumps(asdict(best))} if best else None
            storage.write(f"{self.folder}/{name}.safetensors", to_safetensors(net, self.config.scale, about))

    def _read_best(self, saved: Best | None) -> Best | None:
        """Find the validation of the best weights, which may be newer than the checkpoint; None if they are lost.

        Args:
            saved: the validation that the checkpoint names. It counts where the weights name none.
        """
        try:
            about = read_about(f"{self.folder}/best.safetensors")
            if about is None:
                return None
            return TypeAdapter(Best).validate_json(about["validation"]) if "validation" in about else saved
        except (OSError, UserError, ValidationError) as error:
            storage.report_once(f"{storage.one_line(error)}; the next validation writes the best weights again")
            return None

    def _record(
        self,
        kind: RecordKind,
        step: int,
        metrics: dict[str, float],
        images: dict[str, str] | None = None,
        flush: bool = False,
    ) -> None:
        if self.ranks.rank == 0:
            self._journal.append(kind, step, metrics, images)
            if flush:
                self._journal.flush()
