"""Train and compare a grid with Ray Tune; the default grid is BatchNorm or none, by MSE or perceptual loss.

`python -m pipeline.tune --config configs/grid.yaml` prints its plan, trains the cells, and compares them in a table, a
report and MLflow. All cells have the same steps, samples and schedule, except where an axis changes them, and as many
train at once as the cluster has room for. Rerun the same command to resume; each cell resumes from its newest
checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import tracking
from pipeline.grid import experiment
from pipeline.settings.command_line import command, parse_with


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.tune`."""
    flags = {"--dry-run": "print the plan and train nothing"}
    config, given = parse_with(flags, argv, "tune", "Train and compare a grid.", tracking.fetch_config)
    if experiment.run(config, dry_run=bool(given)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
