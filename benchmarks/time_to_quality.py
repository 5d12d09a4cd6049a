"""Measure the minutes from an empty folder to the best published cell: 30.685 dB on Set5 at x4, on Y.

Each seed is one `pipeline.train` command with an empty home. Everything counts: imports, preprocessing, the start of
Ray, the training, and scoring the moving average on Set5 at a fixed cadence. The clock stops when a score passes. To
try other recipes, change configs/speedrun.yaml or give settings.

    python -m benchmarks.time_to_quality --source PHOTOS --set5 BENCHMARKS/Set5 [--seeds N] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import Result, parser_of, print_results
from pipeline import storage
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.tracking import JournalReader, JournalRecord

METRIC = "bench/Set5/psnr_y"


def main() -> None:
    """Train with every seed, and print when each passed."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="configs/speedrun.yaml", help="configuration to run (%(default)s)")
    parser.add_argument("--source", required=True, help="training images")
    parser.add_argument("--set5", required=True, help="folder of Set5")
    parser.add_argument("--target", type=float, default=30.685, help="PSNR on Y to reach, in dB (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that override the configuration")
    arguments = parser.parse_args()
    minutes = [time_training(arguments, seed) for seed in range(arguments.seeds)]
    median = statistics.median(minutes)
    unit = f"minutes to {arguments.target} dB on Set5, median of {arguments.seeds} seeds"
    print_results(Result("time_to_quality", round(median, 2) if median < math.inf else None, unit, 3, "lower"))


def time_training(arguments: argparse.Namespace, seed: int) -> float:
    """Return the minutes from the start of the command until a score passed; infinity if none did."""
    # Ray's processes may outlive the command for a moment and still write to the folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        options = [
            *(f"--config={arguments.config}", f"--source={arguments.source}", f"--home={home}"),
            *(f"--train.seed={seed}", f"--data.scratch={home}/tiles", "--evaluate.while_training=true"),
            f"--evaluate.benchmarks={json.dumps({'Set5': arguments.set5})}",
            *(f"--{setting}" for setting in arguments.settings),
        ]
        config = parse(options, "train", "")
        if not seed:
            print(describe_recipe(config))
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        # Empty caches, so that nothing of earlier runs is reused.
        environment |= {"SR_CACHE": f"{home}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor"}
        started = time.time()
        with Path(home, "log").open("w+") as log:
            command = [sys.executable, "-m", "pipeline.train", *options]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                best = await_target(process, f"{home}/trainings", arguments.target)
            finally:
                process.terminate()  # has the effect of Ctrl-C, which a background job ignores
                process.wait()
            if best is None:
                log.seek(0)
                raise SystemExit(log.read()[-3000:])
    minutes = (best.time / 1000 - started) / 60
    patches = best.step * config.train.global_batch
    psnr = best.metrics[METRIC]
    print(f"seed {seed}: {psnr:.3f} dB after {minutes:.2f} minutes, {best.step} steps, {patches} patches", flush=True)
    return minutes if psnr >= arguments.target else math.inf


def describe_recipe(config: Config) -> str:
    """Return the settings that matter most, in one line."""
    recipe = config.train
    return (
        f"recipe: {recipe.optimizer}, learning rate {recipe.lr:g}, {recipe.length}, batch {recipe.global_batch}, "
        f"crop {config.data.crop}, EMA {recipe.ema_decay}, scored every {recipe.validate_every} steps"
    )


def await_target(process: subprocess.Popen[bytes], trainings: str, target: float) -> JournalRecord | None:
    """Read the journal of a running training until a validation passes or the command ends.

    Args:
        process: the running command.
        trainings: folder of its trainings.
        target: PSNR on Set5 to reach, in dB.

    Returns:
        The first validation that passed, else the best one; None if there was none.
    """
    best: JournalRecord | None = None
    readers: dict[str, JournalReader] = {}
    running = True
    while running:
        running = process.poll() is None
        for name in storage.names(trainings):
            reader = readers.setdefault(name, JournalReader(f"{trainings}/{name}/journal"))
            for record in reader.new():
                if METRIC not in record.metrics:
                    continue
                psnr = record.metrics[METRIC]
                print(f"  step {record.step}: {psnr:.3f} dB", flush=True)
                if best is None or psnr > best.metrics[METRIC]:
                    best = record
                if psnr >= target:
                    return record
        time.sleep(1)
    return best


if __name__ == "__main__":
    main()
