"""A grid of trainings with Ray Tune: by default BatchNorm yes or no x MSE or perceptual loss.

`python -m pipeline.tune --config configs/grid.yaml` prints its plan, trains every cell with the same steps, samples and
schedule (but for what an axis changes), as many at once as the cluster holds, and compares them: a table, a report and
MLflow. The same command goes on after an interruption, each cell from its newest checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch

from pipeline import cluster, storage, tracking
from pipeline.data import patchset, preparation, sources
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scores as scores_module
from pipeline.evaluation import tables
from pipeline.grid import trials
from pipeline.grid.cells import Cell, grid_name, keep, plan_cells, take_record, track_recorded, trained_of
from pipeline.networks import features
from pipeline.reporting import comparison
from pipeline.settings import Config, UserError, with_values
from pipeline.storage import fingerprint
from pipeline.training.planning import Plan, Rank
from pipeline.training.worker import Worker

METHODS = ("bicubic", "trained")


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
    cluster.connect_ahead(config)
    _preprocess(cells)
    for cell in cells:
        take_record(cell, config)
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
        track_recorded(cells, tracker, parent.id)
        trials.run(config, able, folder, parent.id, at_once)
        rows = [_result(cell, folder, config.new_records) for cell in cells]
        patch_sets = sorted({cell.patch_set.name for cell in cells if cell.patch_set})
        facts = {
            "time of this command": tables.duration(time.monotonic() - start),
            "patch set": ", ".join(patch_sets),
        }
        comparison.write(folder, config, rows, facts, parent, tracker)
    failed = [cell for cell in cells if cell.state == "failed"]
    for cell in failed:
        print(f"cell {cell.label} failed: {cell.reason}", file=sys.stderr, flush=True)
    print(f"\n{comparison.text(rows, config.scale)}\n\nreport: {folder}/report.html")
    print(f"MLflow: {tracking.ui_command(config)}")
    return [cell.label for cell in failed]


def describe(cells: Sequence[Cell], at_once: int, workers: int, resources: dict[str, float]) -> str:
    """The plan, as it is printed before anything is trained."""
    rows = [["cell", "steps", "state", "a step", "about"]]
    times = []
    for cell in cells:
        if cell.plan is None or cell.plan.step_s is None:
            rows.append([cell.label, str(cell.total or ""), cell.state, "", ""])
            continue
        times.append((cell.total - cell.step) * cell.plan.step_s if cell.state == "waiting" else 0.0)
        rows.append([cell.label, str(cell.total), cell.state, f"{cell.plan.step_s:.2f} s", tables.duration(times[-1])])
    each = (
        f"{workers} worker{'s' if workers > 1 else ''} of {', '.join(f'{n:g} {kind}' for kind, n in resources.items())}"
    )
    waiting = sum(cell.state == "waiting" for cell in cells)
    whole = tables.duration(max(sum(times) / at_once, *times, 0))
    return (
        f"{tables.aligned(rows)}\n{waiting} of {len(cells)} trials to train, {at_once} at once, each with {each}; "
        f"about {whole}, validation and start not included"
    )


def _preprocess(cells: Sequence[Cell]) -> None:
    """Give each cell its patch set: the same, unless an axis is what it is made of."""
    made: dict[str, PatchSet] = {}
    for cell in cells:
        what = fingerprint(cell.config.model_dump(include={"source", "scale", "preprocess"}))
        if what not in made:
            made[what], found = preparation.prepare(cell.config)
            about = f"{made[what].url}: {patchset.describe(made[what])}"
            print(f"patch set {'reused' if found else 'made'}: {about}", flush=True)
        cell.patch_set = made[what]
    held_out = {tuple(shard.file for shard in patch_set.holdout) for patch_set in made.values()}
    if len(held_out) > 1:
        raise UserError(
            "the cells hold out different images, by which they could not be compared: expected axes other than "
            "scale and preprocess.degradation, and sources with the same images for preprocess.holdout"
        )


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
    missing = [
        cell
        for cell in cells
        if cell.label not in known and (cell.config.train.length.endswith("minutes") or not trained_of(cell))
    ]
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
    worker = Worker(config, patchset.load(patch_set), "memory://plan", Rank(torch.device("cuda" if gpu else "cpu")))
    return asdict(worker.plan(measure=True, workers=config.cluster.workers if gpu else 1))


def _settle(cells: Sequence[Cell], config: Config, folder: str) -> None:
    """Give all cells whose length is a time the steps that the slowest has time for, and find what was done before."""
    stopped: dict[str, int] = storage.read_json(trials.stopped_url(config, folder)) or {}
    steps: dict[str, int] = (
        storage.read_json(f"{folder}/steps.json") or {}
    )  # settled once, for cells measured later too
    timed = [cell for cell in cells if cell.config.train.length.endswith("minutes")]
    for length in {cell.config.train.length for cell in timed} - steps.keys():
        steps[length] = min(cell.plan.steps for cell in timed if cell.plan and cell.config.train.length == length)
        storage.write_json(f"{folder}/steps.json", steps)
    for cell in cells:
        cell.total = cell.plan.steps if cell.plan else 0
        if cell in timed:
            cell.total = steps[cell.config.train.length]
            cell.config = with_values(cell.config, {"train.length": f"{cell.total} steps"})
            take_record(cell, config)
        if trained := trained_of(cell):
            cell.state = "finished"
            cell.step = cell.total = trained.result["steps"]
        elif cell.label in stopped:
            cell.state, cell.step = "stopped", stopped[cell.label]
    shortest = min(cell.total for cell in cells)
    if config.tune.scheduler == "asha" and config.tune.grace >= shortest:
        raise UserError(f"tune.grace is {config.tune.grace}, expected less than the steps of a cell, {shortest}")


def _result(cell: Cell, folder: str, records_folder: str | None) -> comparison.Row:
    """Measure a cell if it is finished."""
    trained = trained_of(cell)
    if trained is None or cell.patch_set is None:
        if cell.state in ("waiting", "training", "finished"):
            cell.state, cell.reason = "failed", "it ended without a result"
        return comparison.Row(cell.label, cell.state, cell.reason)
    own = f"{folder}/cells/{storage.plain_name(cell.label)}"
    scores = scores_module.find(cell.config, cell.patch_set, trained.weights, own, METHODS) or scores_module.evaluate(
        cell.config, cell.patch_set, trained.weights, own, METHODS
    )
    cell.state = "finished"
    keep(cell, records_folder, scores)
    return comparison.Row(
        cell.label,
        "finished",
        config=cell.config,
        folder=trained.folder,
        result=trained.result,
        history=trained.history(),
        seconds=trained.seconds,
        sets=scores["sets"],
    )
