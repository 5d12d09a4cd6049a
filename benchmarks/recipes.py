"""Short trainings that differ in their recipe: PSNR on held-out images after equally many pixels.

    python benchmarks/recipes.py --source PHOTOS --patches 3000 'b16: train.global_batch=16' 'b8: train.global_batch=8'

Each recipe is a name and the settings in which it differs from `--config`; settings without a name are of all. Each
sees as many pixels as `--patches` HR patches of 96x96 have. One process with all cores, no Ray. Benchmark sets take no
part: recipes are chosen by held-out images; perceptual ones by distance, too, which `evaluate.squeezenet=WEIGHTS`
among the settings measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pipeline import cluster, storage
from pipeline.data import preparation
from pipeline.evaluation import scoring
from pipeline.networks import features, upscaling
from pipeline.networks.weights import read_weights
from pipeline.settings.command_line import parse
from pipeline.training.planning import Rank
from pipeline.training.worker import Worker
from sr_model.srresnet import from_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from train_step import machine


def main() -> None:
    """Train every recipe, one after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/results.yaml")
    parser.add_argument("--source", required=True)
    parser.add_argument("--home", help="where the patch set is kept")
    parser.add_argument("--patches", type=int, default=3000)
    parser.add_argument("recipes", nargs="+", metavar="[NAME:] KEY=VALUE ...")
    args = parser.parse_args()
    shared = [recipe for recipe in args.recipes if "=" in recipe.partition(":")[0]]
    if len(shared) == len(args.recipes):
        parser.error("no recipe has a name, expected at least one as 'NAME: KEY=VALUE'")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        common = [f"--config={args.config}", f"--source={args.source}", f"--home={args.home or folder}", *shared]
        for recipe in args.recipes:
            if recipe in shared:
                continue
            name, _, settings = recipe.partition(":")
            results[name] = train([*common, *settings.split()], args.patches, f"{folder}/{len(results)}")
            print(f"{name:40} " + ", ".join(f"{key} {value:.4g}" for key, value in results[name].items()), flush=True)
    best = max(results, key=lambda name: results[name]["psnr_y"])
    figure = {"name": "recipes", "value": round(results[best]["psnr_y"], 3), "unit": f"dB held-out, of {best!r}"}
    print(json.dumps({**figure, "target": None, "better": "higher", "machine": machine()}))


def train(options: list[str], patches: int, folder: str) -> dict[str, float]:
    """Train one recipe; what came of it."""
    config = parse(options, "benchmark", "")
    steps = round(patches * 96**2 / config.data.crop**2 / config.train.global_batch)
    config = parse([*options, f"--train.length={steps} steps", f"--train.validate_every={steps}"], "benchmark", "")
    config = features.prepare(config)
    patch_set, _ = preparation.prepare(config)
    cluster.ray.shutdown()
    worker = Worker(config, patch_set, folder, Rank(torch.device("cpu")))
    start = time.monotonic()
    worker.run()
    seconds = time.monotonic() - start
    result = storage.read_json(f"{folder}/result.json")
    scores = {"psnr_y": result["val/psnr_y"], "ssim_y": result["val/ssim_y"]}
    if squeezenet := features.prepare_distance(config):
        net = from_weights(read_weights(f"{folder}/model.safetensors"))
        images = map(patch_set.read_holdout, range(len(patch_set.holdout_names)))
        scores["distance"] = statistics.fmean(
            scoring.feature_distance(squeezenet, upscaling.upscale_image(net, lr), hr) for _, hr, lr in images
        )
    return {**scores, "steps": steps, "s": seconds}


if __name__ == "__main__":
    main()
