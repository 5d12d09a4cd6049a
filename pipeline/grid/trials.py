"""Running a grid's cells as trials of Ray Tune, and showing how far they are."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow.fs
import ray.tune
import ray.tune.schedulers

from pipeline import storage, tracking
from pipeline.data import patchset
from pipeline.evaluation import tables
from pipeline.grid.cells import Cell, folder_of, is_untold, keep
from pipeline.settings import Config, UserError
from pipeline.storage import fingerprint
from pipeline.tracking import JournalRecord
from pipeline.training import driver, runs

_SERVER_PATIENCE_S = 600
"""How long a trial waits for MLflow before it starts; once it has, it needs no server."""


def run(config: Config, cells: Sequence[Cell], folder: str, parent: str, at_once: int) -> None:
    """Run the trials, and meanwhile print the live table."""
    settings = config.tune
    asha = settings.scheduler == "asha"
    todo = [
        i for i, cell in enumerate(cells) if cell.state == "waiting" or (is_untold(cell, parent) and not cell.recorded)
    ]
    if not todo:
        return
    jobs = [
        {
            "config": cell.config.model_dump(mode="json"),
            "patch_set": cell.patch_set.url if cell.patch_set else "",
            "parent": parent,
            "label": cell.label,
            "pass_on": folder_of(cell) if cell.state == "stopped" or cell.recorded else "",
        }
        for cell in cells
    ]
    environment = {
        "SR_HOME": config.outputs,
        "SR_CACHE": config.downloads,
        "MLFLOW_TRACKING_URI": config.tracking_uri,
    }
    scheduler = None
    if asha:
        scheduler = ray.tune.schedulers.ASHAScheduler(
            time_attr="step",
            metric=settings.metric,
            mode="max",
            max_t=max(cell.total for cell in cells) + 1,
            grace_period=settings.grace,
        )
    fs, root = fsspec.url_to_fs(f"{folder}/tune")
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(trial, jobs=jobs, environment=environment),
            {"cpu": 0, "node:__internal_head__": 0.001},  # a core held here would be one that its workers wait for
        ),
        # Finished cells pass again where a scheduler compares the others with them.
        param_space={"cell": ray.tune.grid_search(list(range(len(cells))) if asha else todo)},
        tune_config=ray.tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=at_once, reuse_actors=not asha),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            callbacks=[_Watcher(cells)],
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=0),
        ),
    )
    troubles: list[Exception] = []

    def fit() -> None:
        try:
            tuner.fit()
        except Exception as error:  # raised in the main thread
            troubles.append(error)

    # Not in the main thread: Ray Tune would take over its interrupt handler there.
    thread = threading.Thread(target=fit, name="ray-tune", daemon=True)
    thread.start()
    table = _LiveTable(cells)
    known: dict[str, int] = {}
    while thread.is_alive():
        thread.join(1.0)
        table.show()
        for cell in cells:
            keep(cell, config.new_records)
        stopped = {cell.label: cell.step for cell in cells if cell.state == "stopped"}
        if stopped != known:
            storage.write_json(stopped_url(config, folder), stopped)
            known = stopped
    table.show(final=True)
    if troubles:
        raise troubles[0]


def trial(params: dict[str, Any], jobs: list[dict[str, Any]], environment: dict[str, str]) -> None:
    """One cell; runs in an actor of Ray Tune, which holds no core: its workers do."""
    os.environ.update(environment)
    job = jobs[params["cell"]]
    config = Config(**job["config"])

    def report(record: JournalRecord) -> None:
        if record.kind in ("train", "validation"):
            ray.tune.report({"step": record.step, "kind": record.kind, **record.metrics})

    if job["pass_on"]:  # the scheduler compares the others with it
        for record in runs.history(job["pass_on"]):
            report(record)
        return
    try:
        tracking.wait_for_server(config, _SERVER_PATIENCE_S)
        trained = driver.train(config, patchset.load(job["patch_set"]), job["parent"], job["label"], report)
    except (UserError, OSError) as error:
        ray.tune.report({"mistake": str(error)})
        return
    if trained.found:
        for record in trained.history():
            report(record)


def stopped_url(config: Config, folder: str) -> str:
    """Where the cells that this scheduler stopped are noted."""
    settings = config.tune
    return f"{folder}/stopped-{fingerprint([settings.scheduler, settings.metric, settings.grace])}.json"


class _Watcher(ray.tune.Callback):  # type: ignore[misc]
    """Keeps the cells up to date; called by Ray Tune in this process."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self._of(trial)
        if cell.state == "waiting":
            cell.state = "training"

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        cell = self._of(trial)
        if "mistake" in result:
            cell.state, cell.reason = "failed", result["mistake"]
            return
        cell.step = max(cell.step, result.get("step", 0))
        cell.loss = result.get("train/objective", cell.loss)
        cell.psnr = result.get("val/psnr_y", cell.psnr)
        cell.steps_per_s = result.get("train/steps_per_s", cell.steps_per_s)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self._of(trial)
        if cell.state == "training":
            cell.state = "finished" if cell.step >= cell.total else "stopped"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self._of(trial)
        error = trial.get_pickled_error() or trial.get_error()
        cell.state, cell.reason = "failed", " ".join(str(error).split())[-400:]

    def _of(self, trial: Any) -> Cell:
        number: int = trial.config["cell"]
        return self._cells[number]


class _LiveTable:
    """Prints how far the cells are: in place on a terminal, else whenever a cell changes its state, and each minute."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells
        self._shown = ""
        self._states: list[str] = []
        self._next = 0.0

    def show(self, final: bool = False) -> None:
        states = [cell.state for cell in self._cells]
        if not final and states == self._states and time.monotonic() < self._next:
            return
        live = sys.stdout.isatty()
        self._next = time.monotonic() + (2 if live else 60)
        self._states = states
        text = self._text()
        if text == self._shown:
            return
        if live and self._shown:  # over the one before
            print(f"\x1b[{self._shown.count(chr(10)) + 1}A\x1b[J", end="")
        print(text, flush=True)
        self._shown = text

    def _text(self) -> str:
        rows = [["trial", "cell", "state", "step", "loss", "held-out PSNR (Y)", "left"]]
        for number, cell in enumerate(self._cells, start=1):
            runs = cell.state == "training" and cell.steps_per_s
            left = tables.duration((cell.total - cell.step) / cell.steps_per_s) if runs and cell.steps_per_s else ""
            loss = "" if cell.loss is None else f"{cell.loss:.5f}"
            psnr = "" if cell.psnr is None else f"{cell.psnr:.2f} dB"
            rows.append([str(number), cell.label, cell.state, f"{cell.step} of {cell.total}", loss, psnr, left])
        return tables.aligned(rows)
