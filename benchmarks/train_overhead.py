"""Compare the throughput of a whole training with that of the bare step on data in memory.

The training is real: Ray Train, DDP, reading, augmentation, logging to MLflow and checkpoints, on the built-in
photographs. After each block of its steps, the same workers make a block of bare steps with a second learner on one
batch in memory. The medians of all blocks after the first are compared. Validations are timed separately and not
counted.

    python -m benchmarks.train_overhead [--blocks N] [--block N] [--small]
"""

from __future__ import annotations

import statistics
import tempfile

import torch

from benchmarks import stopwatch
from benchmarks.measuring import Result, parser_of, print_results, print_times
from pipeline import storage
from pipeline.data import preparation
from pipeline.settings.command_line import parse
from pipeline.training import driver
from pipeline.training.job import LoopResult, TrainJob


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--blocks", type=int, default=16, help="timed blocks (%(default)s)")
    parser.add_argument("--block", type=int, default=25, help="steps per block (%(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="train 8 blocks of 32 channels, whose short steps hide less of the rest"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    block = arguments.block
    channels, blocks = (32, 8) if arguments.small else (64, 16)
    with tempfile.TemporaryDirectory() as home:
        options = [
            *("--config", "configs/demo.yaml", "--home", home, "data.window=256", "cluster.workers=2"),
            *(f"model.channels={channels}", f"model.blocks={blocks}", "train.micro_batch=8", "train.compile=off"),
            *(f"train.length={(arguments.blocks + 1) * block + 1} steps", f"train.validate_every={4 * block}"),
            "train.checkpoint_every=100",
        ]
        config = parse(options, "train", "")
        patch_set, _ = preparation.prepare(config)

        def timed_loop(arguments: dict[str, TrainJob]) -> LoopResult:
            return stopwatch.train_loop(arguments, block)

        driver.train_loop = timed_loop  # type: ignore[attr-defined]
        trained = driver.train(config, patch_set)
        times = storage.read_document(f"{trained.folder}/times.json", stopwatch.Times)
        history = trained.history()
    assert times is not None
    training, bare = ([seconds / block for seconds in column[1:]] for column in (times.training, times.bare))
    print_times({"training": training, "bare step": bare})
    validations = sum(record.kind == "validation" for record in history)
    print(f"{len(training) * block} steps of each; {validations} validations, not counted")
    waits = [record.metrics["train/data_wait_share"] for record in history if record.kind == "train"]
    print(f"waiting for data: {100 * statistics.median(waits):.3f} % of the time (median of records)")
    ratios = [b / t for t, b in zip(training, bare, strict=True)]
    print(f"ratio block by block: {min(ratios):.3f} to {max(ratios):.3f}")
    name = "train_overhead_small" if arguments.small else "train_overhead"
    unit = "patches/s of a whole training / of the bare step"
    print_results(Result(name, round(statistics.median(ratios), 3), unit, 0.97, "higher"))


if __name__ == "__main__":
    main()
