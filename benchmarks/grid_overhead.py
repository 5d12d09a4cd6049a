"""What a grid costs beyond its trainings: trials one after another against the same trainings as plain commands.

    python benchmarks/grid_overhead.py [--cells 4] [--minutes 5]

The cells differ in their seed. The first plain training turns the minutes into steps, which all others make. Times are
of whole commands: starts, validation, and the grid's measuring, evaluation and report included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from train_step import machine

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    seeds = list(range(options.cells))
    with tempfile.TemporaryDirectory() as folder:
        common = ["--config", "configs/demo.yaml", f"--home={folder}/plain", "--train.validate_every", "200"]
        command("preprocess", *common)
        length = f"{options.minutes:g} minutes"
        plain = []
        for seed in seeds:
            plain.append(command("train", *common, f"--train.seed={seed}", f"--train.length={length}"))
            if not seed:
                (plan,) = Path(folder, "plain", "trainings").glob("*/plan.json")
                length = f"{json.loads(plan.read_text())['steps']} steps"
            print(f"plain training {seed + 1}: {plain[-1]:.0f} s ({length})", flush=True)
        axes = json.dumps({"train.seed": seeds})
        common[2] = f"--home={folder}/grid"
        command("preprocess", *common)
        grid = command("tune", *common, f"--train.length={length}", f"--tune.grid={axes}", "--tune.concurrent=1")
    print(f"grid of {len(seeds)}: {grid:.0f} s; plain: {sum(plain):.0f} s")
    figure = {
        "name": "grid_overhead",
        "value": round(grid / sum(plain), 3),
        "unit": "time of a grid / of its trainings",
    }
    print(json.dumps({**figure, "target": 1.1, "better": "lower", "machine": machine()}))


def command(stage: str, *argv: str) -> float:
    """Seconds of a stage's command."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"pipeline.{stage}", *argv], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
