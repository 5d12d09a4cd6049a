"""Train and compare a grid with Ray Tune; the default grid is BatchNorm or none, by MSE or perceptual loss.

`python -m pipeline.tune --config configs/grid.yaml` prints its plan, trains the cells, and compares them in a table, a
report and MLflow. All cells have the same steps, samples and schedule, except where an axis changes them, and as many
train at once as the cluster has room for. Rerun the same command to resume; each cell resumes from its newest
checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline import storage, terminal, tracking
from pipeline.grid.variants import list_variants
from pipeline.settings.command_line import command, parse_with
from pipeline.settings.prerequisites import check_prerequisites
from pipeline.training.methods import find_method


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.tune`."""
    start = time.time()
    flags = {"--dry-run": "print the plan and train nothing"}
    config, given = parse_with(flags, argv, "tune", "Train and compare a grid.", tracking.fetch_config)
    check_prerequisites(config, scores=True)
    for variant in list_variants(config):
        find_method(variant.config)
    with storage.lock_folder(config.outputs, "python -m pipeline.tune"):
        if not given and (problem := tracking.find_problem(config)):
            raise problem

        with terminal.stage("", "PyTorch and Ray are loading"):
            from pipeline.grid import experiment  # after the checks, because imports take seconds

        if experiment.run(config, dry_run=bool(given), stop_at=config.cluster.stop_at(start)):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
