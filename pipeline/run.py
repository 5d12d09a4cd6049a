#!/usr/bin/env python
"""Run the whole workflow: preprocess, train, evaluate and report, tracked in MLflow.

`python -m pipeline.run --config configs/demo.yaml`, or on a cluster `ray job submit --working-dir . pipeline/run.py`.
Interrupt it at any point and rerun it to resume.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and __package__ in (None, ""):
    # In a script, Python puts pipeline/ itself on the path, so replace it with the folder that contains it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import storage, terminal, tracking
from pipeline.settings.command_line import command, parse_with
from pipeline.settings.prerequisites import check_prerequisites
from pipeline.training.methods import find_method
from pipeline.workflow import finished


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.run`."""
    start = time.time()
    config, _ = parse_with({}, argv, "run", "Preprocess, train, evaluate and report.", tracking.fetch_config)
    find_method(config)
    check_prerequisites(config, trains=True, scores=True)
    with storage.lock_folder(config.outputs, "python -m pipeline.run"):
        problem = tracking.find_problem(config)
        if problem and not finished.may_be_finished(config):
            raise problem

        with terminal.stage("", "PyTorch and Ray are loading"):
            from pipeline.workflow import workflow  # after the checks, because imports take seconds

        workflow.run_workflow(config, config.cluster.stop_at(start))


if __name__ == "__main__":
    main()
