"""Measure the peak memory of a training process against the global batch.

A full-size SRResNet x4 trains on 96x96 patches with Adam in fp32, on all cores of one process, in three ways: a plain
loop that holds the whole batch at once, the pipeline's learner with micro-batches, and the learner that also recomputes
activations. Every cell of the table is a separate process under one memory limit. It makes a small first step and then
one step of the global batch, and reports its peak resident memory (MB of 10^6 bytes).

"Activations" are the difference from the peak of a process that only imports everything and builds the network. They
therefore include gradients, moments, averaged weights, samples, and what libraries allocate at first use. The samples
are random and made one micro-batch at a time. The reader's tiles are not included; their size does not depend on the
batch.

For a global batch above `--full`, the learner runs only the first `--micro-steps` micro-batches and the optimizer's
update. The table also shows the peak after three micro-batches, to tell if further ones change it.

    python -m benchmarks.batch_memory [--no-batch-norm] [--micro N] [--limit-gb N] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil
import torch
import torch.nn.functional as F

from benchmarks.measuring import CROP, SCALE, Result, parser_of, print_results, random_batch
from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse, stop_like_interrupt
from pipeline.training import memory
from pipeline.training.learner import Learner
from pipeline.training.ranks import Ranks
from sr_model.networks.srresnet import SRResNet

CPU = torch.device("cpu")
BUILT, PLAIN, MICRO, RECOMPUTE = "network alone", "whole batch", "micro-batches", "micro-batches, recompute"
REFERENCE = 16
"""Global batch that the largest one is compared with."""
EARLY = 3
"""Number of micro-batches after which the peak is reported for the first time."""
SPARE_MB = 700
"""MB of the machine that stay free for others; the benchmark ends before it takes them."""
_OUT_OF_MEMORY_SIGNALS = (-6, -9)
"""Exit codes of a process in which an allocation outside of PyTorch failed, or that the system killed."""


@dataclass(frozen=True)
class Cell:
    """The report of one process."""

    peak_mb: float | None = None
    """Peak at the end; None if the batch does not fit."""
    early_mb: float | None = None
    """Peak after `EARLY` micro-batches, if there are more."""
    done: int = 1
    """Micro-batches that were run."""
    planned: int = 1
    """Micro-batches of the whole step."""
    reason: str = ""
    """Why the batch does not fit."""


Table = dict[str, dict[int, Cell]]
"""Cells by way of training and global batch."""


def main() -> None:
    """Measure, print and draw."""
    arguments = parse_arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    if arguments.cell:
        print(json.dumps(asdict(measure_here(arguments))))
        return
    stop_like_interrupt()
    available = memory.available_mb(CPU, 1)
    if 1000 * arguments.limit_gb + SPARE_MB > available:
        sys.exit(f"error: --limit-gb is {arguments.limit_gb:g}, but only {available / 1000:.1f} GB are free")
    base = measure(arguments, BUILT, 0).peak_mb
    if base is None:
        sys.exit(f"error: --limit-gb is {arguments.limit_gb:g}, too little for the network alone")
    norm = "without" if arguments.no_batch_norm else "with"
    print(f"{arguments.blocks} blocks, {arguments.channels} channels, {norm} BatchNorm")
    print(f"limit {arguments.limit_gb:g} GB, micro-batches of {arguments.micro}, network alone {base:.0f} MB\n")
    print(f"{'MB':24} {'global batch':>12} {f'peak after {EARLY}':>12} {'peak at end':>12} {'activations':>12}")
    table: Table = {PLAIN: {}, MICRO: {}, RECOMPUTE: {}}
    for way, cells in table.items():
        for batch in arguments.batches:
            cells[batch] = measure(arguments, way, batch)
            print(format_row(way, batch, cells[batch], base), flush=True)
    draw(table, arguments)
    print(f"\nplot: {arguments.plot}")
    print_results(make_results(table, arguments, base))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--no-batch-norm", action="store_true", help="measure the network without BatchNorm")
    parser.add_argument("--micro", type=int, default=8, help="patches in a micro-batch (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16, 64, 256, 1024, 4096], help="global batches")
    parser.add_argument("--limit-gb", type=float, default=15, help="GB that a process may use (%(default)g)")
    parser.add_argument("--full", type=int, default=256, help="largest global batch to run completely (%(default)s)")
    parser.add_argument("--micro-steps", type=int, default=24, help="micro-batches of a larger batch (%(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="channels of the network (%(default)s)")
    parser.add_argument("--blocks", type=int, default=16, help="blocks of the network (%(default)s)")
    parser.add_argument("--plot", default="docs/images/batch-memory.png", help="PNG file to write (%(default)s)")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # for child processes: the way of training
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.batches.sort()
    if REFERENCE not in arguments.batches:
        parser.error(f"--batches lacks {REFERENCE}, which the largest one is compared with")
    return arguments


def measure(arguments: argparse.Namespace, way: str, batch: int) -> Cell:
    """Measure one cell in a child process, which is killed if its resident memory exceeds the limit."""
    module = [sys.executable, "-m", "benchmarks.batch_memory"]
    command = [*module, *sys.argv[1:], "--cell", way, "--batch", str(batch)]
    over_limit = False
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            try:
                out, errors = child.communicate(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                over_limit = over_limit or resident_bytes(child.pid) > 1e9 * arguments.limit_gb
                if over_limit:
                    child.kill()
                elif psutil.virtual_memory().available < 1e6 * SPARE_MB:
                    sys.exit("error: other processes use the machine's memory: try later or lower --limit-gb")
    finally:
        child.kill()  # matters only if this process is interrupted
        child.wait()
    if over_limit:
        return Cell(reason="killed at the limit")
    if child.returncode in _OUT_OF_MEMORY_SIGNALS:
        return Cell(reason=f"died of signal {-child.returncode}")
    if child.returncode:
        sys.exit(f"error: {way}, global batch {batch}: exit code {child.returncode}\n{errors}")
    return Cell(**json.loads(out.splitlines()[-1]))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has just ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def measure_here(arguments: argparse.Namespace) -> Cell:
    """Measure one cell in this process."""
    limit = int(1e9 * arguments.limit_gb)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        if arguments.cell == BUILT:
            build_network(arguments)
            return Cell(memory.peak_mb(CPU))
        return run_plain_loop(arguments) if arguments.cell == PLAIN else run_learner(arguments)
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text):
            raise
        refused = text.partition("tried to allocate ")[2].split(" ")[0]
        return Cell(reason=f"refused {int(refused) / 1e6:.0f} MB more" if refused.isdigit() else "refused memory")


def build_network(arguments: argparse.Namespace) -> SRResNet:
    """Build the untrained network."""
    return SRResNet(SCALE, arguments.channels, arguments.blocks, not arguments.no_batch_norm)


def run_plain_loop(arguments: argparse.Namespace) -> Cell:
    """Run a plain loop. Its samples are floats from the start, without a copy in bytes."""
    net = build_network(arguments)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    for count in (min(arguments.micro, arguments.batch), arguments.batch):
        lr, hr = torch.rand(count, 3, CROP // SCALE, CROP // SCALE), torch.rand(count, 3, CROP, CROP)
        optimizer.zero_grad()
        F.mse_loss(net(lr), hr).backward()
        optimizer.step()
    return Cell(memory.peak_mb(CPU))


def run_learner(arguments: argparse.Namespace) -> Cell:
    """Run the pipeline's learner."""
    options = [
        f"model.channels={arguments.channels}",
        f"model.blocks={arguments.blocks}",
        f"model.batch_norm={not arguments.no_batch_norm}",
        f"train.global_batch={arguments.batch}",
        f"train.recompute={arguments.cell == RECOMPUTE}",
    ]
    learner = Learner(parse(options, "train", ""), 10**6, Ranks(CPU), "fp32")
    sizes = [min(arguments.micro, arguments.batch - start) for start in range(0, arguments.batch, arguments.micro)]
    count = len(sizes) if arguments.batch <= arguments.full else min(arguments.micro_steps, len(sizes))
    early: float | None = None

    def samples() -> Iterator[Batch]:
        nonlocal early
        for number, size in enumerate(sizes):
            if number == EARLY:
                early = memory.peak_mb(CPU)
            yield random_batch(size, seed=number)

    for step, micro_batches in enumerate((1, count)):
        learner.step(step, samples(), micro_batches)
        assert not learner.take_skipped(wait=True)
    return Cell(memory.peak_mb(CPU), early, count, len(sizes))


def format_row(way: str, batch: int, cell: Cell, base: float) -> str:
    """Return a row of the table; `base` is the peak of the network alone in MB."""
    if cell.peak_mb is None:
        return f"{way:24} {batch:12} {'-':>12} {'does not fit':>12} {'-':>12}  ({cell.reason})"
    early = f"{cell.early_mb:.0f}" if cell.early_mb else "-"
    note = "" if cell.done == cell.planned else f"  ({cell.done} of {cell.planned} micro-batches, then the update)"
    return f"{way:24} {batch:12} {early:>12} {cell.peak_mb:12.0f} {cell.peak_mb - base:12.0f}{note}"


def draw(table: Table, arguments: argparse.Namespace) -> None:
    """Draw the table as a PNG."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    plt.switch_backend("agg")
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    limit = arguments.limit_gb
    for (way, cells), (color, marker) in zip(table.items(), (("C3", "o"), ("C0", "s"), ("C2", "^")), strict=True):
        fitting = {batch: cell.peak_mb / 1000 for batch, cell in cells.items() if cell.peak_mb is not None}
        too_large = [batch for batch in cells if batch not in fitting]
        label = way if way == PLAIN else way.replace("batches", f"batches of {arguments.micro}")
        axis.plot(list(fitting), list(fitting.values()), color=color, marker=marker, ms=5, lw=1.5, label=label)
        if too_large:
            label = f"{way}: does not fit"
            axis.plot(too_large, [limit] * len(too_large), "x", color=color, ms=9, mew=2, label=label)
    axis.axhline(limit, ls="--", lw=1, color="gray", zorder=0)
    corner = (arguments.batches[0], limit)
    axis.annotate(f"limit, {limit:g} GB", corner, (0, 4), textcoords="offset points", color="gray")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set(xlabel="global batch, patches of 96x96", ylabel="peak memory of the process, GB")
    axis.xaxis.set_major_locator(FixedLocator(arguments.batches))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(top=1.6 * limit)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(arguments.plot, dpi=110)


def make_results(table: Table, arguments: argparse.Namespace, base: float) -> list[Result]:
    """Return the figures to follow; `base` is the peak of the network alone in MB."""

    def ratio(cell: Cell, reference: Cell, offset: float = 0) -> float | None:
        if cell.peak_mb is None or reference.peak_mb is None:
            return None
        return round((cell.peak_mb - offset) / (reference.peak_mb - offset), 3)

    largest = arguments.batches[-1]
    micro, recompute = table[MICRO], table[RECOMPUTE]
    suffix = "_without_batch_norm" if arguments.no_batch_norm else ""
    flat = f"peak at global batch {largest} / at {REFERENCE}"
    figures = [
        ("batch_memory_flat", ratio(micro[largest], micro[REFERENCE]), flat, 1.05),
        ("batch_memory_flat_recompute", ratio(recompute[largest], recompute[REFERENCE]), flat, 1.05),
        (
            "batch_memory_recompute",
            ratio(recompute[largest], micro[largest], base),
            "activations with recomputation / without",
            None,
        ),
    ]
    return [Result(f"{name}{suffix}", value, unit, target, "lower") for name, value, unit, target in figures]


if __name__ == "__main__":
    main()
