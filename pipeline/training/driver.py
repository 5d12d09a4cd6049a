"""Running a training from the driver: Ray Train runs the workers, the driver forwards their journal to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pyarrow.fs
import ray.train
import ray.train.torch

from pipeline import cluster, storage, terminal, tracking
from pipeline.data import benchmark_sets
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.settings import Config, UserError
from pipeline.settings.places import ray_address
from pipeline.storage import one_line
from pipeline.tracking import Forwarder, TrackedRun, Tracker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.description import log_patch_set, run_parameters, run_tags
from pipeline.training.figures import show_figures
from pipeline.training.initial import check_initial, locate_initial, store_initial
from pipeline.training.job import LoopResult, TrainJob
from pipeline.training.methods import find_method
from pipeline.training.planning import Plan, describe_imbalance, sample_order
from pipeline.training.preflight import check_gpus
from pipeline.training.progress import Watch, show_progress
from pipeline.training.runs import Trained, find_training, missing_weights, open_training, training_folder
from pipeline.training.stopping import PERMANENT, OutOfTime, StopTraining, check_time
from pipeline.training.trainer import Patience, StoppableTrainer
from pipeline.training.worker import train_loop


def train(
    config: Config,
    patch_set: PatchSet,
    parent: str = "",
    cell: str = "",
    watch: Watch | None = None,
    should_stop: Callable[[], bool] | None = None,
    stop_at: float | None = None,
    per_gpu: int = 1,
) -> Trained:
    """Train to the end, resuming from the newest checkpoint; a finished training is found and returned.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set for training and validation.
        parent: id of the MLflow run of the workflow or grid.
        cell: label of a grid's cell.
        watch: called with the records of the journal, first with those of earlier sessions; by default the progress is
            shown on the screen.
        should_stop: called about once a second; when it returns True, the training ends and frees its cores.
        stop_at: Unix time at which the training stops with a checkpoint; None for no limit.
        per_gpu: number of trainings that share a GPU.

    Raises:
        UserError: if the configuration does not fit the patch set or the cluster, or training diverged.
        DamagedShardError: if a shard of the patch set is missing or incomplete.
        StopTraining: if `should_stop` returned True before the training ended.
        OutOfTime: if the training stopped at `stop_at`, or did not start because that time had passed.
    """
    kind = find_method(config)
    described, config = config, locate_initial(config)
    folder = training_folder(config, patch_set)
    finished = find_training(config, patch_set)
    if finished and finished.tracked and (not parent or parent in finished.tracked):
        return finished
    sample_order(config, patch_set)  # raises if they do not fit, before anything starts
    name = folder.rpartition("/")[2]
    with _say_when_stopped(config, watch is None):
        if not finished:
            check_time(stop_at)
            patch_set.require_shards()
            cluster.connect_ahead(config)
        with Tracker(config).run(folder, cell or name, run_tags(config, patch_set.name, cell), parent) as run:
            forwarder = Forwarder(f"{folder}/journal", run)
            if run.new or not finished:
                run.describe(run_parameters(described, cell), described)
                log_patch_set(run, config, patch_set)
            if not finished:
                check_initial(config)
                _write_settings(described, folder)
                # Workers' output is not shown, so damaged checkpoints are reported here.
                Checkpoints(f"{folder}/checkpoints", 1).restore()
                prepared = store_initial(features.prepare_terms(config), folder)
                trainer = make_trainer(prepared, patch_set, folder, stop_at, per_gpu, checked=bool(cell))
                with show_progress(folder, kind.remark) if watch is None else nullcontext(watch) as told:
                    _fit(
                        trainer,
                        folder,
                        forwarder,
                        told,
                        should_stop or (lambda: False),
                        config.tracking.system_metrics,
                    )
            trained = find_training(config, patch_set)
            if trained is None:
                raise UserError(f"training {folder} ended without a result, expected result.json: rerun the command")
            with terminal.stage("", "sending the rest of the training to MLflow"):
                complete = _send_rest(trained, config, run, forwarder)
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
        run.describe(run_parameters(config, cell), config)
        complete = _send_rest(trained, config, run, Forwarder(f"{trained.folder}/journal", run))
    if complete and run.ended:
        tracking.mark_as_tracked(trained.folder, parent)


def _send_rest(trained: Trained, config: Config, run: TrackedRun, forwarder: Forwarder) -> bool:
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
    if weights is None:
        raise missing_weights(trained.folder)
    return (
        forwarder.forward_rest()
        and run.log_metrics({f"final/{key}": value for key, value in final.items()})
        and run.log_model(tracking.describe_model(config, trained.name, weights, result.metrics))
    )


def _write_settings(config: Config, folder: str) -> None:
    """Write config.yaml, the settings of the first session, for people; the training reads it nowhere."""
    url = f"{folder}/config.yaml"
    if not storage.exists(url):
        storage.write(url, storage.redact(config.to_yaml()).encode())


@contextmanager
def _say_when_stopped(config: Config, shown: bool) -> Iterator[None]:
    """Print a line if the block ends because its time is over, and `shown` is true."""
    try:
        yield
    except OutOfTime as stopped:
        if shown:
            print(stopped.sentence(config), flush=True)
        raise


def _fit(
    trainer: StoppableTrainer,
    folder: str,
    forwarder: Forwarder,
    watch: Watch,
    should_stop: Callable[[], bool],
    system_metrics: bool,
) -> None:
    """Run Ray Train, and meanwhile forward the journal and, if `system_metrics`, how busy this machine is."""
    watch(forwarder.read_new(), True)
    name = folder.rpartition("/")[2]

    def forward() -> None:
        new = forwarder.forward_new()
        watch(new, False)
        show_figures(name, new, forwarder.backlog)
        if system_metrics:
            forwarder.forward_system_metrics()
        if should_stop() and open_training(folder) is None:
            trainer.stop()
            raise StopTraining(f"training {folder} was stopped")

    try:
        cluster.run_in_thread(lambda: run_trainer(trainer, folder), "ray-train", forward)
    finally:
        cluster.metrics.show_pause(name)


def make_trainer(
    config: Config,
    patch_set: PatchSet,
    folder: str,
    stop_at: float | None = None,
    per_gpu: int = 1,
    *,
    checked: bool = False,
    plan_only: bool = False,
) -> StoppableTrainer:
    """Make the trainer of a training, or one that only plans, when the cluster has room for its workers.

    Args:
        config: the pipeline's configuration, with prepared weights.
        patch_set: the patch set for training and validation.
        folder: path or URL of the training.
        stop_at: Unix time at which the training stops with a checkpoint; None for no limit.
        per_gpu: number of trainings that share a GPU.
        checked: true if the GPUs of the cluster were checked before.
        plan_only: true to plan and measure without training.

    Raises:
        UserError: if the cluster has too little room, a setting does not fit the number of workers, or torch cannot
            train on a GPU of the cluster.
    """
    cluster.connect(config)
    cluster.wait_for_workers(config)
    workers, resources = cluster.training_resources(config, per_gpu)
    for key, value in (("data.lanes", config.data.lanes), ("train.global_batch", config.train.global_batch)):
        if value < workers:
            raise UserError(f"{key} is {value}, expected at least the number of workers, {workers}")
    if warning := describe_imbalance(config.data.lanes, config.cluster.min_workers or workers, workers):
        storage.report_once(warning)
    if "GPU" in resources and not checked:
        check_gpus(config, workers)
    shown = config.evaluate.benchmarks if config.evaluate.while_training else {}
    job = TrainJob(
        config=config,
        patch_set=patch_set.url,
        folder=folder,
        threads=int(resources["CPU"]),
        benchmarks={
            name + config.evaluate.degradation.label: benchmark_sets.list_images(
                name, source, config.scale, config.downloads
            )
            for name, source in shown.items()
        },
        plan_only=plan_only,
        stop_at=stop_at,
        log=terminal.log_context(),
    )
    fs, root = storage.locate(f"{config.outputs}/trainings")
    fewest = config.cluster.min_workers
    return StoppableTrainer(
        train_loop,
        patience=Patience(config.cluster.wait_s, cluster.read_growth().managed) if ray_address(config) else None,
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
        OutOfTime: if the training stopped because its time was over.
    """
    try:
        result: LoopResult = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        if permanent := next((failure for failure in failures.values() if isinstance(failure, PERMANENT)), None):
            raise UserError(f"training {folder} stopped: {permanent}") from error
        rank, failure = min(failures.items(), key=lambda item: item[0])
        if isinstance(error, ray.train.ControllerError):
            raise UserError(
                f"training {folder} ends, because Ray Train cannot start its workers ({one_line(failure, 400)}): "
                "expected nodes with room for them within cluster.wait_s; rerun the command to resume from the newest "
                "checkpoint"
            ) from error
        expected = "" if isinstance(failure, OSError) else "expected no more than cluster.max_failures lost workers; "
        raise UserError(
            f"training failed: worker {rank}: {one_line(failure, 10**6)[-400:]}; {expected}rerun the command to resume "
            f"from the newest checkpoint in {folder}"
        ) from error
    if result.mistake:
        raise UserError(result.mistake)
    assert result.plan is not None
    if result.stopped_at is not None:
        raise OutOfTime(result.stopped_at, result.plan.steps)
    return result.plan
