"""Train a network on a patch set: Ray Train runs the same loop on every worker, and DDP averages their gradients.

`python -m pipeline.train --config FILE` makes the patch set if there is none, trains, and prints the location of the
weights. Rerun the same command to resume after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline import storage, terminal, tracking
from pipeline.settings.command_line import command, parse_with
from pipeline.settings.prerequisites import check_prerequisites
from pipeline.training.methods import find_method


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.train`."""
    start = time.time()
    flags = {"--dry-run": "plan and measure, print the plan, and train nothing"}
    config, given = parse_with(flags, argv, "train", "Train a network.")
    find_method(config)
    check_prerequisites(config, trains=True)
    with storage.lock_folder(config.outputs, "python -m pipeline.train"):
        problem = None if given else tracking.find_problem(config)
        may_be_finished = tracking.any_tracked(f"{config.outputs}/trainings", config.training_label)
        if problem and not may_be_finished:
            raise problem

        with terminal.stage("", "PyTorch and Ray are loading"):
            from pipeline.data import preparation  # after the checks, because imports take seconds
            from pipeline.training import driver, dry_run, initial, preflight

        if not may_be_finished:
            initial.check_initial(config)
            preflight.check_ahead(config)
        patch_set, _ = preparation.prepare(config)
        if given:
            print(dry_run.describe_plan(config, patch_set))
            return
        trained = driver.train(config, patch_set, stop_at=config.cluster.stop_at(start))
        found = ", found finished" if trained.found else ""
        print(f"weights {trained.weights} ({trained.result.steps} steps{found})")


if __name__ == "__main__":
    main()
