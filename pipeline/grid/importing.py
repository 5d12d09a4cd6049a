"""Records into MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import tracking
from pipeline.grid import records as written
from pipeline.reporting import comparison, records
from pipeline.reporting.records import Recorded
from pipeline.reporting.results_page import _row
from pipeline.settings import Config, UserError
from pipeline.training import driver, runs


def import_records(found: Sequence[Recorded], folder: str, home: str) -> None:
    """Make a grid in MLflow of recorded cells, as if they had been trained here; one that is there is left as it is.

    Args:
        found: the records.
        folder: where their weights are.
        home: folder of outputs, with the store.
    """
    home = Config(home=home).outputs
    store = {"uri": f"sqlite:///{home}/mlflow.db"}
    configs = [records.configuration(recorded, home=home, tracking=store) for recorded in found]
    config = configs[0]
    grid = f"{home}/grids/recorded"
    tracker = tracking.Tracker(config)
    with tracker.run(grid, config.name, {"stage": "grid", "scale": str(config.scale)}) as parent:
        parent.describe({"cells": len(found)}, config)
        rows = []
        for recorded, cell in zip(found, configs, strict=True):
            place = f"{home}/trainings/{recorded['training']}"
            trained = runs.find_at(place)
            if not trained and written.restore(folder, recorded, place):
                trained = runs.find_at(place)
            if not trained:
                raise UserError(f"the record {recorded['label']} has no weights, expected its model.safetensors")
            if parent.id not in trained.tracked:
                tags = driver.tags(cell, recorded["identity"]["patch_set"], recorded["label"])
                tags |= records.provenance(recorded)
                driver.track(trained, cell, tags, tracker, parent.id, recorded["label"])
            rows.append(_row(recorded, place))
        facts = {"recorded": ", ".join(sorted({recorded["recorded"] for recorded in found}))}
        comparison.write(grid, config, rows, facts, parent, tracker)
    print(f"{len(rows)} recorded cells are in {config.tracking_uri}; report: {grid}/report.html")
    print(f"MLflow: {tracking.ui_command(config)}")
