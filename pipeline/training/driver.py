"""Running a training from the driver: Ray Train runs the workers, the driver forwards their journal to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray.train
import ray.train.torch

from pipeline import cluster, storage, tracking
from pipeline.data import benchmark_sets
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.tracking import Forwarder, JournalRecord, TrackedRun, Tracker
from pipeline.training.methods import find_method
from pipeline.training.planning import Plan
from pipeline.training.progress import Progress
from pipeline.training.runs import Trained, find_training, open_training, training_folder
from pipeline.training.stopping import StoppableTrainer, StopTraining
from pipeline.training.worker import LoopResult, TrainJob, sample_order, train_loop


def train(
    config: Config,
    patch_set: PatchSet,
    parent: str = "",
    cell: str = "",
    watch: Callable[[JournalRecord], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train to the end, resuming from the newest checkpoint; a finished training is found and returned.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set for training and validation.
        parent: id of the MLflow run of the workflow or grid.
        cell: label of a grid's cell.
        watch: called with each record of the journal, including those of earlier sessions; it prints progress by
            default.
        should_stop: called about once a second; when it returns True, the training ends and frees its cores.

    Raises:
        UserError: if the configuration does not fit the patch set or the cluster, or training diverged.
        StopTraining: if `should_stop` returned True before the training ended.
    """
    find_method(config)
    folder = training_folder(config, patch_set)
    finished = find_training(config, patch_set)
    if finished and finished.tracked and (not parent or parent in finished.tracked):
        return finished
    sample_order(config, patch_set)  # raises if they do not fit, before anything starts
    if not finished:
        cluster.connect_ahead(config)
    name = folder.rpartition("/")[2]
    with Tracker(config).run(folder, cell or name, run_tags(config, patch_set.name, cell), parent) as run:
        forwarder = Forwarder(f"{folder}/journal", run)
        if run.new or not finished:
            run.describe(run_parameters(config), config)
            run.log_dataset(
                ",".join(Path(source).name or source for source in config.source),
                patch_set.name,
                patch_set.url,
                {"images": len(patch_set.images), "tiles": sum(patch_set.row_groups)},
            )
        if not finished:
            _fit(config, patch_set, folder, forwarder, watch or Progress().show, should_stop or (lambda: False))
        trained = find_training(config, patch_set)
        if trained is None:
            raise UserError(f"training {folder} ended without a result, expected result.json: rerun the command")
        complete = _send_rest(trained, run, forwarder)
    if complete and run.ended:
        tracking.mark_as_tracked(trained.folder, parent)
    return replace(trained, found=finished is not None)


def track_finished(
    trained: Trained, config: Config, tags: dict[str, str], tracker: Tracker, parent: str, cell: str
) -> None:
    """Make an MLflow run of a training that was finished elsewhere.

    Args:
        trained: the training.
        config: its configuration.
        tags: tags of the run.
        tracker: the MLflow store.
        parent: id of the MLflow run of the grid.
        cell: label of its cell.
    """
    with tracker.run(trained.folder, cell, tags, parent) as run:
        run.describe(run_parameters(config), config)
        complete = _send_rest(trained, run, Forwarder(f"{trained.folder}/journal", run))
    if complete and run.ended:
        tracking.mark_as_tracked(trained.folder, parent)


def run_tags(config: Config, patch_set: str, cell: str = "") -> dict[str, str]:
    """Tags of a training's MLflow run.

    Args:
        config: the training's configuration.
        patch_set: name of its patch set.
        cell: label of a grid's cell.
    """
    return {
        "stage": "train",
        "scale": str(config.scale),
        "network": config.model.name,
        "variant": config.model.label,
        "method": config.train.method,
        "loss": "+".join(config.train.loss),
        "patch_set": patch_set,
        **({"cell": cell} if cell else {}),
    }


def run_parameters(config: Config) -> dict[str, Any]:
    """Parameters of a training's MLflow run: all that shapes the training, by dotted keys."""
    flat: dict[str, Any] = {"scale": config.scale}
    for section in ("preprocess", "data", "model", "train"):
        flat.update({f"{section}.{key}": value for key, value in getattr(config, section).model_dump().items()})
    return flat


def _send_rest(trained: Trained, run: TrackedRun, forwarder: Forwarder) -> bool:
    """Send what MLflow does not have yet of a finished training, and tell whether all of it arrived."""
    result = trained.result
    final: dict[str, float] = {
        "steps": result.steps,
        "workers": result.workers,
        "threads": result.threads,
        "micro_batch": result.micro_batch,
        "skipped": result.skipped,
        "seconds_last_session": result.seconds_last_session,
        **result.metrics,
    }
    weights = storage.read(trained.weights)
    assert weights is not None
    return (
        forwarder.forward_rest()
        and run.log_metrics({f"final/{key}": value for key, value in final.items()})
        and run.log_file(weights, "model/model.safetensors")
    )


def _fit(
    config: Config,
    patch_set: PatchSet,
    folder: str,
    forwarder: Forwarder,
    watch: Callable[[JournalRecord], None],
    should_stop: Callable[[], bool],
) -> None:
    """Run Ray Train, and meanwhile forward the journal."""
    trainer = make_trainer(features.prepare_terms(config), patch_set, folder)

    def forward() -> None:
        for record in forwarder.forward_new():
            watch(record)
        if should_stop() and open_training(folder) is None:
            trainer.stop()
            raise StopTraining(f"training {folder} was stopped")

    cluster.run_in_thread(lambda: run_trainer(trainer, folder), "ray-train", forward)


def make_trainer(config: Config, patch_set: PatchSet, folder: str, plan_only: bool = False) -> StoppableTrainer:
    """Make the trainer of a training, or one that only plans.

    Raises:
        UserError: if the cluster has too little room, or a setting does not fit the number of workers.
    """
    cluster.connect(config)
    workers, resources = cluster.training_resources(config)
    for key, value in (("data.lanes", config.data.lanes), ("train.global_batch", config.train.global_batch)):
        if value < workers:
            raise UserError(f"{key} is {value}, expected at least the number of workers, {workers}")
    shown = config.evaluate.benchmarks if config.evaluate.while_training else {}
    job = TrainJob(
        config=config,
        patch_set=patch_set.url,
        folder=folder,
        threads=int(resources["CPU"]),
        benchmarks={
            name: benchmark_sets.list_images(name, source, config.scale, config.downloads)
            for name, source in shown.items()
        },
        plan_only=plan_only,
    )
    fs, root = fsspec.url_to_fs(f"{config.outputs}/trainings")
    fewest = config.cluster.min_workers
    return StoppableTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.cluster.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(fewest, workers) if fewest else workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=config.cluster.resize_s,
        ),
        run_config=ray.train.RunConfig(
            name="dry-run" if plan_only else folder.rpartition("/")[2],
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=2
            ),
        ),
    )


def run_trainer(trainer: StoppableTrainer, folder: str) -> Plan:
    """Run a trainer to its end, and return the plan that the workers followed.

    Raises:
        UserError: for a mistake that the workers found, or if more workers failed than the configuration allows.
    """
    try:
        result: LoopResult = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        rank, failure = min(failures.items())
        raise UserError(
            f"training failed: worker {rank}: {one_line(failure, 10**6)[-400:]}; expected no more than "
            f"cluster.max_failures lost workers; rerun the command to resume from the newest checkpoint in {folder}"
        ) from error
    if result.mistake:
        raise UserError(result.mistake)
    assert result.plan is not None
    return result.plan
