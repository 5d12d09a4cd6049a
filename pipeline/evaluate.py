"""Score the training that the configuration describes, beside bicubic interpolation and the untrained network.

`python -m pipeline.evaluate --config FILE` scores it on held-out images and benchmark sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage, terminal
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import command, parse
from pipeline.settings.prerequisites import check_prerequisites


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.evaluate`."""
    config = parse(argv, "evaluate", "Score the finished training that the configuration describes.")
    check_prerequisites(config, trains=True, scores=True)
    if not _may_be_finished(config):
        raise UserError(
            f"{config.outputs}/trainings has no finished training {config.training_label}, which the configuration "
            "describes: run pipeline.train with the same settings first"
        )
    with storage.hold(config.outputs, "python -m pipeline.evaluate"):
        with terminal.stage("", "PyTorch and Ray are loading"):
            from pipeline.data import benchmark_sets, preparation  # after the checks, because imports take seconds
            from pipeline.evaluation import scores, tables
            from pipeline.training import runs

        for name, source in config.evaluate.benchmarks.items():
            print(benchmark_sets.list_set(name, source, config.scale, config.downloads).summary(), flush=True)
        planned = preparation.plan(config)
        trained = runs.find_training_on(config, planned.name)
        if trained is None:
            raise UserError(
                f"{config.outputs}/trainings has no finished training of exactly these images and settings: run "
                "pipeline.train with the same settings first"
            )
        patch_set, _ = preparation.carry_out(planned)
        folder = f"{config.outputs}/workflows/{trained.name}"
        scored = scores.evaluate(config, patch_set, trained.weights, folder)
        print(f"{tables.scores_table(scored)}\n\nscores: {folder}/scores.json")


def _may_be_finished(config: Config) -> bool:
    """Tell whether there is a finished training of this name, perhaps with other images or settings."""
    trainings = f"{config.outputs}/trainings"
    return any(
        storage.exists(f"{trainings}/{name}/result.json")
        for name in storage.names(trainings)
        if name.startswith(f"{config.training_label}-")
    )


if __name__ == "__main__":
    main()
