"""Score models, or the training that the configuration describes, with PSNR, SSIM and perceptual distances.

`python -m pipeline.evaluate --model MODEL … --sets NAME=FOLDER …` scores any models on benchmark sets.
`python -m pipeline.evaluate --config FILE` scores the configured training on held-out images and benchmark sets.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from pipeline import storage, terminal
from pipeline.networks import sources
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import Parser, command, parse_with, split_settings
from pipeline.settings.evaluation import split_name
from pipeline.settings.fields import absolute_path
from pipeline.settings.places import names_tracking, sets_folder
from pipeline.settings.prerequisites import check_prerequisites
from pipeline.settings.sampling import seed_number, step_count
from sr_model.networks.sampling import SOLVERS

_OPTIONS = {
    "--model": (
        "[NAME=]MODEL ...",
        "score these models instead of the configured training: a bundled model, a .safetensors or .onnx file, the "
        "folder of a training or workflow, models:/NAME@ALIAS or runs:/ID of MLflow, bicubic, or a folder of images "
        "that another tool has enlarged",
    ),
    "--sets": (
        "NAME[=PLACE] ...",
        "score on these sets instead of those of evaluate.benchmarks; published sets that are not at hand are skipped",
    ),
    "--sets-dir": ("FOLDER", "folder of sets, in which names without a place are looked up (default: $SR_SETS)"),
    "--out": ("FOLDER", "folder for the scores and comparisons of models (default: evaluations/ in the home)"),
    "--steps": ("K ...", "step counts of models that draw images in steps; each count gets a row"),
    "--seeds": ("N ...", "seeds of the noise of such models; several seeds also give the deviation (default: 0)"),
    "--solver": ("euler|heun", "method by which such models make a step (default: euler)"),
    "--csv": ("FILE", "also write the table of models as CSV to this file"),
}
_FLAGS = {
    "--self-ensemble": "enlarge every image in eight orientations with each model, and score the mean",
    "--consistent": "correct the images of each network so that, reduced, they are nearly the LR image",
    "--mlflow": "log the scores of models to MLflow; this is the default if a tracking server is configured",
}


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.evaluate`."""
    own, rest = _read_options(argv)
    purpose = "Score models, or the finished training that the configuration describes."
    config, flags = parse_with(_FLAGS, rest, "evaluate", purpose, described=_OPTIONS)
    concern_models = ("out", "csv", "steps", "seeds", "solver")
    if not own.model and (given := [f"--{key}" for key in concern_models if getattr(own, key)] + sorted(flags)):
        raise UserError(f"{given[0]} needs --model, expected at least one model to score")
    config = _with_sets(config, own)
    check_prerequisites(config, trains=not own.model, scores=True)
    if own.model:
        _score_models(config, own, flags)
    else:
        _score_training(config, other_sets=bool(own.sets or own.sets_dir))


def _read_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate the options of this command that have values from settings and flags."""
    parser = Parser("evaluate", add_help=False)
    lists = [option for option, (value, _) in _OPTIONS.items() if value.endswith("...")]
    for option in _OPTIONS:
        if option in lists:
            parser.add_argument(option, nargs="+", action="extend")
        else:
            parser.add_argument(option, choices=SOLVERS if option == "--solver" else None)
    own, rest = parser.parse_known_args(argv)
    kinds = {"--steps": step_count, "--seeds": seed_number}
    for option in lists:  # a bare setting, such as cluster.gpu=false, may follow their values
        key = option.removeprefix("--")
        values, settings = split_settings(getattr(own, key) or [])
        rest += settings
        try:
            read = [kinds[option](text) for value in values for text in value.split(",")] if option in kinds else values
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument {option}: {error}")
        setattr(own, key, read)
    own.out, own.csv = (place and absolute_path(place) for place in (own.out, own.csv))
    return own, rest


def _with_sets(config: Config, own: argparse.Namespace) -> Config:
    """Return the configuration with the sets that the options name, and say which of them are skipped."""
    folder = sets_folder(own.sets_dir)
    if not own.sets and not (own.model or own.sets_dir):
        return config
    from pipeline.evaluation import sets  # after the options are read, because imports take time

    places, skipped = sets.find_sets(own.sets, config.evaluate.benchmarks, folder)
    for sentence in skipped:
        print(sentence, flush=True)
    if not places:
        raise UserError("none of the named sets is at hand: expected --sets NAME=FOLDER for at least one of them")
    evaluate = config.evaluate.model_copy(update={"benchmarks": places})
    return config.model_copy(update={"evaluate": evaluate})


def _score_models(config: Config, own: argparse.Namespace, flags: set[str]) -> None:
    for _, model in map(split_name, own.model):
        if not storage.is_url(model) and not model.startswith(("models:", "runs:")) and not os.path.lexists(model):
            sources.find_model(model)  # before imports that take seconds
    with terminal.stage("", "PyTorch and Ray are loading"):
        from pipeline.evaluation.sampled import Drawing  # after the checks, because imports take seconds
        from pipeline.reporting import scoreboard

    ensemble, track = "--self-ensemble" in flags, "--mlflow" in flags or names_tracking(config)
    drawing = Drawing(tuple(own.steps or ()), tuple(own.seeds or ()), own.solver)
    consistent = "--consistent" in flags
    board = scoreboard.score_models(config, own.model, ensemble, own.out, own.csv, track, drawing, consistent)
    remarks = [line for remark in board.remarks for line in (remark, "")]
    print("\n".join(["", board.table, "", *remarks, *board.scores.problems, "written:", *board.files]))
    if board.scores.problems:
        raise SystemExit(1)


def _score_training(config: Config, other_sets: bool) -> None:
    """Score the configured training, and write to the folder of its workflow or, for other sets, to another one."""
    if not _may_be_finished(config):
        raise UserError(
            f"{config.outputs}/trainings has no finished training {config.training_label}, which the configuration "
            "describes: run pipeline.train with the same settings first, or name models with --model"
        )
    with storage.lock_folder(config.outputs, "python -m pipeline.evaluate"):
        with terminal.stage("", "PyTorch and Ray are loading"):
            from pipeline.data import benchmark_sets, preparation  # after the checks, because imports take seconds
            from pipeline.evaluation import tables, trained_network
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
        if other_sets:
            identity = trained_network.identify(config, patch_set, trained.weights)
            folder = f"{config.outputs}/evaluations/{identity}"
        scored = trained_network.evaluate(config, patch_set, trained.weights, folder)
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
