"""Score the training that the configuration describes, beside bicubic interpolation and the untrained network.

`python -m pipeline.evaluate --config FILE` scores it on held-out images and benchmark sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data import preparation
from pipeline.evaluation import scores, tables
from pipeline.settings import UserError
from pipeline.settings.command_line import command, parse
from pipeline.training import runs


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.evaluate`."""
    config = parse(argv, "evaluate", "Score the finished training that the configuration describes.")
    patch_set, _ = preparation.prepare(config)
    trained = runs.find_training(config, patch_set)
    if trained is None:
        raise UserError("the training that the configuration describes is not finished: run pipeline.train first")
    folder = f"{config.outputs}/workflows/{trained.name}"
    scored = scores.evaluate(config, patch_set, trained.weights, folder)
    print(f"{tables.scores_table(scored)}\n\nscores: {folder}/scores.json")


if __name__ == "__main__":
    main()
