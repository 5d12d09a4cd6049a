"""Measure what the metrics for Prometheus cost a training on a machine where nobody reads them.

A training records its progress, its score, its backlog and a checkpoint, each once a second, which is more often than a
real one does. The time of these calls is compared with the second.

    python -m benchmarks.metrics_overhead [--seconds N]
"""

from __future__ import annotations

import statistics
import tempfile
import time

from benchmarks.measuring import Result, parser_of, print_results
from pipeline import cluster
from pipeline.cluster import metrics
from pipeline.settings.command_line import parse


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=int, default=2000, help="seconds of training to stand for (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        alone = _time_second()
        cluster.connect(parse(["--home", home], "train", ""))
        times = [_time_second() for _ in range(arguments.seconds)]
    print(f"without Ray: {alone * 1e6:.0f} µs; with Ray: {statistics.median(times) * 1e6:.0f} µs (median)")
    share = statistics.mean(times)
    print_results(Result("metrics_overhead", float(f"{share:.2g}"), "s of metrics / s of training", 0.001, "lower"))


def _time_second() -> float:
    """Record what a second of training records, and return the seconds that it took."""
    started = time.perf_counter()
    metrics.show_progress("training", metrics.Progress(1, 2.0, 0.5, 100.0, 0.1, 0.0))
    metrics.show_score("training", 30.0)
    metrics.show_backlog("training", 0)
    metrics.observe_checkpoint("training", 0.1)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
