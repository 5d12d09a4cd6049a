"""Train cells of a grid in this process, on a machine that has neither Ray nor MLflow.

    python -m benchmarks.gpu.trainings --cell LABEL ... --config configs/results.yaml --source PHOTOS --home HOME

makes the patch sets and trains the cells one after another, on a GPU if there is one; without `--cell`, it only makes
the patch sets of all cells. Several commands may train different cells of one home. A training resumes from its newest
checkpoint, and a finished one is left as it is. With the same settings, and a home to which the finished trainings were
copied, `python -m pipeline.tune` finds them, scores them and records them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from filelock import FileLock

from benchmarks.gpu.patches import make_patch_set
from benchmarks.measuring import machine, parser_of
from pipeline import storage
from pipeline.grid.variants import list_variants
from pipeline.networks import features
from pipeline.networks.devices import best_device
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training import runs
from pipeline.training.initial import locate_initial, store_initial
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker


def main(argv: Sequence[str] | None = None) -> None:
    """Train the cells.

    Args:
        argv: the command line without the program's name; by default that of the process.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--cell", action="append", default=[], metavar="LABEL", help="label of a cell to train")
    arguments, settings = parser.parse_known_args(argv)
    variants = {variant.label: variant.config for variant in list_variants(parse(settings, "tune", ""))}
    if unknown := [label for label in arguments.cell if label not in variants]:
        sys.exit(f"error: --cell names {', '.join(unknown)}, expected some of {', '.join(variants)}")
    for label, config in variants.items():
        if not arguments.cell:
            print(f"{label}: {make_patch_set(config).url}", flush=True)
        elif label in arguments.cell:
            start = time.monotonic()
            trained = train(config)
            score = trained.result.metrics["val/psnr_y"]
            took = f"{time.monotonic() - start:.0f} s"
            print(f"{label}: {score:.3f} dB on held-out images, {trained.folder}, {took}, {machine()}", flush=True)


def train(config: Config) -> runs.Trained:
    """Train to the end, or find the training if it is finished, as `pipeline.training.driver.train` does with Ray."""
    home = config.outputs
    with FileLock(f"{home}/patchsets.lock"):
        patch_set = make_patch_set(config)
    described, config = config, locate_initial(config)
    folder = runs.training_folder(config, patch_set)
    if not (finished := runs.open_training(folder)):
        storage.write(f"{folder}/config.yaml", storage.redact(described.to_yaml()).encode())
        prepared = store_initial(features.prepare_terms(config), folder)
        Worker(prepared, patch_set, folder, Ranks(best_device())).run()
        finished = runs.open_training(folder)
    assert finished is not None
    return finished


if __name__ == "__main__":
    main()
