"""Train SRResNet on a patch set: Ray Train runs the same loop on every worker, DDP joins their gradients.

`python -m pipeline.train --config FILE` makes the patch set if need be, trains, and prints where the weights lie. The
same command goes on after an interruption, and only says what it found when the training is finished.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs

from pipeline import cluster, features, planning, preprocess, sources, storage
from pipeline.commandline import command, parse_with
from pipeline.config import Config, UserError, fingerprint
from pipeline.learner import build_network, learning_rate
from pipeline.patchset import PatchSet
from pipeline.tracking import Forwarder, JournalReader, Record, TrackedRun, Tracker
from pipeline.worker import sample_order, train_loop

import ray.train  # after `cluster`, which sets what Ray reads when it is imported
import ray.train.torch

ALGORITHM = 2
"""Version of what the same configuration trains to; part of a training's name."""

_NOT_SHAPING = {
    "data": {"hold", "hold_mb", "scratch"},
    "train": {"validate_every", "checkpoint_every", "log_every", "keep", "memory_mb", "recompute", "max_skipped"},
}


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.train`."""
    dry_run = {"--dry-run": "plan and measure, print the plan, and train nothing"}
    config, flags = parse_with(dry_run, argv, "train", "Train SRResNet.")
    patch_set, _ = preprocess.prepare(config)
    if flags:
        print(describe_plan(config, patch_set))
        return
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
    tracked: list[str]
    """Ids of the MLflow runs below which MLflow has all of it; "" for none above."""

    @property
    def weights(self) -> str:
        """The moving average's weights, .safetensors."""
        return f"{self.folder}/model.safetensors"

    @property
    def seconds(self) -> float:
        """Time of all sessions, from the workers' start to the last record; steps that were made again count twice."""
        times = sorted((int(record["time"]), record["kind"] == "session") for record in self.history())
        return sum((b - a) / 1000 for (a, _), (b, begins) in itertools.pairwise(times) if not begins)

    def history(self) -> list[Record]:
        """The journal's records in order of steps."""
        return history(self.folder)


def training_name(config: Config, patch_set: PatchSet) -> str:
    """Name of a training by all that shapes its weights; how it is run (workers, cadence) does not."""
    norm = "bn" if config.model.batch_norm else "nobn"
    mark = fingerprint(identity(config, patch_set.name))
    return f"{config.name}-x{config.scale}-{norm}-{'+'.join(config.train.loss)}-{mark}"


def identity(config: Config, patch_set: str) -> dict[str, Any]:
    """What shapes a training's weights on a patch set of this name, files by their content.

    Raises:
        UserError: if a file isn't there.
    """
    shaped = shaping(config, patch_set)
    if "perceptual" in config.train.loss:
        shaped["train"]["perceptual"]["weights"] = features.identity(config.train.perceptual)
    if config.train.init_from:
        weights = storage.read(config.train.init_from)
        if weights is None:
            raise UserError(f"train.init_from is {config.train.init_from}, expected an existing .safetensors file")
        shaped["train"]["init_from"] = hashlib.sha256(weights).hexdigest()
    return shaped


def shaping(config: Config, patch_set: str) -> dict[str, Any]:
    """What shapes a training's weights on a patch set of this name, files that it reads by their names."""
    settings: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "patch_set": patch_set,
        "data": config.data.model_dump(mode="json", exclude=_NOT_SHAPING["data"]),
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=_NOT_SHAPING["train"]),
    }
    if "perceptual" not in config.train.loss:
        del settings["train"]["perceptual"]
    return settings


def is_same(known: dict[str, Any], known_config: Config, config: Config, patch_set: str) -> bool:
    """Whether a training that was made elsewhere is the one that a configuration describes.

    Settings that there were not yet have their defaults. Files are compared by content, and taken for the same where
    the configuration's aren't at hand.

    Args:
        known: the other's `identity`.
        known_config: its configuration, whose files may be elsewhere.
        config: the configuration.
        patch_set: name of its patch set.
    """
    theirs, mine = shaping(known_config, known["patch_set"]), shaping(config, patch_set)
    theirs["algorithm"] = known["algorithm"]
    try:
        contents = known["train"], identity(config, patch_set)["train"]
    except UserError:  # nobody can tell: both have some file, or both none
        contents = {}, {}
    for settings, content in zip((theirs["train"], mine["train"]), contents, strict=True):
        settings["init_from"] = content.get("init_from") if content else settings["init_from"] is not None
        if "perceptual" in settings:
            settings["perceptual"]["weights"] = content["perceptual"]["weights"] if content else ""
    return theirs == mine


def history(folder: str) -> list[Record]:
    """The records of a training, finished or not, in order of steps."""
    return sorted(JournalReader(f"{folder}/journal").new(), key=lambda record: int(record["step"]))


def find(config: Config, patch_set: PatchSet) -> Trained | None:
    """The finished training that the configuration describes, if there is one."""
    return find_at(f"{config.outputs}/trainings/{training_name(config, patch_set)}")


def find_at(folder: str) -> Trained | None:
    """The finished training in a folder, if there is one."""
    result = storage.read_json(f"{folder}/result.json")
    if not result:
        return None
    tracked = storage.read_json(f"{folder}/tracked.json") or []
    return Trained(folder.rpartition("/")[2], folder, result, found=True, tracked=tracked)


def train(
    config: Config,
    patch_set: PatchSet,
    parent: str = "",
    cell: str = "",
    watch: Callable[[Record], None] | None = None,
) -> Trained:
    """Train to the end, or find that it was done; goes on from the newest checkpoint.

    Args:
        config: the pipeline's configuration.
        patch_set: what to train and validate on.
        parent: MLflow run of the workflow or grid.
        cell: short name of a grid's cell.
        watch: called with the journal's records as they come, those of earlier sessions first.

    Raises:
        UserError: if configuration and patch set don't fit, or training diverged.
    """
    name = training_name(config, patch_set)
    folder = f"{config.outputs}/trainings/{name}"
    finished = find(config, patch_set)
    if finished and finished.tracked and (not parent or parent in finished.tracked):
        return finished
    sample_order(config, patch_set)  # refuses what doesn't fit before anything starts
    if not finished:
        cluster.connect_ahead(config)
    with Tracker(config).run(folder, cell or name, tags(config, patch_set.name, cell), parent) as run:
        forwarder = Forwarder(f"{folder}/journal", run)
        if run.new or not finished:
            run.describe(parameters(config), config)
            run.log_dataset(
                ",".join(Path(source).name or source for source in config.source),
                patch_set.name,
                patch_set.url,
                {"pictures": len(patch_set.pictures), "tiles": sum(patch_set.row_groups)},
            )
        if not finished:
            _fit(config, patch_set, folder, name, forwarder, watch or _Progress().show)
        trained = find(config, patch_set)
        if trained is None:
            raise UserError(f"training {folder} ended without a result, expected result.json: run it again")
        sent = _hand_over(trained, run, forwarder)
    if sent and run.ended:
        storage.write_json(f"{folder}/tracked.json", [*trained.tracked, parent])
    return replace(trained, found=finished is not None)


def tags(config: Config, patch_set: str, cell: str = "") -> dict[str, str]:
    """Tags of a training's MLflow run.

    Args:
        config: the training's.
        patch_set: its name.
        cell: short name of a grid's cell.
    """
    return {
        "stage": "train",
        "scale": str(config.scale),
        "batch_norm": str(config.model.batch_norm),
        "loss": "+".join(config.train.loss),
        "patch_set": patch_set,
        **({"cell": cell} if cell else {}),
    }


def parameters(config: Config) -> dict[str, Any]:
    """What shapes a training, by dotted keys: the parameters of its MLflow run."""
    flat: dict[str, Any] = {"scale": config.scale}
    for section in ("preprocess", "data", "model", "train"):
        flat.update({f"{section}.{key}": value for key, value in getattr(config, section).model_dump().items()})
    return flat


def track(trained: Trained, config: Config, run_tags: dict[str, str], tracker: Tracker, parent: str, cell: str) -> None:
    """Make an MLflow run of a training that was finished elsewhere.

    Args:
        trained: the training.
        config: its configuration.
        run_tags: from `tags`, and more.
        tracker: where to.
        parent: MLflow run of the grid.
        cell: short name of its cell.
    """
    with tracker.run(trained.folder, cell, run_tags, parent) as run:
        run.describe(parameters(config), config)
        sent = _hand_over(trained, run, Forwarder(f"{trained.folder}/journal", run))
    if sent and run.ended:
        storage.write_json(f"{trained.folder}/tracked.json", [*trained.tracked, parent])


def _hand_over(trained: Trained, run: TrackedRun, forwarder: Forwarder) -> bool:
    """Send what MLflow doesn't have yet of a finished training; whether all of it arrived."""
    numbers = {key: value for key, value in trained.result.items() if type(value) in (int, float)}
    final = {f"final/{key}": value for key, value in numbers.items()}
    weights = storage.read(trained.weights)
    assert weights is not None
    return forwarder.drain() and run.log_metrics(final) and run.log_file(weights, "model/model.safetensors")


def _fit(
    config: Config,
    patch_set: PatchSet,
    folder: str,
    name: str,
    forwarder: Forwarder,
    watch: Callable[[Record], None],
) -> None:
    """Run Ray Train, and meanwhile forward the journal."""
    trainer = _trainer(features.prepare(config), patch_set, folder, name)
    outcome: list[dict[str, Any] | Exception] = []
    # Not in the main thread: Ray Train would take over its interrupt handler there.
    thread = threading.Thread(target=lambda: outcome.append(_outcome(trainer)), name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
        for record in forwarder.pump():
            watch(record)
    _plan_of(outcome[0], folder)


def _trainer(
    config: Config, patch_set: PatchSet, folder: str, name: str, dry_run: bool = False
) -> ray.train.torch.TorchTrainer:
    cluster.connect(config)
    workers, resources = cluster.training_resources(config)
    for key, value in (("data.lanes", config.data.lanes), ("train.global_batch", config.train.global_batch)):
        if value < workers:
            raise UserError(f"{key} is {value}, expected at least the number of workers, {workers}")
    shown = config.evaluate.benchmarks if config.evaluate.while_training else {}
    benchmarks = {
        name: [(p.name, p.hr, p.lr) for p in sources.find_benchmark(name, source, config.scale, config.downloads)]
        for name, source in shown.items()
    }
    fs, root = fsspec.url_to_fs(f"{config.outputs}/trainings")
    fewest = config.cluster.min_workers
    return ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "patch_set": patch_set.url,
            "folder": folder,
            "benchmarks": benchmarks,
            "threads": int(resources["CPU"]),
            "dry_run": dry_run,
        },
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.cluster.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(fewest, workers) if fewest else workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=config.cluster.resize_s,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=2
            ),
        ),
    )


def _outcome(trainer: ray.train.torch.TorchTrainer) -> dict[str, Any] | Exception:
    try:
        returned: dict[str, Any] = trainer.fit().return_value
        return returned
    except Exception as error:  # to be told apart in the main thread
        return error


def _plan_of(outcome: dict[str, Any] | Exception, folder: str) -> dict[str, Any]:
    if isinstance(outcome, ray.train.TrainingFailedError):
        failures = getattr(outcome, "worker_failures", None) or {0: outcome}
        rank, failure = min(failures.items())
        raise UserError(
            f"training failed: worker {rank}: {' '.join(str(failure).split())[-400:]}; expected no more than "
            f"cluster.max_failures lost workers; the same command goes on from the newest checkpoint in {folder}"
        ) from outcome
    if isinstance(outcome, Exception):
        raise outcome
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    plan: dict[str, Any] = outcome["plan"]
    return plan


def describe_plan(config: Config, patch_set: PatchSet) -> str:
    """Plan the training on the cluster without making it: what is known, and what a few measured steps tell."""
    folder = f"{config.outputs}/trainings/{training_name(config, patch_set)}"
    order = sample_order(config, patch_set)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Config(**{**features.prepare(config).model_dump(), "home": scratch})
        trainer = _trainer(trial, patch_set, folder, "dry-run", dry_run=True)
        outcome = _outcome(trainer)
    plan = planning.Plan(**_plan_of(outcome, folder))
    workers, resources = cluster.training_resources(config)
    settings, gpu = config.train, "GPU" in resources
    share = max(order.shares(0, settings.global_batch, workers))
    micro = min(plan.micro_batch, share)
    parameters = sum(p.numel() for p in build_network(config.scale, config.model, 0).parameters())
    epoch = order.epoch_length
    assert plan.step_s is not None
    assert plan.memory_mb is not None
    span = f"the {micro * workers} patches of a micro-step" if gpu else f"a worker's micro-batch of {micro}"
    length = plan.steps * settings.global_batch / epoch
    facts = {
        "network": f"SRResNet x{config.scale}, {parameters:,} parameters",
        "patch set": f"{patch_set.url}: {sum(patch_set.row_groups):,} tiles of {patch_set.tile}",
        "an epoch": f"{epoch:,} patches of {config.data.crop}, {epoch / settings.global_batch:.1f} steps",
        "length": f"{plan.steps:,} steps of global batch {settings.global_batch}: {length:.2f} epochs",
        "workers": f"{workers} on {'GPU' if gpu else 'CPU'}, {int(resources['CPU'])} cores each",
        "micro-batch": f"{micro}{' (found)' if settings.micro_batch == 'auto' else ''}, accumulated "
        f"{-(-share // micro)} times by each worker",
        "BatchNorm": f"statistics span {span}" if config.model.batch_norm else "none",
        "learning rate": f"{learning_rate(round(settings.warmup * plan.steps), plan.steps, settings):.2e} at its peak",
        "computed in": f"{'bf16' if plan.bf16 else 'fp32'}{', compiled' if plan.compiled else ''}"
        f"{', activations recomputed' if settings.recompute else ''}",
        "memory": f"about {plan.memory_mb:,.0f} MB a worker",
        "a step": f"{plan.step_s:.2f} s, {settings.global_batch / plan.step_s:.1f} patches/s (measured, not compiled)",
        "time": f"about {duration(plan.steps * plan.step_s)}, validation and start not included",
        "training": folder,
    }
    return "\n".join(f"{key:14}{value}" for key, value in facts.items())


def duration(seconds: float) -> str:
    """As it is printed."""
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


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
        elif record["kind"] == "session":
            workers = f"{metrics['train/workers']:.0f} workers"
            print(f"train: {f'going on from step {step}' if step else 'starting'} with {workers}", flush=True)
        elif record["kind"] == "skipped":
            culprit = next(iter(metrics)).removeprefix("skipped/")
            print(f"train: step {step} skipped: {culprit} not finite", flush=True)
        elif record["kind"] == "train" and "train/objective" in metrics and time.monotonic() >= self._next:
            self._next = time.monotonic() + 10
            total, rate = metrics["train/steps_total"], metrics["train/steps_per_s"]
            print(
                f"train: step {step} of {total:.0f}, loss {metrics['train/objective']:.5f}, "
                f"lr {metrics['train/lr']:.1e}, {metrics['train/patches_per_s']:.1f} patches/s, "
                f"about {(total - step) / rate / 60:.1f} min left{self._psnr}",
                flush=True,
            )


if __name__ == "__main__":
    from pipeline import train as module  # by its name, so that Ray's workers import what they run

    module.main()
