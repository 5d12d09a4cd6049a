"""Train SRResNet on a patch set: Ray Train runs the same loop on every worker, DDP joins their gradients.

`python -m pipeline.train --config FILE` makes the patch set if need be, trains, and prints where the weights lie. The
same command goes on after an interruption, and only says what it found when the training is finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from pipeline import cluster, patchset, preprocess, scoring, storage
from pipeline.config import Config, UserError, command, fingerprint, parse
from pipeline.learner import Learner, build_network, contiguous, load_weights, use_bf16
from pipeline.patchset import PatchSet
from pipeline.reader import BatchReader
from pipeline.sampler import SampleOrder, micro_batches
from pipeline.tracking import Forwarder, Journal, JournalReader, Record, Tracker

import ray.train  # after `cluster`, which sets what Ray reads when it is imported
import ray.train.torch

ALGORITHM = 1
"""Version of what the same configuration trains to; part of a training's name."""

_NOT_SHAPING = {"validate_every", "checkpoint_every", "log_every"}
_SHOWN_PICTURES = 3


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.train`."""
    config = parse(argv, "train", "Train SRResNet.")
    patch_set, _ = preprocess.prepare(config)
    trained = train(config, patch_set)
    print(f"weights {trained.weights} ({trained.result['steps']} steps{', found finished' if trained.found else ''})")


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    name: str
    folder: str
    result: dict[str, Any]
    """Steps, seconds of the last session, workers, device, held-out metrics at the end."""
    found: bool
    """Whether it had been finished before."""
    tracked: bool
    """Whether MLflow has all of it."""

    @property
    def weights(self) -> str:
        """The moving average's weights, .safetensors."""
        return f"{self.folder}/model.safetensors"

    def history(self) -> list[Record]:
        """The journal's records in order of steps."""
        return sorted(JournalReader(f"{self.folder}/journal").new(), key=lambda record: int(record["step"]))


def training_name(config: Config, patch_set: PatchSet) -> str:
    """Name of a training by all that shapes its weights; how it is run (workers, cadence) does not."""
    identity: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "patch_set": patch_set.name,
        "data": config.data.model_dump(),
        "model": config.model.model_dump(),
        "train": config.train.model_dump(exclude=_NOT_SHAPING),
    }
    if config.train.init_from:
        weights = storage.read(config.train.init_from)
        if weights is None:
            raise UserError(f"train.init_from is {config.train.init_from}, expected an existing .safetensors file")
        identity["train"]["init_from"] = hashlib.sha256(weights).hexdigest()
    norm = "bn" if config.model.batch_norm else "nobn"
    return f"{config.name}-x{config.scale}-{norm}-{'+'.join(config.train.loss)}-{fingerprint(identity)}"


def find(config: Config, patch_set: PatchSet) -> Trained | None:
    """The finished training that the configuration describes, if there is one."""
    name = training_name(config, patch_set)
    folder = f"{config.outputs}/trainings/{name}"
    result = storage.read_json(f"{folder}/result.json")
    return Trained(name, folder, result, found=True, tracked=storage.exists(f"{folder}/tracked")) if result else None


def train(config: Config, patch_set: PatchSet, parent: str | None = None) -> Trained:
    """Train to the end, or find that it was done; goes on from the newest checkpoint.

    Args:
        config: the pipeline's configuration.
        patch_set: what to train and validate on.
        parent: MLflow run of the workflow.

    Raises:
        UserError: if configuration and patch set don't fit, or training diverged.
    """
    name = training_name(config, patch_set)
    folder = f"{config.outputs}/trainings/{name}"
    finished = find(config, patch_set)
    if finished and finished.tracked:
        return finished
    sample_order(config, patch_set)  # refuses what doesn't fit before anything starts
    tags = {
        "stage": "train",
        "scale": str(config.scale),
        "batch_norm": str(config.model.batch_norm),
        "loss": "+".join(config.train.loss),
        "patch_set": patch_set.name,
    }
    with Tracker(config).run(folder, name, tags, parent) as run:
        forwarder = Forwarder(f"{folder}/journal", run)
        if not finished:
            run.describe(_flat(config), config)
            run.log_dataset(
                ",".join(Path(source).name or source for source in config.source),
                patch_set.name,
                patch_set.url,
                {"pictures": len(patch_set.pictures), "tiles": sum(patch_set.row_groups)},
            )
            _fit(config, patch_set, folder, name, forwarder)
        trained = find(config, patch_set)
        if trained is None:
            raise UserError(f"training {folder} ended without a result, expected result.json: run it again")
        numbers = {key: value for key, value in trained.result.items() if type(value) in (int, float)}
        final = {f"final/{key}": value for key, value in numbers.items()}
        weights = storage.read(trained.weights)
        assert weights is not None
        sent = forwarder.drain() and run.log_metrics(final) and run.log_file(weights, "model/model.safetensors")
    if sent and run.ended:
        storage.write(f"{folder}/tracked", b"")
    return replace(trained, found=finished is not None)


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
            "expected fewer lanes, a smaller preprocess.row_group or more pictures"
        ) from error


def _fit(config: Config, patch_set: PatchSet, folder: str, name: str, forwarder: Forwarder) -> None:
    """Run Ray Train, and meanwhile forward the journal and print progress."""
    cluster.connect(config)
    workers, resources = cluster.training_resources(config)
    for key, value in (("data.lanes", config.data.lanes), ("train.global_batch", config.train.global_batch)):
        if value < workers:
            raise UserError(f"{key} is {value}, expected at least the number of workers, {workers}")
    trainer = ray.train.torch.TorchTrainer(
        _train_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "patch_set": patch_set.url,
            "folder": folder,
            "threads": int(resources["CPU"]),
        },
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.cluster.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{config.outputs}/trainings",
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=2
            ),
        ),
    )
    failure: list[Exception] = []

    def fit() -> None:
        try:
            mistake = trainer.fit().return_value
            if mistake:
                failure.append(UserError(mistake))
        except Exception as error:  # raised again in the main thread
            failure.append(error)

    # Not in the main thread: Ray Train would take over its interrupt handler there.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    progress = _Progress()
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
        for record in forwarder.pump():
            progress.show(record)
    if failure:
        raise failure[0]


class _Progress:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._next = 0.0
        self._psnr = ""

    def show(self, record: Record) -> None:
        metrics, step = record["metrics"], record["step"]
        if record["kind"] == "validation":
            if "val/psnr_y" in metrics:
                self._psnr = f", held-out {metrics['val/psnr_y']:.2f} dB at step {step}"
                print(f"train: step {step}, held-out PSNR(Y) {metrics['val/psnr_y']:.3f} dB", flush=True)
        elif record["kind"] == "train" and time.monotonic() >= self._next:
            self._next = time.monotonic() + 10
            total, rate = metrics["train/steps_total"], metrics["train/steps_per_s"]
            print(
                f"train: step {step} of {total:.0f}, loss {metrics['train/objective']:.5f}, "
                f"lr {metrics['train/lr']:.1e}, {metrics['train/patches_per_s']:.1f} patches/s, "
                f"about {(total - step) / rate / 60:.1f} min left{self._psnr}",
                flush=True,
            )


def _flat(config: Config) -> dict[str, Any]:
    """Dotted keys of what shapes the result."""
    flat: dict[str, Any] = {"scale": config.scale}
    for section in ("preprocess", "data", "model", "train"):
        flat.update({f"{section}.{key}": value for key, value in getattr(config, section).model_dump().items()})
    return flat


# From here on: what runs on the workers.


def _train_loop(job: dict[str, Any]) -> str | None:
    """Train; returns the sentence of a `UserError`, which no restart would mend."""
    config = Config(**job["config"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job["threads"])
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        patch_set = patchset.load(job["patch_set"])
        if config.train.init_from:
            load_weights(build_network(config.scale, config.model, 0), config.train.init_from)
        mistake = None
    except UserError as error:  # perhaps on this node only: the others must not wait
        mistake = str(error)
    mistakes = [mistake]
    if world > 1:
        mistakes = [None] * world
        dist.all_gather_object(mistakes, mistake)
    if any(mistakes):
        return next(filter(None, mistakes))
    try:
        _Worker(config, patch_set, job["folder"], device, rank, world).run()
    except UserError as error:  # divergence, which all ranks see alike
        return str(error)
    return None


class _Worker:
    """One rank of a training."""

    def __init__(
        self, config: Config, patch_set: PatchSet, folder: str, device: torch.device, rank: int, world: int
    ) -> None:
        self.config, self.patch_set, self.folder = config, patch_set, folder
        self.device, self.rank, self.world = device, rank, world
        self.order = sample_order(config, patch_set)
        self.journal = Journal(f"{folder}/journal")
        self.reader = BatchReader(
            patch_set,
            self.order,
            batch=config.train.global_batch,
            crop=config.data.crop,
            augment=config.data.augment,
            rank=rank,
            world=world,
        )

    def run(self) -> None:
        """Train from the newest checkpoint, or the start, to the end."""
        settings = self.config.train
        plan = self._plan()
        steps: int = plan["steps"]
        learner = Learner(self.config, steps, self.device, self.world, plan["bf16"])
        done = self._restore(learner)
        scores = self._validate(learner, done) if done in (0, steps) else {}
        meter = _Meter(settings.global_batch, steps)
        started = time.monotonic()
        batches = self.reader.read(done, steps)
        while done < steps:
            with meter.waiting():
                batch = next(batches)
            meter.add(learner.step(done, batch.lr, batch.hr, self._micro_sizes(done)))
            done += 1
            if done % settings.log_every == 0 or done == steps:
                self._log(learner, meter, done)
            if done % settings.validate_every == 0 or done == steps:
                with meter.paused():
                    scores = self._validate(learner, done)
            if done % settings.checkpoint_every == 0 or done == steps:
                with meter.paused():
                    self._checkpoint(learner, done)
        if self.rank == 0:
            self._finish(learner, steps, {**scores, "seconds_last_session": time.monotonic() - started})

    def _plan(self) -> dict[str, Any]:
        """What was decided before the first step and holds for every resumption: read, or decided now by all ranks."""
        url = f"{self.folder}/plan.json"
        plan = [storage.read_json(url)]
        if self.world > 1:
            dist.broadcast_object_list(plan)
        if plan[0] is None:
            steps = self._steps()
            plan = [{"steps": steps, "bf16": use_bf16(self.config.train.precision, self.device)}]
            if self.world > 1:
                dist.broadcast_object_list(plan)
            if self.rank == 0:
                storage.write_json(url, plan[0])
        decided: dict[str, Any] = plan[0]
        return decided

    def _steps(self) -> int:
        amount, unit = self.config.train.length.split()
        if unit == "steps":
            return max(int(float(amount)), 1)
        if unit == "epochs":
            return max(round(float(amount) * self.order.epoch_length / self.config.train.global_batch), 1)
        return self._steps_in(60 * float(amount))

    def _steps_in(self, seconds: float) -> int:
        """Steps that fit into a time: measured on the first batches with a learner that is thrown away."""
        learner = Learner(self.config, 1000, self.device, self.world)
        times = []
        for step, batch in enumerate(self.reader.read(0, 8)):
            start = time.monotonic()
            result = learner.step(step, batch.lr, batch.hr, self._micro_sizes(step))
            learner.sum_over_ranks(result.objective)  # waits for the device and the other ranks
            times.append(time.monotonic() - start)
        start = time.monotonic()
        self._scores(learner)
        measured = torch.tensor([float(np.median(times[2:])), time.monotonic() - start])
        if self.world > 1:
            measured = measured.to(self.device)
            dist.all_reduce(measured, dist.ReduceOp.MAX)
        step_s, validation_s = measured.tolist()
        every = self.config.train.validate_every
        return max(int((seconds - 2 * validation_s) / (step_s + validation_s / every)), 1)

    def _micro_sizes(self, step: int) -> list[int]:
        settings = self.config.train
        shares = [len(self.order.share(step, settings.global_batch, r, self.world)) for r in range(self.world)]
        return micro_batches(shares, settings.micro_batch, self.rank)

    def _restore(self, learner: Learner) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            return learner.load(Path(folder))

    def _log(self, learner: Learner, meter: _Meter, done: int) -> None:
        metrics = meter.read(learner)
        if not np.isfinite(metrics["train/objective"]):
            raise UserError(
                f"the objective is {metrics['train/objective']} at step {done}: training diverged, expected a finite "
                "value; a lower train.lr or init upsampler helps"
            )
        metrics["train/lr"] = learner.optimizer.param_groups[0]["lr"]
        if self.rank == 0:
            self.journal.append("train", done, metrics)
            if meter.flush_due():
                self.journal.flush()

    def _scores(self, learner: Learner, step: int | None = None) -> tuple[dict[str, float], dict[str, str]]:
        """Score the moving average on the held-out pictures, spread over the ranks; mean in picture order."""
        learner.share_statistics()
        mine: list[tuple[int, dict[str, float], dict[str, str]]] = []
        for i in range(self.rank, len(self.patch_set.holdout_names), self.world):
            picture = self.patch_set.read_holdout(i)
            sr = scoring.upscale_picture(learner.ema, picture.lr, self.device)
            images = {}
            if step is not None and i < _SHOWN_PICTURES:
                strip = scoring.comparison_strip(picture, sr, self.config.scale)
                name = f"{i}_{storage.plain_name(picture.name)}"
                images[f"bicubic_sr_hr/{name}"] = self.journal.save_image(f"{name}-{step:09d}", strip)
            mine.append((i, asdict(scoring.score_picture(sr, picture.hr, self.config.scale)), images))
        everyone = [mine]
        if self.world > 1:
            everyone = [[] for _ in range(self.world)]
            dist.all_gather_object(everyone, mine)
        ordered = sorted((entry for part in everyone for entry in part), key=lambda entry: entry[0])
        means = scoring.mean_scores([scores for _, scores, _ in ordered])
        shown = {key: file for _, _, images in ordered for key, file in images.items()}
        return {f"val/{key}": value for key, value in means.items()}, shown

    def _validate(self, learner: Learner, done: int) -> dict[str, float]:
        metrics, images = self._scores(learner, done)
        if self.rank == 0:
            self.journal.append("validation", done, metrics, images)
            self.journal.flush()
        return metrics

    def _checkpoint(self, learner: Learner, done: int) -> None:
        if self.rank != 0:
            ray.train.report({"step": done})
            return
        self.journal.flush()
        with tempfile.TemporaryDirectory() as folder:
            learner.save(Path(folder), done)
            ray.train.report(
                {"step": done},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"checkpoint-{done:09d}",
            )

    def _finish(self, learner: Learner, steps: int, metrics: dict[str, Any]) -> None:
        weights = safetensors.torch.save(
            contiguous(learner.ema), metadata={"format": "pt", "scale": str(self.config.scale)}
        )
        storage.write(f"{self.folder}/model.safetensors", weights)
        result = {"steps": steps, "workers": self.world, "device": self.device.type, "bf16": learner.bf16, **metrics}
        storage.write_json(f"{self.folder}/result.json", result)


class _Meter:
    """Means of what was trained since the last record, and where the time went."""

    def __init__(self, batch: int, steps: int) -> None:
        self._batch, self._total = batch, steps
        self._sums: dict[str, torch.Tensor] = {}
        self._norm = torch.zeros(())
        self._count = 0
        self._waited = self._excluded = 0.0
        self._start = time.monotonic()
        self._next_flush = 0.0

    def add(self, result: Any) -> None:
        for name, value in {"objective": result.objective, **result.terms}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._norm = self._norm.to(result.gradient_norm.device) + result.gradient_norm.detach()
        self._count += 1

    def read(self, learner: Learner) -> dict[str, float]:
        """Take the means and begin anew; every rank must call it at the same step."""
        values = learner.sum_over_ranks(*self._sums.values())
        seconds = time.monotonic() - self._start - self._excluded
        metrics = {f"train/{name}": value / self._count for name, value in zip(self._sums, values, strict=True)}
        metrics["train/gradient_norm"] = float(self._norm) / self._count
        metrics["train/steps_per_s"] = self._count / seconds
        metrics["train/patches_per_s"] = self._count * self._batch / seconds
        metrics["train/data_wait_share"] = self._waited / seconds
        metrics["train/steps_total"] = float(self._total)
        self._sums, self._norm, self._count = {}, torch.zeros(()), 0
        self._waited = self._excluded = 0.0
        self._start = time.monotonic()
        return metrics

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Around waiting for data."""
        return _timed(lambda seconds: setattr(self, "_waited", self._waited + seconds))

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Around what isn't training."""
        return _timed(lambda seconds: setattr(self, "_excluded", self._excluded + seconds))

    def flush_due(self) -> bool:
        """Whether to publish the journal: every few seconds, so that files stay few."""
        if time.monotonic() < self._next_flush:
            return False
        self._next_flush = time.monotonic() + 5
        return True


@contextlib.contextmanager
def _timed(report: Callable[[float], None]) -> Any:
    start = time.monotonic()
    yield
    report(time.monotonic() - start)


if __name__ == "__main__":
    from pipeline import train as module  # by its name, so that Ray's workers import what they run

    module.main()
