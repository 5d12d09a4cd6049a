"""A grid of trainings with Ray Tune: by default BatchNorm yes or no x MSE or perceptual loss.

`python -m pipeline.tune --config configs/grid.yaml` prints its plan, trains every cell with the same steps, samples and
schedule, as many at once as the cluster holds, and compares them: a table, a report and MLflow. The same command goes
on after an interruption, each cell from its newest checkpoint.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow.fs
import torch

from pipeline import cluster, comparison, evaluate, features, patchset, preprocess, sources, storage, tracking, train
from pipeline.config import Config, UserError, command, fingerprint, parse_with, with_values
from pipeline.patchset import PatchSet
from pipeline.planning import Plan, Rank
from pipeline.tracking import Record
from pipeline.worker import Worker

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has it all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the table here is the one to read
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a held-out score isn't in every report

import ray
import ray.tune
import ray.tune.schedulers

METHODS = ("bicubic", "trained")

_DRAWS = ("uniform", "loguniform", "randint", "lograndint", "choice")


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.tune`."""
    dry_run = {"--dry-run": "print the plan, and train nothing"}
    config, flags = parse_with(dry_run, argv, "tune", "Train and compare a grid.", tracking.fetch_config)
    failed = run(config, dry_run=bool(flags))
    if failed:
        raise SystemExit(1)


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    label: str
    """Short and telling, such as "nobn·perceptual"."""
    values: dict[str, Any]
    """Its settings on the axes, by dotted keys."""
    config: Config


@dataclass
class Progress:
    """How far a cell is; what the live table shows."""

    state: str = "waiting"
    """waiting, training, finished, stopped (by the scheduler), failed or left out."""
    step: int = 0
    total: int = 0
    loss: float | None = None
    psnr: float | None = None
    steps_per_s: float | None = None
    reason: str = ""


def run(config: Config, dry_run: bool = False) -> list[str]:
    """Train what isn't finished yet of the grid that the configuration describes, and compare all cells.

    Returns:
        Labels of cells that failed.

    Raises:
        UserError: for what is wrong with the whole grid; a cell's own failure is reported beside the others' results.
    """
    start = time.monotonic()
    for name, source in config.evaluate.benchmarks.items():  # a mistake shows before the work, not after it
        sources.find_benchmark(name, source, config.scale, config.downloads)
    cells = plan_cells(config)
    patch_set, found = preprocess.prepare(config)
    print(f"patch set {'reused' if found else 'made'}: {patch_set.url}: {patchset.describe(patch_set)}", flush=True)
    folder = f"{config.outputs}/grids/{grid_name(config, cells, patch_set)}"
    progress = {cell.label: Progress() for cell in cells}
    able = _with_weights(cells, progress)
    features.prepare_distance(config)
    cluster.connect(config)
    at_once, workers, resources = cluster.trial_resources(config, len(cells))
    settled = {"cluster.workers": workers, "cluster.cpus_per_worker": int(resources["CPU"])}
    able = [Cell(cell.label, cell.values, with_values(cell.config, settled)) for cell in able]
    plan = _plan(config, able, patch_set, folder, int(resources["CPU"]) * workers, "GPU" in resources)
    able = _with_steps(able, plan, patch_set, progress)
    print(describe(able, plan, at_once, workers, resources, progress), flush=True)
    if dry_run:
        return []
    tracker = tracking.Tracker(config)
    with tracker.run(folder, config.name, {"stage": "grid", "scale": str(config.scale)}) as parent:
        parent.describe({"patch_set": patch_set.name, "source": ",".join(config.source), "cells": len(cells)}, config)
        _train(config, able, patch_set, folder, parent.id, at_once, progress)
        rows = [_result(cell, patch_set, folder, progress[cell.label]) for cell in able]
        left_out = [(label, each) for label, each in progress.items() if each.state == "left out"]
        rows += [comparison.Row(label, each.state, each.reason) for label, each in left_out]
        for label, each in progress.items():
            if each.state == "failed":
                print(f"cell {label} {each.state}: {each.reason}", file=sys.stderr, flush=True)
        facts = {"time of this command": train.duration(time.monotonic() - start), "patch set": patch_set.name}
        comparison.write(folder, config, rows, facts, parent, tracker)
    print(f"\n{comparison.text(rows, config.scale)}\n\nreport: {folder}/report.html")
    print(f"MLflow: {tracking.ui_command(config)}")
    return [label for label, each in progress.items() if each.state == "failed"]


def plan_cells(config: Config) -> list[Cell]:
    """Every combination of the grid's axes, with its draws.

    Raises:
        UserError: for an axis that isn't a setting, or a value that it doesn't take.
    """
    settings = config.tune
    axes = []
    for key, values in settings.grid.items():
        named = values.items() if isinstance(values, dict) else [(_label(key, value), value) for value in values]
        axes.append([(key, label, value) for label, value in named])
        if not axes[-1]:
            raise UserError(f"tune.grid.{key} is empty, expected at least one value")
    cells = []
    rng = np.random.RandomState(config.train.seed)
    for point in itertools.product(*axes):
        for _ in range(settings.samples if settings.sample else 1):
            drawn = [(key, _draw(key, domain, rng)) for key, domain in settings.sample.items()]
            values = {**{key: value for key, _, value in point}, **dict(drawn)}
            label = "·".join([*(label for _, label, _ in point), *(_label(key, value) for key, value in drawn)])
            changed = with_values(config, {**values, "tune": {"grid": {}}})
            cells.append(Cell(label or config.name, values, changed))
    if len({cell.label for cell in cells}) < len(cells):
        raise UserError("tune.grid has the same value twice, expected different ones")
    return cells


def grid_name(config: Config, cells: Sequence[Cell], patch_set: PatchSet) -> str:
    """Name of a grid by all that shapes its cells."""
    return f"{config.name}-{fingerprint([[cell.label, train.shaping(cell.config, patch_set)] for cell in cells])}"


def describe(
    cells: Sequence[Cell],
    plan: dict[str, Plan],
    at_once: int,
    workers: int,
    resources: dict[str, float],
    progress: dict[str, Progress],
) -> str:
    """The plan, as it is printed before anything is trained."""
    rows = [["cell", "steps", "state", "a step", "about"]]
    total = 0.0
    for cell in cells:
        steps, step_s = progress[cell.label].total, plan[cell.label].step_s or 0.0
        left = 0 if progress[cell.label].state == "finished" else steps * step_s
        total += left
        rows.append([cell.label, str(steps), progress[cell.label].state, f"{step_s:.2f} s", train.duration(left)])
    each = f"{workers} workers" if workers > 1 else "1 worker"
    reserved = ", ".join(f"{value:g} {kind}" for kind, value in resources.items())
    waiting = sum(each.state == "waiting" for each in progress.values())
    rounds = -(-max(waiting, 1) // at_once)
    spent = total / max(waiting, 1) * rounds
    return (
        f"{evaluate.aligned(rows)}\n{waiting} of {len(progress)} trials to train, {at_once} at once, each with {each} "
        f"of {reserved}; about {train.duration(spent)}, validation and start not included"
    )


def trial(params: dict[str, Any], jobs: list[dict[str, Any]], environment: dict[str, str]) -> None:
    """One cell; runs in an actor of Ray Tune, which holds no core: its workers do."""
    os.environ.update(environment)
    job = jobs[params["cell"]]
    config = Config(**job["config"])

    def report(record: Record) -> None:
        if record["kind"] in ("train", "validation"):
            ray.tune.report({"step": record["step"], "kind": record["kind"], **record["metrics"]})

    try:
        trained = train.train(config, patchset.load(job["patch_set"]), job["parent"], job["label"], report)
    except UserError as error:
        ray.tune.report({"mistake": str(error)})
        return
    if trained.found:
        for record in trained.history():
            report(record)


def _label(key: str, value: Any) -> str:
    if key == "model.batch_norm":
        return "bn" if value else "nobn"
    if isinstance(value, dict):
        return "+".join(value)
    return f"{key.rpartition('.')[2]}={value:.3g}" if isinstance(value, float) else f"{key.rpartition('.')[2]}={value}"


def _draw(key: str, domain: dict[str, list[Any]], rng: np.random.RandomState) -> Any:
    """One value of a distribution of Ray Tune's."""
    ((kind, arguments),) = domain.items() if len(domain) == 1 else [("", [])]
    if kind not in _DRAWS:
        raise UserError(f"tune.sample.{key} is {domain}, expected one of {', '.join(_DRAWS)} with its arguments")
    try:
        drawn = getattr(ray.tune, kind)(*([arguments] if kind == "choice" else arguments)).sample(random_state=rng)
    except (TypeError, ValueError) as error:
        raise UserError(f"tune.sample.{key} is {domain}: {error}") from None
    return drawn.item() if isinstance(drawn, np.generic) else drawn


def _with_weights(cells: list[Cell], progress: dict[str, Progress]) -> list[Cell]:
    """Those whose perceptual loss has its weights; the others are left out, by name and reason."""
    able = []
    for cell in cells:
        try:
            features.prepare(cell.config)
            able.append(cell)
        except UserError as error:
            progress[cell.label] = Progress("left out", reason=str(error))
            print(f"cell {cell.label} left out: {error}", file=sys.stderr, flush=True)
    if not able:
        raise UserError(next(each.reason for each in progress.values()))
    return able


def _plan(
    config: Config, cells: Sequence[Cell], patch_set: PatchSet, folder: str, threads: int, gpu: bool
) -> dict[str, Plan]:
    """What each cell takes, measured once on the cluster and kept in the grid's folder."""
    url = f"{folder}/plan.json"
    known: dict[str, Any] = storage.read_json(url) or {}
    missing = [cell for cell in cells if cell.label not in known]
    if missing:
        print(f"measuring a step of {len(missing)} cells", flush=True)
        measure = ray.remote(num_cpus=threads, num_gpus=1 if gpu else 0, max_retries=0)(_measure)
        jobs = [cell.config.model_dump(mode="json") for cell in missing]
        try:
            measured = ray.get(measure.remote(jobs, patch_set.url, threads))
        except ray.exceptions.RayError as error:
            raise UserError(f"cannot measure a step: {' '.join(str(error).split())[-300:]}") from None
        known |= {cell.label: plan for cell, plan in zip(missing, measured, strict=True)}
        storage.write_json(url, known)
    return {label: Plan(**plan) for label, plan in known.items()}


def _measure(configs: list[dict[str, Any]], patch_set: str, threads: int) -> list[dict[str, Any]]:
    """Ray task: plan trainings by a few of their steps."""
    gpu = torch.cuda.is_available()
    torch.set_num_threads(threads)
    plans = []
    for dumped in configs:
        config = Config(**dumped)
        if gpu:  # this one stands for all of a training's workers
            share = -(-config.train.global_batch // (config.cluster.workers or 1))
            config = with_values(config, {"train.global_batch": share})
        rank = Rank(torch.device("cuda" if gpu else "cpu"))
        plan = Worker(config, patchset.load(patch_set), "memory://plan", rank).plan(measure=True)
        plans.append(vars(plan))
    return plans


def _with_steps(
    cells: list[Cell], plan: dict[str, Plan], patch_set: PatchSet, progress: dict[str, Progress]
) -> list[Cell]:
    """Give all cells whose length is a time the steps that the slowest has time for."""
    fewest = min(plan[cell.label].steps for cell in cells)
    settled = []
    for cell in cells:
        config = cell.config
        if config.train.length.endswith("minutes"):
            config = with_values(config, {"train.length": f"{fewest} steps"})
        each = progress[cell.label]
        each.total = fewest if config is not cell.config else plan[cell.label].steps
        if train.find(config, patch_set):
            each.state, each.step = "finished", each.total
        settled.append(Cell(cell.label, cell.values, config))
    return settled


def _train(
    config: Config,
    cells: Sequence[Cell],
    patch_set: PatchSet,
    folder: str,
    parent: str,
    at_once: int,
    progress: dict[str, Progress],
) -> None:
    """Run the trials, and meanwhile print the live table."""
    settings = config.tune
    stopped_url = f"{folder}/stopped.json"
    stopped: dict[str, int] = storage.read_json(stopped_url) or {}
    for label, step in stopped.items():
        progress[label].state, progress[label].step = "stopped", step
    asha = settings.scheduler == "asha"
    open_ = [i for i, c in enumerate(cells) if progress[c.label].state == "waiting" or _untold(c, patch_set, parent)]
    if not open_:
        return
    jobs = [
        {
            "config": cell.config.model_dump(mode="json"),
            "patch_set": patch_set.url,
            "parent": parent,
            "label": cell.label,
        }
        for cell in cells
    ]
    environment = {
        "SR_HOME": config.outputs,
        "SR_CACHE": config.downloads,
        "MLFLOW_TRACKING_URI": config.tracking_uri,
    }
    fs, root = fsspec.url_to_fs(f"{folder}/tune")
    scheduler = (
        ray.tune.schedulers.ASHAScheduler(
            time_attr="step",
            metric=settings.metric,
            mode="max",
            max_t=max(each.total for each in progress.values()) + 1,
            grace_period=settings.grace,
        )
        if asha
        else None
    )
    watcher = _Watcher([progress[cell.label] for cell in cells])
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            ray.tune.with_parameters(trial, jobs=jobs, environment=environment),
            {"cpu": 0, "node:__internal_head__": 0.001},  # a core held here would be one that its workers wait for
        ),
        # Finished cells pass again where a scheduler compares the others with them.
        param_space={"cell": ray.tune.grid_search(list(range(len(cells))) if asha else open_)},
        tune_config=ray.tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=at_once, reuse_actors=not asha),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=root,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            callbacks=[watcher],
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
    table = _LiveTable(progress, at_once)
    while thread.is_alive():
        thread.join(1.0)
        table.show()
    table.show(final=True)
    if troubles:
        raise troubles[0]
    for cell in cells:
        each = progress[cell.label]
        if each.state in ("waiting", "training"):
            done = train.find(cell.config, patch_set)
            each.state = "finished" if done else "stopped" if asha else "failed"
            each.reason = "" if done or asha else "ended without a result"
    storage.write_json(stopped_url, {label: each.step for label, each in progress.items() if each.state == "stopped"})


def _untold(cell: Cell, patch_set: PatchSet, parent: str) -> bool:
    """Whether the cell was trained, but MLflow doesn't have it below this grid."""
    trained = train.find(cell.config, patch_set)
    return trained is not None and trained.tracked != parent


def _result(cell: Cell, patch_set: PatchSet, folder: str, progress: Progress) -> comparison.Row:
    """Measure a finished cell."""
    trained = train.find(cell.config, patch_set)
    if trained is None:
        return comparison.Row(cell.label, progress.state, progress.reason)
    own = f"{folder}/cells/{storage.plain_name(cell.label)}"
    scores = evaluate.find(cell.config, patch_set, trained.weights, own, METHODS) or evaluate.evaluate(
        cell.config, patch_set, trained.weights, own, METHODS
    )
    return comparison.Row(cell.label, "finished", "", trained, scores, cell.config)


class _Watcher(ray.tune.Callback):  # type: ignore[misc]
    """Keeps the table's numbers up to date; called by Ray Tune in this process."""

    def __init__(self, progress: list[Progress]) -> None:
        self._progress = progress

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        each = self._of(trial)
        if each.state == "waiting":
            each.state = "training"

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        each = self._of(trial)
        if "mistake" in result:
            each.state, each.reason = "failed", result["mistake"]
            return
        each.step = max(each.step, result.get("step", 0))
        each.loss = result.get("train/objective", each.loss)
        each.psnr = result.get("val/psnr_y", each.psnr)
        each.steps_per_s = result.get("train/steps_per_s", each.steps_per_s)
        each.total = int(result.get("train/steps_total", each.total))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        each = self._of(trial)
        if each.state == "training":
            each.state = "finished" if each.step >= each.total else "stopped"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        each = self._of(trial)
        each.state, each.reason = "failed", " ".join(str(error).split())[-400:]

    def _of(self, trial: Any) -> Progress:
        number: int = trial.config["cell"]
        return self._progress[number]


class _LiveTable:
    """Prints how far the cells are: in place on a terminal, else whenever a cell changes its state, and each minute."""

    def __init__(self, progress: dict[str, Progress], at_once: int) -> None:
        self._progress, self._at_once = progress, at_once
        self._shown = ""
        self._states: list[str] = []
        self._next = 0.0

    def show(self, final: bool = False) -> None:
        states = [each.state for each in self._progress.values()]
        if not final and states == self._states and time.monotonic() < self._next:
            return
        live = sys.stdout.isatty()
        self._next = time.monotonic() + (2 if live else 60)
        self._states = states
        text = self._text()
        if live and self._shown:
            print(f"\x1b[{self._shown.count(chr(10)) + 1}A\x1b[J", end="")
        if text != self._shown:
            print(text, flush=True)
        self._shown = text

    def _text(self) -> str:
        rows = [["trial", "cell", "state", "step", "loss", "held-out PSNR (Y)", "left"]]
        for i, (label, each) in enumerate(self._progress.items()):
            left = (
                (each.total - each.step) / each.steps_per_s if each.steps_per_s and each.state == "training" else None
            )
            rows.append(
                [
                    str(i + 1),
                    label,
                    each.state,
                    f"{each.step} of {each.total}",
                    "" if each.loss is None else f"{each.loss:.5f}",
                    "" if each.psnr is None else f"{each.psnr:.2f} dB",
                    "" if left is None else train.duration(left),
                ]
            )
        return evaluate.aligned(rows)


if __name__ == "__main__":
    from pipeline import tune as module  # by its name, so that Ray's workers import what they run

    module.main()
