"""Train a grid and compare its cells.

`run` leads through the stages: variants of the configuration, patch sets, restored records, measured plans, trainings
with Ray Tune, and the comparison. Each stage reuses what an earlier run finished, so the same command resumes an
interrupted grid.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import ray
import torch

from pipeline import cluster, storage, terminal, tracking
from pipeline.data import benchmark_sets, patchset, preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import tables, trained_network
from pipeline.grid.cells import (
    Cell,
    Outcome,
    Outcomes,
    State,
    finished_training,
    name_grid,
    restore_from_record,
    save_record,
    track_restored,
    training_folder,
)
from pipeline.grid.estimates import cell_seconds, grid_seconds
from pipeline.grid.parts import METHODS, record_stopped
from pipeline.grid.shares import Share, find_share
from pipeline.grid.trials import read_stopped, train_cells
from pipeline.grid.variants import Variant, list_variants
from pipeline.networks import features
from pipeline.reporting import comparison, records, registration
from pipeline.reporting.rows import Row
from pipeline.settings import Config, UserError, with_values
from pipeline.storage import one_line
from pipeline.training import description, preflight, runs
from pipeline.training.initial import locate_initial
from pipeline.training.methods import find_method
from pipeline.training.planning import Plan
from pipeline.training.ranks import Ranks
from pipeline.training.stopping import OutOfTime, describe_stop
from pipeline.training.worker import Worker

Plans = dict[str, Plan]
"""Plans of trainings by the label of the cell."""


def run(config: Config, dry_run: bool = False, stop_at: float | None = None) -> list[str]:
    """Train the cells that are not finished yet, and compare all cells.

    Args:
        config: resolved settings.
        dry_run: if true, print the plan and train nothing.
        stop_at: Unix time at which all trainings stop with a checkpoint; None for no limit.

    Returns:
        Labels of the cells without a result: those that failed, and those that were left out.

    Raises:
        UserError: if the whole grid cannot be trained. The failure of a single cell is reported beside the results of
            the others.
        OutOfTime: if trainings stopped at `stop_at`. Nothing is scored then.
    """
    for name, source in config.evaluate.benchmarks.items():  # report a wrong benchmark before hours of training
        print(benchmark_sets.list_set(name, source, config.scale, config.downloads).summary(), flush=True)
    variants = list_variants(config)
    for variant in variants:
        find_method(variant.config)
        if config.tune.keep_state and variant.config.train.length.endswith("minutes"):
            raise UserError(
                f"the cell {variant.label} has the length {variant.config.train.length}, expected steps or epochs with "
                "tune.keep_state, because minutes are other steps on another machine"
            )
    if any(_is_new(variant) for variant in variants):
        preflight.check_ahead(config, workers=1)
    cluster.connect_ahead(config)
    cells = [restore_from_record(cell, config) for cell in _prepare_patch_sets(variants)]
    outcomes = {cell.label: Outcome() for cell in cells}
    folder = f"{config.outputs}/grids/{name_grid(config, cells)}"
    features.prepare_distance(config)
    leave_out_without_weights(cells, outcomes)
    cluster.connect(config)
    to_train = [cell for cell in _able(cells, outcomes) if cell.has_time_limit or not finished_training(cell)]
    share = find_share(config, len(cells), trains=bool(to_train))
    cells = [replace(cell, config=share.give_to(cell.config)) for cell in cells]
    plans = measure_plans(cells, outcomes, folder, share)
    cells = settle_steps(cells, outcomes, plans, config, folder)
    print(describe_plan(cells, outcomes, share), flush=True)
    if dry_run:
        return _name_missing([Row(c.label, outcomes[c.label].state, c.config, outcomes[c.label].reason) for c in cells])
    tracker = tracking.Tracker(config)
    with tracker.run(folder, config.name, {"stage": "grid", "scale": str(config.scale)}) as parent:
        parent.describe({"source": ",".join(config.source), "cells": len(cells)}, config)
        for patch_set in {cell.patch_set.name: cell.patch_set for cell in cells}.values():
            description.log_patch_set(parent, config, patch_set)
        track_restored(cells, tracker, parent.id)
        try:
            train_cells(
                config, _able(cells, outcomes), outcomes, folder, parent.id, share.at_once, stop_at, share.per_gpu
            )
        except OutOfTime:
            finished = sum(outcome.state is State.FINISHED for outcome in outcomes.values())
            print(describe_stop(f"grid stopped with {finished} of {len(cells)} cells finished", config), flush=True)
            for cell in _able(cells, outcomes):
                record_stopped(cell, config)
            raise
        rows = [_score(cell, outcomes[cell.label], folder, config.new_records) for cell in cells]
        # The facts are those of the trainings, not of this command, so that a rerun writes the same report.
        facts = {
            "training": f"{terminal.duration(sum(row.seconds for row in rows))}, all cells together",
            "finished": max(runs.last_day(row.history) for row in rows),
            "patch set": ", ".join(sorted({cell.patch_set.name for cell in cells})),
        }
        with terminal.stage("", "writing the comparison and sending it to MLflow"):
            comparison.write(folder, config, rows, facts, parent, tracker)
            registration.send_best(config, rows, parent, tracker)
    print(f"\n{comparison.text(rows)}\n\nreport: {folder}/report.html")
    print(f"MLflow: {tracking.ui_command(config)}", flush=True)
    return _name_missing(rows)


def _is_new(variant: Variant) -> bool:
    """Tell whether a variant has neither a finished training nor a record, whatever its images are."""
    config = variant.config
    record = records.read(config.tune.records, variant.label) if config.tune.records else None
    recorded = record is not None and record.planned_steps is None
    return not recorded and not tracking.any_tracked(f"{config.outputs}/trainings", config.training_label)


def _name_missing(rows: Sequence[Row]) -> list[str]:
    """Print a sentence for each cell without a result, and return the labels of these cells."""
    for sentence in comparison.missing(rows):
        print(sentence, file=sys.stderr, flush=True)
    return [row.label for row in rows if row.reason]


def describe_plan(cells: Sequence[Cell], outcomes: Outcomes, share: Share) -> str:
    """Return the plan as it is printed before the training: a table of the cells, and the expected time."""
    rows = [["#", "cell", "steps", "state", "a step", "about"]]
    now = time.monotonic()
    for number, cell in enumerate(cells, start=1):
        outcome = outcomes[cell.label]
        seconds = cell_seconds(outcome, now) if outcome.state is State.WAITING else None
        step = "" if outcome.step_s is None else f"{outcome.step_s:.2f} s"
        about = "" if seconds is None else terminal.duration(seconds)
        rows.append([str(number), cell.label, str(outcome.total or ""), outcome.state, step, about])
    count = sum(outcome.state is State.WAITING for outcome in outcomes.values())
    whole = grid_seconds([outcomes[cell.label] for cell in cells], now, share.at_once)
    about = (
        "" if whole is None else f"; about {terminal.duration(whole)} with the start of the trials, without validation"
    )
    return (
        f"{tables.aligned(rows)}\n{count} of {len(cells)} trials to train, {share.at_once} at once, each with {share}"
        f"{about}"
    )


def _able(cells: Sequence[Cell], outcomes: Outcomes) -> list[Cell]:
    """Return the cells that are finished or can train."""
    return [cell for cell in cells if outcomes[cell.label].can_train]


def _prepare_patch_sets(variants: Sequence[Variant]) -> list[Cell]:
    """Give each variant its patch set; variants with the same images and preprocessing share one.

    Raises:
        UserError: if the patch sets have different held-out images.
    """
    made: dict[str, PatchSet] = {}
    cells = []
    for variant in variants:
        key = storage.fingerprint(variant.config.model_dump(include={"source", "scale", "preprocess"}))
        if key not in made:
            made[key], found = preparation.prepare(variant.config)
            about = f"{made[key].url}: {patchset.describe(made[key])}"
            print(f"patch set {'reused' if found else 'made'}: {about}", flush=True)
        cells.append(Cell(variant.label, variant.config, made[key]))
    held_out = {tuple(shard.file for shard in patch_set.holdout) for patch_set in made.values()}
    if len(held_out) > 1:
        raise UserError(
            "the cells hold out different images, so their scores could not be compared: expected axes other than "
            "scale, preprocess.degradation, grouping and shard_mb, and sources with the same images for "
            "preprocess.holdout"
        )
    return cells


def leave_out_without_weights(cells: Sequence[Cell], outcomes: Outcomes) -> None:
    """Prepare the pretrained weights that the cells' losses need, and leave out the cells whose weights are missing.

    Raises:
        UserError: if no cell is left.
    """
    for cell in cells:
        if cell.record:
            continue
        try:
            features.prepare_terms(cell.config)
        except UserError as error:
            outcomes[cell.label].fail(str(error), State.LEFT_OUT)
            print(f"cell {cell.label} left out: {error}", file=sys.stderr, flush=True)
    _require_able_cell(cells, outcomes)


def measure_training(config: Config, patch_set: str, threads: int, gpu: bool) -> Plan:
    """Plan a training and measure some of its steps; a Ray task.

    The task is one process that stands for all workers: with all of their cores, or with one of the GPUs.

    Args:
        config: settings of the training, with prepared weights.
        patch_set: path or URL of its patch set.
        threads: CPU threads.
        gpu: true to measure on a GPU.
    """
    torch.set_num_threads(threads)
    ranks = Ranks(torch.device("cuda" if gpu else "cpu"))
    worker = Worker(config, patchset.load(patch_set), "memory://plan", ranks)
    return worker.plan(measure=True, workers=config.cluster.workers if gpu else 1)


def measure_plans(
    cells: Sequence[Cell],
    outcomes: Outcomes,
    folder: str,
    share: Share,
    measure: Callable[[Config, str, int, bool], Plan] = measure_training,
) -> Plans:
    """Measure the plans of the cells that are not finished; plan.json in the grid's folder keeps them.

    A cell that cannot be measured fails.

    Args:
        cells: all cells of the grid.
        outcomes: their outcomes, in which failures are noted.
        folder: path or URL of the grid.
        share: the part of the cluster that a training gets.
        measure: the Ray task that measures; see `measure_training`.

    Raises:
        UserError: if no cell is left that can train.
        DamagedFileError: if plan.json is damaged.
    """
    url = f"{folder}/plan.json"
    plans = storage.read_document(url, Plans) or {}
    able = _able(cells, outcomes)
    missing = [
        cell for cell in able if cell.label not in plans and (cell.has_time_limit or not finished_training(cell))
    ]
    gpu = "GPU" in share.resources
    threads = min(int(share.resources["CPU"]) * share.workers, cluster.most_cores())
    task = ray.remote(num_cpus=threads, num_gpus=int(gpu), max_retries=0)(measure)
    with terminal.stage("measure a step", total=len(missing), unit="cells") as shown:
        for done, cell in enumerate(missing, start=1):
            config = locate_initial(features.prepare_terms(cell.config))
            try:
                plans[cell.label] = ray.get(task.remote(config, cell.patch_set.url, threads, gpu))
                storage.write_document(url, plans)
            except ray.exceptions.RayError as error:
                reason = one_line(error, 10**6)[-300:]
                outcomes[cell.label].fail(f"cannot measure a step: {reason}")
            shown.update(done)
    _require_able_cell(cells, outcomes)
    return plans


def _require_able_cell(cells: Sequence[Cell], outcomes: Outcomes) -> None:
    if not _able(cells, outcomes):
        raise UserError(outcomes[cells[0].label].reason)


def settle_steps(cells: Sequence[Cell], outcomes: Outcomes, plans: Plans, config: Config, folder: str) -> list[Cell]:
    """Settle the number of steps of each cell, and find the cells that are finished or were stopped.

    Cells whose length is the same time get the same steps, as many as the slowest of them makes in this time.
    steps.json in the grid's folder keeps them, also for cells that are measured later.

    Args:
        cells: all cells of the grid.
        outcomes: their outcomes, which get the steps and states.
        plans: the measured plans.
        config: settings of the grid.
        folder: path or URL of the grid.

    Returns:
        The cells, with steps instead of minutes, and with their records if these exist.

    Raises:
        UserError: if the scheduler's grace period is as long as a training.
        DamagedFileError: if a file in the grid's folder is damaged.
    """
    steps = _steps_of_times(_able(cells, outcomes), plans, f"{folder}/steps.json")
    stopped = read_stopped(config, folder)
    settled = []
    for cell in cells:
        outcome = outcomes[cell.label]
        if outcome.can_train:
            plan = plans.get(cell.label)
            outcome.total, outcome.step_s = (plan.steps, plan.step_s) if plan else (0, None)
            if cell.has_time_limit:
                outcome.total = steps[cell.config.train.length]
                length = {"train.length": f"{outcome.total} steps"}
                cell = restore_from_record(replace(cell, config=with_values(cell.config, length)), config)
            if trained := finished_training(cell):
                outcome.state = State.FINISHED
                outcome.step = outcome.total = trained.result.steps
            elif cell.label in stopped:
                outcome.state, outcome.step = State.STOPPED, stopped[cell.label]
        settled.append(cell)
    shortest = min(outcome.total for outcome in outcomes.values() if outcome.can_train)
    if config.tune.scheduler == "asha" and config.tune.grace >= shortest:
        raise UserError(f"tune.grace is {config.tune.grace}, expected less than the steps of a cell, {shortest}")
    return settled


def _steps_of_times(cells: Sequence[Cell], plans: Plans, url: str) -> dict[str, int]:
    """Return the steps of each length that is a time; `url` is the file that keeps them."""
    steps = storage.read_document(url, dict[str, int]) or {}
    timed = [cell for cell in cells if cell.has_time_limit]
    for length in {cell.config.train.length for cell in timed} - steps.keys():
        steps[length] = min(plans[cell.label].steps for cell in timed if cell.config.train.length == length)
        storage.write_document(url, steps)
    return steps


def _score(cell: Cell, outcome: Outcome, folder: str, records_folder: str | None) -> Row:
    """Score a cell if it is finished or was stopped, and return its row of the comparison.

    A stopped cell is scored with the weights of its best validation.
    """
    trained = None if outcome.state is State.LEFT_OUT else finished_training(cell)
    place = training_folder(cell) if trained or outcome.state is State.STOPPED else ""
    weights = trained.weights if trained else f"{place}/best.safetensors"
    if not trained and not (place and storage.exists(weights)):
        if outcome.state is State.STOPPED:
            outcome.reason = f"it was stopped at step {outcome.step}, before its first validation"
        elif outcome.state in (State.WAITING, State.TRAINING, State.FINISHED):
            outcome.fail("it ended without a result")
        return Row(cell.label, outcome.state, cell.config, outcome.reason)
    own = f"{folder}/cells/{storage.plain_name(cell.label)}"
    measured = trained_network.evaluate(cell.config, cell.patch_set, weights, own, METHODS, f"evaluate {cell.label}")
    if trained:
        outcome.state = State.FINISHED
        save_record(cell, records_folder, measured)
    history = runs.read_history(place)
    record = (records.read(records_folder, cell.label) if records_folder else None) or cell.record
    return Row(
        cell.label,
        outcome.state,
        cell.config,
        folder=place,
        steps=trained.result.steps if trained else outcome.step,
        stopped=trained is None,
        history=history,
        seconds=runs.seconds(history),
        threads=trained.result.threads * trained.result.workers if trained and trained.result.device == "cpu" else 0,
        gpus=trained.result.workers if trained and trained.result.device == "cuda" else 0,
        parts=record.parts if record else [],
        sets=measured.sets,
    )
