"""Trainings in parts: the records of cells that `cluster.stop_after` has ended before their last step."""

from __future__ import annotations

import sys
from dataclasses import replace

from pipeline import storage
from pipeline.evaluation import trained_network
from pipeline.grid import records as record_files
from pipeline.grid.cells import Cell, finished_training, training_folder
from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.tracking import TrainingResult
from pipeline.training import runs
from pipeline.training.planning import Plan

METHODS = ("bicubic", "trained")
"""The methods of enlarging that are scored, keys of `scores.METHODS`."""


def record_stopped(cell: Cell, config: Config, scored: bool = True) -> int | None:
    """Record a cell whose training has been stopped, with the state from which it can resume, and score it.

    A failure is reported but stops nothing.

    Args:
        cell: the cell.
        config: settings of the grid, which name the folder of the records and the precision of the moments.
        scored: false to leave out the scores.

    Returns:
        The number of finished steps; None if nothing was recorded.
    """
    folder, moments = config.new_records, config.tune.keep_state
    if not folder or not moments:
        return None
    try:
        if finished_training(cell):
            return None
        home = training_folder(cell)
        result = storage.read_document(f"{home}/{runs.STOPPED}.json", TrainingResult)
        plan = storage.read_document(f"{home}/plan.json", Plan)
        if result is None or plan is None:
            return None
        stopped = runs.Trained(home.rpartition("/")[2], home, result, found=False, tracked=[])
        record = record_files.new_record(cell.label, cell.config, cell.patch_set, stopped)
        record = replace(record, planned_steps=plan.steps)
        weights = f"{home}/{runs.STOPPED}.safetensors"
        if not record_files.save_part(folder, record, weights, home, moments):
            return None
        print(f"cell {cell.label} recorded at step {result.steps} of {plan.steps}", flush=True)
        if scored:
            place = f"{home}/{runs.STOPPED}"
            stage = f"evaluate {cell.label}"
            scores = trained_network.evaluate(cell.config, cell.patch_set, weights, place, METHODS, stage)
            record_files.save(folder, record, weights, scores)
    except (UserError, OSError) as error:
        print(f"cell {cell.label} cannot be recorded: {one_line(error)}", file=sys.stderr, flush=True)
        return None
    return result.steps
