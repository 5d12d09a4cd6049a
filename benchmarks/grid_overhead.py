"""Compare the time of a grid with the time of the same trainings as plain commands, one after another.

The cells of the grid differ in their seed. The first plain training turns the minutes into steps, and all others make
the same number of steps. The times include everything that the commands do: starts, validations, and the measurements,
evaluation and report of the grid.

    python -m benchmarks.grid_overhead [--cells N] [--minutes N]
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.measuring import Result, parser_of, print_results, time_command


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--cells", type=int, default=4, help="trainings (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each training (%(default)g)")
    arguments = parser.parse_args()
    seeds = list(range(arguments.cells))
    length = f"{arguments.minutes:g} minutes"
    common = ["--config", "configs/demo.yaml", "--train.validate_every", "200"]
    with tempfile.TemporaryDirectory() as folder:
        options = [*common, f"--home={folder}/plain"]
        time_command("preprocess", *options)
        plain = []
        for seed in seeds:
            plain.append(time_command("train", *options, f"--train.seed={seed}", f"--train.length={length}"))
            if not seed:
                (plan,) = Path(folder, "plain", "trainings").glob("*/plan.json")
                length = f"{json.loads(plan.read_text())['steps']} steps"
            print(f"plain training {seed + 1}: {plain[-1]:.0f} s ({length})", flush=True)
        options = [*common, f"--home={folder}/grid"]
        time_command("preprocess", *options)
        axes = json.dumps({"train.seed": seeds})
        grid = time_command("tune", *options, f"--train.length={length}", f"--tune.grid={axes}", "--tune.concurrent=1")
    print(f"grid of {len(seeds)} cells: {grid:.0f} s; plain trainings: {sum(plain):.0f} s")
    unit = "time of a grid / of its trainings as plain commands"
    print_results(Result("grid_overhead", round(grid / sum(plain), 3), unit, 1.1, "lower"))


if __name__ == "__main__":
    main()
