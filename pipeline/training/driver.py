"""Train SRResNet on a patch set: Ray Train runs the same loop on every worker, DDP joins their gradients.

`python -m pipeline.train --config FILE` makes the patch set if need be, trains, and prints where the weights lie. The
same command goes on after an interruption, and only says what it found when the training is finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray.train  # after `cluster`, which sets what Ray reads when it is imported
import ray.train.torch

from pipeline import cluster, storage
from pipeline.data import sources
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.settings import Config, UserError
from pipeline.tracking import Forwarder, JournalRecord, TrackedRun, Tracker
from pipeline.training.progress import _Progress
from pipeline.training.runs import Trained, find, training_name
from pipeline.training.worker import sample_order, train_loop


def train(
    config: Config,
    patch_set: PatchSet,
    parent: str = "",
    cell: str = "",
    watch: Callable[[JournalRecord], None] | None = None,
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
                {"images": len(patch_set.images), "tiles": sum(patch_set.row_groups)},
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
    watch: Callable[[JournalRecord], None],
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
