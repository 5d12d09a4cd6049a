"""Train a grid's cells as trials of Ray Tune, and follow their progress.

Each trial is an actor that runs one training. Ray Tune calls `_EventQueue` from a thread of its own; the main thread
takes the events from the queue and is the only one that changes outcomes.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray.tune
import ray.tune.schedulers

from pipeline import cluster, storage, tracking
from pipeline.data import patchset
from pipeline.evaluation.scores import higher_is_better
from pipeline.grid.cells import Cell, Outcome, Outcomes, State, lacks_mlflow_run, save_record, training_folder
from pipeline.grid.events import Ended, Event, Failed, Interrupted, Progressed, Started, apply_event
from pipeline.grid.live_table import LiveTable
from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.tracking import JournalRecord
from pipeline.training import driver, runs
from pipeline.training.methods import find_method
from pipeline.training.progress import Remarks
from pipeline.training.stopping import OutOfTime, StopTraining, check_time

_SERVER_PATIENCE_S = 600
"""Seconds that a trial waits for MLflow before it starts. A running trial needs no server."""

_TRIAL_RESOURCES = {"cpu": 0, "node:__internal_head__": 0.001}
"""A trial runs on the head node and reserves no core, because its training workers reserve theirs."""


@dataclass(frozen=True)
class TrialJob:
    """Everything that a trial needs to train its cell."""

    label: str
    config: Config
    patch_set: str
    """Path or URL of the patch set."""
    parent: str
    """Id of the grid's MLflow run."""
    stop_file: str = ""
    """Path or URL of a file that the scheduler creates to stop the trial; "" if no scheduler does."""
    replay: str = ""
    """Path or URL of a training whose records the trial reports without training; "" to train."""
    stop_at: float | None = None
    """Unix time at which the training stops with a checkpoint; None for no limit."""
    per_gpu: int = 1
    """Number of trainings that share a GPU."""


def train_cells(
    config: Config,
    cells: Sequence[Cell],
    outcomes: Outcomes,
    folder: str,
    parent: str,
    at_once: int,
    stop_at: float | None = None,
    per_gpu: int = 1,
) -> None:
    """Train the cells that are not finished, and show a live table meanwhile.

    Args:
        config: settings of the grid.
        cells: the cells that can train or are finished.
        outcomes: outcomes of the cells, which this function updates.
        folder: path or URL of the grid.
        parent: id of the grid's MLflow run.
        at_once: number of trainings that run at the same time.
        stop_at: Unix time at which all trainings stop with a checkpoint; None for no limit.
        per_gpu: number of trainings that share a GPU.

    Raises:
        OutOfTime: if a training stopped at `stop_at`, or did not start because that time had passed.
    """
    todo = [
        number
        for number, cell in enumerate(cells)
        if outcomes[cell.label].state is State.WAITING or (not cell.record and lacks_mlflow_run(cell, parent))
    ]
    if not todo:
        return
    asha = config.tune.scheduler == "asha"
    jobs = [
        _make_job(cell, outcomes[cell.label], f"{folder}/stop/{number}" if asha else "", parent, stop_at, per_gpu)
        for number, cell in enumerate(cells)
    ]
    storage.remove(f"{folder}/stop")
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    tuner = _make_tuner(config, jobs, todo, max(outcomes[cell.label].total for cell in cells), folder, at_once, events)
    recorded: set[str] = set()
    stopped: dict[str, int] = {}
    interrupted = False

    def follow() -> None:
        nonlocal stopped, interrupted
        while not events.empty():
            number, event = events.get()
            interrupted |= isinstance(event, Interrupted)
            apply_event(outcomes[cells[number].label], event, time.monotonic())
        for cell in cells:
            if outcomes[cell.label].state is State.FINISHED and cell.label not in recorded:
                save_record(cell, config.new_records)
                recorded.add(cell.label)
        now = {cell.label: outcomes[cell.label].step for cell in cells if outcomes[cell.label].state is State.STOPPED}
        if now != stopped:
            storage.write_document(_stopped_url(config, folder), now)
            stopped = now
        table.update()

    with LiveTable(cells, outcomes, at_once) as table:
        cluster.run_in_thread(tuner.fit, "ray-tune", follow)
    if interrupted:
        raise OutOfTime


def read_stopped(config: Config, folder: str) -> dict[str, int]:
    """Return the cells that this grid's scheduler stopped in an earlier session, with their last steps, by label.

    Raises:
        DamagedFileError: if the file of stopped cells is damaged.
    """
    return storage.read_document(_stopped_url(config, folder), dict[str, int]) or {}


def _stopped_url(config: Config, folder: str) -> str:
    """Return the place of the stopped cells; another scheduler or other settings of it have a file of their own."""
    settings = config.tune
    name = storage.fingerprint([settings.scheduler, _metric(config), settings.grace])
    return f"{folder}/stopped-{name}.json"


def _make_job(
    cell: Cell, outcome: Outcome, stop_file: str, parent: str, stop_at: float | None, per_gpu: int
) -> TrialJob:
    replayed = cell.record is not None or outcome.state is State.STOPPED
    return TrialJob(
        cell.label,
        cell.config,
        cell.patch_set.url,
        parent,
        stop_file,
        replay=training_folder(cell) if replayed else "",
        stop_at=stop_at,
        per_gpu=per_gpu,
    )


def _make_tuner(
    config: Config,
    jobs: Sequence[TrialJob],
    todo: Sequence[int],
    steps: int,
    folder: str,
    at_once: int,
    events: queue.SimpleQueue[tuple[int, Event]],
) -> ray.tune.Tuner:
    """Make the tuner; `steps` is the number of steps of the longest cell."""
    settings = config.tune
    scheduler = None
    if settings.scheduler == "asha":
        scheduler = _Scheduler(
            stop_files=[job.stop_file for job in jobs],
            time_attr="step",
            metric=_metric(config),
            mode="max" if higher_is_better(_metric(config).removeprefix("val/")) else "min",
            max_t=steps + 1,
            grace_period=settings.grace,
        )
    fs, root = storage.locate(f"{folder}/tune")
    # A scheduler compares the cells that train with the others, so those report their records once more.
    numbers = todo if scheduler is None else list(range(len(jobs)))
    return ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(_Trial, jobs=jobs), _TRIAL_RESOURCES),
        param_space={"cell": ray.tune.grid_search(list(numbers))},
        tune_config=ray.tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=at_once, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            callbacks=[_EventQueue(events)],
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=0),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _metric(config: Config) -> str:
    """Return the validation metric that a scheduler compares."""
    return config.tune.metric or f"val/{find_method(config).selects(config)}"


class _Scheduler(ray.tune.schedulers.ASHAScheduler):  # type: ignore[misc]
    """ASHA that asks a trial to stop by creating its stop file.

    Ray Tune itself stops a trial by killing its actor. That leaves the training's cores reserved, see
    `pipeline.training.stopping`.

    Args:
        stop_files: path or URL of each cell's stop file, in the order of the cells.
        settings: arguments of Ray Tune's scheduler.
    """

    def __init__(self, stop_files: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._stop_files = stop_files

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision != ray.tune.schedulers.TrialScheduler.STOP:
            return decision
        storage.write(self._stop_files[trial.config["cell"]], b"")
        proceed: str = ray.tune.schedulers.TrialScheduler.CONTINUE
        return proceed


class _EventQueue(ray.tune.Callback):  # type: ignore[misc]
    """Puts the number of a trial's cell and an event into a queue; Ray Tune calls it in its own thread."""

    def __init__(self, events: queue.SimpleQueue[tuple[int, Event]]) -> None:
        self._events = events

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the queue when Ray Tune saves the experiment, which is never restored from there."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._put(trial, Started())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        if "error" in result:
            self._put(trial, Failed(result["error"]))
        elif "interrupted" in result:
            self._put(trial, Interrupted())
        elif "step" in result:
            loss, psnr = result.get("train/objective"), result.get("val/psnr_y")
            self._put(trial, Progressed(result["step"], loss, psnr, result["earlier"], result["remark"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._put(trial, Ended())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error() or "its process ended"
        self._put(trial, Failed(one_line(error, 10**6)[-400:]))

    def _put(self, trial: Any, event: Event) -> None:
        self._events.put((trial.config["cell"], event))


_Report = tuple[JournalRecord, bool]
"""A record, and True if an earlier session made it."""


class _Trial(ray.tune.Trainable):  # type: ignore[misc]
    """Trains one cell; Ray Tune runs it in an actor and calls `step` for each report."""

    def setup(self, config: Mapping[str, Any], jobs: Sequence[TrialJob]) -> None:
        self._jobs = jobs
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Return the next report of the training; the last one has {"done": True}, and an error if there is one."""
        if self._job.stop_file and storage.exists(self._job.stop_file) and self._training.stop():
            return {"done": True}
        try:
            report = self._training.next_report()
        except (UserError, OSError) as error:
            return {"done": True, "error": str(error)}
        except Exception as error:  # Ray Tune itself would only say that the trial has failed
            traceback.print_exc()
            return {"done": True, "error": f"{type(error).__name__}: {one_line(error, 10**6)[-400:]}"}
        if report is None:
            return {"done": True, "interrupted": True} if self._training.interrupted else {"done": True}
        record, earlier = report
        remark = self._remarks.take(record, earlier) if record.kind == "train" else ""
        return {"step": record.step, "kind": record.kind, "earlier": earlier, "remark": remark, **record.metrics}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._training.stop()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._training.stop()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._job = self._jobs[config["cell"]]
        self._training = _BackgroundTraining(self._job)
        self._remarks = Remarks(find_method(self._job.config).remark)


class _BackgroundTraining:
    """The training of a trial, in a thread of its own."""

    def __init__(self, job: TrialJob) -> None:
        self._job = job
        self._reports: queue.SimpleQueue[_Report | None] = queue.SimpleQueue()  # None follows the last one
        self._error: Exception | None = None
        self._stopped = False
        self.interrupted = False
        """True if the training has ended because the time of the command is over."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next_report(self) -> _Report | None:
        """Wait for the next record of a validation or of training steps; return None after the last one.

        Raises:
            Exception: the exception that ended the training.
        """
        while True:
            report = self._reports.get()
            if report is None:
                if self._error:
                    raise self._error
                return None
            if report[0].kind in ("train", "validation"):
                return report

    def stop(self) -> bool:
        """End the training, if it still runs, and wait until its cores are free.

        Returns:
            False if it had already ended by itself.
        """
        self._stopping.set()
        self._thread.join()
        return self._stopped

    def _run(self) -> None:
        try:
            self._put(self._train(), earlier=True)
        except StopTraining:
            self._stopped = True
        except OutOfTime:
            self.interrupted = True
        except Exception as error:
            self._error = error
        self._reports.put(None)

    def _put(self, records: Sequence[JournalRecord], earlier: bool) -> None:
        for record in records:
            self._reports.put((record, earlier))

    def _train(self) -> Sequence[JournalRecord]:
        """Train, and return the records that a training which was finished before has left."""
        job = self._job
        if job.replay:
            return runs.read_history(job.replay)
        check_time(job.stop_at)
        tracking.wait_for_server(job.config, _SERVER_PATIENCE_S)
        trained = driver.train(
            job.config,
            patchset.load(job.patch_set),
            job.parent,
            job.label,
            watch=self._put,
            should_stop=self._stopping.is_set,
            stop_at=job.stop_at,
            per_gpu=job.per_gpu,
        )
        return trained.history() if trained.found else []
