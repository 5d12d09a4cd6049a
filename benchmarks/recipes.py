"""Compare recipes by the held-out PSNR of short trainings on equally many pixels.

Each recipe has a name and the settings in which it differs from `--config`. Settings without a name apply to all
recipes. Each training sees as many pixels as `--patches` HR patches of 96x96 contain. All trainings run in one process
on all cores, without Ray.

Benchmark sets take no part, because recipes are chosen by held-out images. Beside PSNR, ST-LPIPS is shown, and the
phase energy as a share of the truth's: more than 1 is a fine pattern with the period of the scale. The setting
`evaluate.squeezenet=WEIGHTS` adds the distance between features of SqueezeNet.

    python -m benchmarks.recipes --source PHOTOS --patches 3000 'b16: train.global_batch=16' 'b8: train.global_batch=8'
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from benchmarks.measuring import Result, parser_of, print_results
from pipeline import storage
from pipeline.data import preparation
from pipeline.evaluation import scoring
from pipeline.networks import features
from pipeline.networks.upscaling import upscale
from pipeline.networks.weights import load_network
from pipeline.settings.command_line import parse
from pipeline.tracking import TrainingResult
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker
from sr_model.pixels import to_tensor


@dataclass(frozen=True)
class Outcome:
    """Scores of a recipe on the held-out images."""

    psnr_y: float
    """dB"""
    ssim_y: float
    st_lpips: float
    phase_ratio: float
    """Phase energy of the enlarged images by that of the true ones."""
    distance: float | None
    """Distance between features of SqueezeNet, if its weights are configured."""
    steps: int
    seconds: float

    def __str__(self) -> str:
        distance = "" if self.distance is None else f", distance {self.distance:.4g}"
        return (
            f"{self.psnr_y:.3f} dB, SSIM {self.ssim_y:.4f}, ST-LPIPS {self.st_lpips:.4f}{distance}, "
            f"phase energy {self.phase_ratio:.2f}, {self.steps} steps in {self.seconds:.0f} s"
        )


def main() -> None:
    """Train every recipe, one after another, and print the scores."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="configs/results.yaml", help="configuration of all recipes (%(default)s)")
    parser.add_argument("--source", required=True, help="training images")
    parser.add_argument("--home", help="folder for the patch set; a temporary one by default")
    parser.add_argument("--patches", type=int, default=3000, help="HR patches of 96x96 per training (%(default)s)")
    parser.add_argument("recipes", nargs="+", metavar="[NAME:] KEY=VALUE ...", help="settings, with or without a name")
    arguments = parser.parse_args()
    shared = [recipe for recipe in arguments.recipes if "=" in recipe.partition(":")[0]]
    named = [recipe for recipe in arguments.recipes if recipe not in shared]
    if not named:
        parser.error("no recipe has a name, expected at least one as 'NAME: KEY=VALUE'")
    names = [recipe.partition(":")[0] for recipe in named]
    if len(set(names)) < len(names):
        parser.error("several recipes have the same name, expected a name of its own for each")
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = arguments.home or folder
        common = [f"--config={arguments.config}", f"--source={arguments.source}", f"--home={home}", *shared]
        for recipe in named:
            name, _, settings = recipe.partition(":")
            outcomes[name] = train([*common, *settings.split()], arguments.patches, f"{folder}/{len(outcomes)}")
            print(f"{name:40} {outcomes[name]}", flush=True)
    best = max(outcomes, key=lambda name: outcomes[name].psnr_y)
    unit = f"dB on held-out images, recipe {best!r}"
    print_results(Result("recipes", round(outcomes[best].psnr_y, 3), unit, None, "higher"))


def train(options: Sequence[str], patches: int, folder: str) -> Outcome:
    """Train one recipe.

    Args:
        options: its command line.
        patches: number of HR patches of 96x96 with as many pixels as the training sees.
        folder: folder of the training.
    """
    config = parse(options, "train", "")
    steps = round(patches * 96**2 / config.data.crop**2 / config.train.global_batch)
    config = parse([*options, f"--train.length={steps} steps", f"--train.validate_every={steps}"], "train", "")
    config = features.prepare_terms(config)
    patch_set, _ = preparation.prepare(config)
    ray.shutdown()  # preparation may have started it; the training gets all cores
    worker = Worker(config, patch_set, folder, Ranks(torch.device("cpu")))
    start = time.monotonic()
    worker.run()
    seconds = time.monotonic() - start
    result = storage.read_document(f"{folder}/result.json", TrainingResult)
    assert result is not None
    net = load_network(f"{folder}/model.safetensors")
    squeezenet = features.prepare_distance(config)
    judges = ["st_lpips", "phase_energy", *(["distance"] if squeezenet else [])]
    scores = []
    for image in map(patch_set.read_holdout, range(patch_set.held_out)):
        lr, hr = to_tensor(image.lr), to_tensor(image.hr)
        scores.append(scoring.measure_further(judges, upscale(net, lr), lr, hr, squeezenet))
    mean = scoring.mean_scores(scores)
    return Outcome(
        result.metrics["val/psnr_y"],
        result.metrics["val/ssim_y"],
        mean["st_lpips"],
        mean["phase_energy"] / mean["true_phase_energy"],
        mean.get("distance"),
        steps,
        seconds,
    )


if __name__ == "__main__":
    main()
