"""Train and compare a grid with Ray Tune: by default BatchNorm yes or no x MSE or perceptual loss.

`python -m pipeline.tune --config configs/grid.yaml` prints its plan, trains every cell with the same steps, samples and
schedule (except what an axis changes), as many at once as the cluster holds, and compares them: a table, a report and
MLflow. Rerun the same command to resume; each cell resumes from its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import tracking
from pipeline.grid import experiment
from pipeline.settings.command_line import command, parse_with


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.tune`."""
    flags = {"--dry-run": "print the plan, and train nothing"}
    config, given = parse_with(flags, argv, "tune", "Train and compare a grid.", tracking.fetch_config)
    if experiment.run(config, dry_run=bool(given)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
