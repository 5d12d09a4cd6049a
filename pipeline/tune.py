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
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow.fs
import torch

from pipeline import (
    cluster,
    comparison,
    evaluate,
    features,
    patchset,
    preprocess,
    records,
    sources,
    storage,
    tracking,
    train,
)
from pipeline.config import Config, UserError, command, fingerprint, parse_with, with_values
from pipeline.patchset import PatchSet
from pipeline.planning import Plan, Rank
from pipeline.records import Recorded
from pipeline.tracking import Record
from pipeline.worker import Worker

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has it all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the table here is the one to read
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # said below, in a sentence
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a held-out score isn't in every report

import ray
import ray.tune
import ray.tune.schedulers

METHODS = ("bicubic", "trained")

_SERVER_PATIENCE_S = 600
"""How long a trial waits for MLflow before it starts; once it has, it needs no server."""

_DRAWS = ("uniform", "loguniform", "randint", "lograndint", "choice")


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.tune`."""
    dry_run = {"--dry-run": "print the plan, and train nothing"}
    config, flags = parse_with(dry_run, argv, "tune", "Train and compare a grid.", tracking.fetch_config)
    failed = run(config, dry_run=bool(flags))
    if failed:
        raise SystemExit(1)


@dataclass
class Cell:
    """One training of the grid, and how far it is."""

    label: str
    """Short and telling, such as "nobn·perceptual"."""
    config: Config
    patch_set: PatchSet | None = None
    plan: Plan | None = None
    """What a few measured steps told."""
    state: str = "waiting"
    """waiting, training, finished, stopped (by the scheduler), failed or left out."""
    reason: str = ""
    """Why it failed or was left out."""
    recorded: Recorded | None = None
    """The record of its training, where that was made elsewhere."""
    kept: bool = False
    """Whether its record was written here."""
    step: int = 0
    total: int = 0
    loss: float | None = None
    psnr: float | None = None
    steps_per_s: float | None = None


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
    _preprocess(cells)
    for cell in cells:
        _take_record(cell, config)
    folder = f"{config.outputs}/grids/{grid_name(config, cells)}"
    features.prepare_distance(config)
    able = _with_weights(cells)
    cluster.connect(config)
    at_once, workers, resources = cluster.trial_resources(config, len(cells))
    settled = {"cluster.workers": workers, "cluster.cpus_per_worker": int(resources["CPU"])}
    for cell in able:
        cell.config = with_values(cell.config, settled)
    able = _measure(able, folder, min(int(resources["CPU"]) * workers, cluster.most_cores()), "GPU" in resources)
    _settle(able, config, folder)
    print(describe(cells, at_once, workers, resources), flush=True)
    if dry_run:
        return []
    tracker = tracking.Tracker(config)
    with tracker.run(folder, config.name, {"stage": "grid", "scale": str(config.scale)}) as parent:
        parent.describe({"source": ",".join(config.source), "cells": len(cells)}, config)
        _track_recorded(cells, tracker, parent.id)
        _train(config, able, folder, parent.id, at_once)
        rows = [_result(cell, folder, config.new_records) for cell in cells]
        patch_sets = sorted({cell.patch_set.name for cell in cells if cell.patch_set})
        facts = {"time of this command": train.duration(time.monotonic() - start), "patch set": ", ".join(patch_sets)}
        comparison.write(folder, config, rows, facts, parent, tracker)
    failed = [cell for cell in cells if cell.state == "failed"]
    for cell in failed:
        print(f"cell {cell.label} failed: {cell.reason}", file=sys.stderr, flush=True)
    print(f"\n{comparison.text(rows, config.scale)}\n\nreport: {folder}/report.html")
    print(f"MLflow: {tracking.ui_command(config)}")
    return [cell.label for cell in failed]


def plan_cells(config: Config) -> list[Cell]:
    """Every combination of the grid's axes, with its draws.

    Raises:
        UserError: for an axis that isn't a setting, or a value that it doesn't take.
    """
    settings = config.tune
    axes = []
    plain: dict[str, Any] = {"tune": {"grid": {}, "records": settings.records, "note": settings.note}}
    for key, values in settings.grid.items():
        named = values.items() if isinstance(values, dict) else [(_label(key, value), value) for value in values]
        axes.append([(key, label, value) for label, value in named])
        if not axes[-1]:
            raise UserError(f"tune.grid.{key} is empty, expected at least one value")
    cells = []
    rng = np.random.RandomState(config.train.seed)
    for point in itertools.product(*axes):
        labels: set[str] = set()
        for _ in range(settings.samples if settings.sample else 1):
            drawn = [(key, _draw(key, domain, rng)) for key, domain in settings.sample.items()]
            values = {**{key: value for key, _, value in point}, **dict(drawn), **plain}
            label = "·".join([*(label for _, label, _ in point), *(_label(key, value) for key, value in drawn)])
            if label not in labels:  # a value may be drawn twice
                cells.append(Cell(label or config.name, with_values(config, values)))
            labels.add(label)
    cells += [Cell(label, with_values(config, {**values, **plain})) for label, values in settings.also.items()]
    if len({cell.label for cell in cells}) < len(cells):
        raise UserError("tune.grid and tune.also have the same cell twice, expected different ones")
    return cells


def grid_name(config: Config, cells: Sequence[Cell]) -> str:
    """Name of a grid by all that shapes its cells."""
    shaping = [(cell.label, train.shaping(cell.config, cell.patch_set.name)) for cell in cells if cell.patch_set]
    repeated = [label for label, values in shaping if [values for _, values in shaping].count(values) > 1]
    if repeated:
        raise UserError(f"the cells {', '.join(repeated)} are the same training: expected axes that shape its weights")
    return f"{config.name}-{fingerprint(shaping)}"


def describe(cells: Sequence[Cell], at_once: int, workers: int, resources: dict[str, float]) -> str:
    """The plan, as it is printed before anything is trained."""
    rows = [["cell", "steps", "state", "a step", "about"]]
    times = []
    for cell in cells:
        if cell.plan is None or cell.plan.step_s is None:
            rows.append([cell.label, str(cell.total or ""), cell.state, "", ""])
            continue
        times.append((cell.total - cell.step) * cell.plan.step_s if cell.state == "waiting" else 0.0)
        rows.append([cell.label, str(cell.total), cell.state, f"{cell.plan.step_s:.2f} s", train.duration(times[-1])])
    each = (
        f"{workers} worker{'s' if workers > 1 else ''} of {', '.join(f'{n:g} {kind}' for kind, n in resources.items())}"
    )
    waiting = sum(cell.state == "waiting" for cell in cells)
    whole = train.duration(max(sum(times) / at_once, *times, 0))
    return (
        f"{evaluate.aligned(rows)}\n{waiting} of {len(cells)} trials to train, {at_once} at once, each with {each}; "
        f"about {whole}, validation and start not included"
    )


def trial(params: dict[str, Any], jobs: list[dict[str, Any]], environment: dict[str, str]) -> None:
    """One cell; runs in an actor of Ray Tune, which holds no core: its workers do."""
    os.environ.update(environment)
    job = jobs[params["cell"]]
    config = Config(**job["config"])

    def report(record: Record) -> None:
        if record["kind"] in ("train", "validation"):
            ray.tune.report({"step": record["step"], "kind": record["kind"], **record["metrics"]})

    if job["pass_on"]:  # the scheduler compares the others with it
        for record in train.history(job["pass_on"]):
            report(record)
        return
    try:
        tracking.wait_for_server(config, _SERVER_PATIENCE_S)
        trained = train.train(config, patchset.load(job["patch_set"]), job["parent"], job["label"], report)
    except (UserError, OSError) as error:
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
    return f"{key.rpartition('.')[2]}={value:.6g}" if isinstance(value, float) else f"{key.rpartition('.')[2]}={value}"


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


def _preprocess(cells: Sequence[Cell]) -> None:
    """Give each cell its patch set: the same, unless an axis is what it is made of."""
    made: dict[str, PatchSet] = {}
    for cell in cells:
        what = fingerprint(cell.config.model_dump(include={"source", "scale", "preprocess"}))
        if what not in made:
            made[what], found = preprocess.prepare(cell.config)
            about = f"{made[what].url}: {patchset.describe(made[what])}"
            print(f"patch set {'reused' if found else 'made'}: {about}", flush=True)
        cell.patch_set = made[what]


def _with_weights(cells: Sequence[Cell]) -> list[Cell]:
    """Those whose perceptual loss has its weights; the others are left out, by name and reason."""
    for cell in cells:
        if cell.recorded:
            continue
        try:
            features.prepare(cell.config)
        except UserError as error:
            cell.state, cell.reason = "left out", str(error)
            print(f"cell {cell.label} left out: {error}", file=sys.stderr, flush=True)
    able = [cell for cell in cells if cell.state != "left out"]
    if not able:
        raise UserError(cells[0].reason)
    return able


def _measure(cells: Sequence[Cell], folder: str, threads: int, gpu: bool) -> list[Cell]:
    """Plan each cell by a few of its steps, on the cluster and once: plans are kept in the grid's folder.

    Returns:
        Those for which that succeeded, and those that are finished; the others have failed.
    """
    url = f"{folder}/plan.json"
    known: dict[str, Any] = storage.read_json(url) or {}
    missing = [cell for cell in cells if cell.label not in known and not _trained(cell)]
    if missing:
        print(f"measuring a step of {len(missing)} cells", flush=True)
    for cell in missing:
        assert cell.patch_set
        remote = ray.remote(num_cpus=threads, num_gpus=int(gpu), max_retries=0)(_measured)
        dumped = features.prepare(cell.config).model_dump(mode="json")
        try:
            known[cell.label] = ray.get(remote.remote(dumped, cell.patch_set.url, threads, gpu))
            storage.write_json(url, known)
        except ray.exceptions.RayError as error:
            cell.state, cell.reason = "failed", f"cannot measure a step: {' '.join(str(error).split())[-300:]}"
    able = [cell for cell in cells if cell.state != "failed"]
    for cell in able:
        cell.plan = Plan(**known[cell.label]) if cell.label in known else None
    if not able:
        raise UserError(cells[0].reason)
    return able


def _measured(dumped: dict[str, Any], patch_set: str, threads: int, gpu: bool) -> dict[str, Any]:
    """Ray task: plan of a training; one process with all the cores, or one of the GPUs, stands for its workers."""
    torch.set_num_threads(threads)
    config = Config(**dumped)
    share = -(-config.train.global_batch // (config.cluster.workers or 1)) if gpu else config.train.global_batch
    worker = Worker(
        with_values(config, {"train.global_batch": share}),
        patchset.load(patch_set),
        "memory://plan",
        Rank(torch.device("cuda" if gpu else "cpu")),
    )
    return asdict(worker.plan(measure=True))


def _settle(cells: Sequence[Cell], config: Config, folder: str) -> None:
    """Give all cells whose length is a time the steps that the slowest has time for, and find what was done before."""
    stopped: dict[str, int] = storage.read_json(_stopped_url(config, folder)) or {}
    fewest: dict[str, int] = {}
    for cell in cells:
        length = cell.config.train.length
        fewest[length] = min(cell.plan.steps if cell.plan else sys.maxsize, fewest.get(length, sys.maxsize))
    for cell in cells:
        cell.total = cell.plan.steps if cell.plan else 0
        if cell.config.train.length.endswith("minutes"):
            cell.total = fewest[cell.config.train.length]
            cell.config = with_values(cell.config, {"train.length": f"{cell.total} steps"})
            _take_record(cell, config)
        if trained := _trained(cell):
            cell.state = "finished"
            cell.step = cell.total = trained.result["steps"]
        elif cell.label in stopped:
            cell.state, cell.step = "stopped", stopped[cell.label]
    shortest = min(cell.total for cell in cells)
    if config.tune.scheduler == "asha" and config.tune.grace >= shortest:
        raise UserError(f"tune.grace is {config.tune.grace}, expected less than the steps of a cell, {shortest}")


def _stopped_url(config: Config, folder: str) -> str:
    """Where the cells that this scheduler stopped are noted."""
    settings = config.tune
    return f"{folder}/stopped-{fingerprint([settings.scheduler, settings.metric, settings.grace])}.json"


def _train(config: Config, cells: Sequence[Cell], folder: str, parent: str, at_once: int) -> None:
    """Run the trials, and meanwhile print the live table."""
    settings = config.tune
    asha = settings.scheduler == "asha"
    todo = [
        i for i, cell in enumerate(cells) if cell.state == "waiting" or (_untold(cell, parent) and not cell.recorded)
    ]
    if not todo:
        return
    jobs = [
        {
            "config": cell.config.model_dump(mode="json"),
            "patch_set": cell.patch_set.url if cell.patch_set else "",
            "parent": parent,
            "label": cell.label,
            "pass_on": _folder(cell) if cell.state == "stopped" or cell.recorded else "",
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
            _keep(cell, config.new_records)
        stopped = {cell.label: cell.step for cell in cells if cell.state == "stopped"}
        if stopped != known:
            storage.write_json(_stopped_url(config, folder), stopped)
            known = stopped
    table.show(final=True)
    if troubles:
        raise troubles[0]


def _folder(cell: Cell) -> str:
    """Path or URL of the cell's training."""
    assert cell.patch_set
    name = cell.recorded["training"] if cell.recorded else train.training_name(cell.config, cell.patch_set)
    return f"{cell.config.outputs}/trainings/{name}"


def _trained(cell: Cell) -> train.Trained | None:
    """The cell's training, if it is finished."""
    if cell.patch_set is None or cell.state == "left out":
        return None
    return train.find_at(_folder(cell))


def _untold(cell: Cell, parent: str) -> bool:
    """Whether the cell was trained, but MLflow doesn't have it below this grid."""
    trained = _trained(cell)
    return trained is not None and parent not in trained.tracked


def _take_record(cell: Cell, config: Config) -> None:
    """Take a finished training from its record, if there is one.

    Raises:
        UserError: if a record of another training stands where the cell's own would be put.
    """
    folder = config.tune.records
    if not folder or cell.patch_set is None or cell.config.train.length.endswith("minutes"):
        return
    recorded = records.find(folder, cell.label)
    if recorded is None:
        return
    if not train.is_same(recorded["identity"], records.configuration(recorded), cell.config, cell.patch_set.name):
        if folder == config.new_records:
            raise records.conflict(folder, cell.label)
        return
    home = f"{config.outputs}/trainings/{recorded['training']}"
    if not train.find_at(home):
        if not records.restore(folder, recorded, home):
            return
        print(f"cell {cell.label} taken from {folder}/{records.folder_name(cell.label)}", flush=True)
    cell.recorded = recorded
    cell.state = "finished"
    cell.step = cell.total = recorded["result"]["steps"]


def _track_recorded(cells: Sequence[Cell], tracker: tracking.Tracker, parent: str) -> None:
    """Tell MLflow of the cells whose training was made elsewhere."""
    for cell in cells:
        trained = _trained(cell)
        if cell.recorded and trained and cell.patch_set and parent not in trained.tracked:
            tags = train.tags(cell.config, cell.patch_set.name, cell.label) | records.provenance(cell.recorded)
            train.track(trained, cell.config, tags, tracker, parent, cell.label)


def _keep(cell: Cell, folder: str | None, scores: evaluate.Scores | None = None) -> None:
    """Record a finished cell, or complete its record."""
    if not folder or cell.state != "finished" or (cell.kept and not scores):
        return
    trained = _trained(cell)
    if trained is None or cell.patch_set is None:
        return
    facts = {
        "training": trained.name,
        "identity": (cell.recorded or {}).get("identity") or train.identity(cell.config, cell.patch_set.name),
        "patch_set": {
            "pictures": sum(picture.tiles > 0 for picture in cell.patch_set.pictures),
            "held_out": len(cell.patch_set.holdout_names),
            "tiles": sum(cell.patch_set.row_groups),
        },
        "result": trained.result,
        "seconds": trained.seconds,
        "history": trained.history(),
    }
    try:
        records.keep(folder, cell.label, cell.config, facts, trained.weights, scores)
    except (UserError, OSError) as error:  # the others' trainings go on
        print(f"cell {cell.label} cannot be recorded: {error}", file=sys.stderr, flush=True)
    cell.kept = True


def _result(cell: Cell, folder: str, records_folder: str | None) -> comparison.Row:
    """Measure a cell if it is finished."""
    trained = _trained(cell)
    if trained is None or cell.patch_set is None:
        if cell.state in ("waiting", "training", "finished"):
            cell.state, cell.reason = "failed", "it ended without a result"
        return comparison.Row(cell.label, cell.state, cell.reason)
    own = f"{folder}/cells/{storage.plain_name(cell.label)}"
    scores = evaluate.find(cell.config, cell.patch_set, trained.weights, own, METHODS) or evaluate.evaluate(
        cell.config, cell.patch_set, trained.weights, own, METHODS
    )
    cell.state = "finished"
    _keep(cell, records_folder, scores)
    return comparison.Row(cell.label, "finished", "", trained, scores, cell.config)


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
            left = train.duration((cell.total - cell.step) / cell.steps_per_s) if runs and cell.steps_per_s else ""
            loss = "" if cell.loss is None else f"{cell.loss:.5f}"
            psnr = "" if cell.psnr is None else f"{cell.psnr:.2f} dB"
            rows.append([str(number), cell.label, cell.state, f"{cell.step} of {cell.total}", loss, psnr, left])
        return evaluate.aligned(rows)


if __name__ == "__main__":
    from pipeline import tune as module  # by its name, so that Ray's workers import what they run

    module.main()
