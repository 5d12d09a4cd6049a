"""Peak memory of a training process against the global batch: the whole batch at once, and this pipeline's learner.

Full-size SRResNet x4 on 96x96 patches, Adam, fp32, all cores of one process, three ways: a plain loop that takes the
whole batch at once; the learner with micro-batches; the learner that also recomputes activations. Every cell is a
process of its own under one memory limit. It makes a small first step, then one of the global batch, and tells its peak
resident memory (MB of 10^6 bytes). "Activations" are what that is beyond the peak of a process that has only imported
everything and built the network; so gradients, moments, averaged weights, samples and what libraries set up at first
use count, too. Samples are random, made one micro-batch at a time; the reader's tiles, which no batch changes, are left
out.

Of global batches above `--full`, the learner runs the first `--micro-steps` micro-batches and the optimizer's update;
the peak after three micro-batches stands beside the final one, to show whether further ones change it.

`python benchmarks/batch_memory.py [--no-batch-norm] [--micro N] [--limit-gb N] [--plot FILE]`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse, stop_like_interrupt
from pipeline.training import memory
from pipeline.training.learner import Learner
from sr_model.srresnet import SRResNet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from benchmarks.train_step import machine

CPU = torch.device("cpu")
CROP, SCALE = 96, 4
BUILT, PLAIN, MICRO, RECOMPUTE = "network alone", "whole batch", "micro-batches", "micro-batches, recompute"
REFERENCE = 16
"""Global batch that the largest one is compared with."""
EARLY = 3
"""Micro-batches after which the peak is told for the first time."""
SPARE_MB = 700
"""MB of the machine that stay free for others; a run that would take them ends."""


class Cell(NamedTuple):
    """What one process tells."""

    peak_mb: float | None
    """At the end; None where the batch does not fit."""
    early_mb: float | None = None
    """After `EARLY` micro-batches, where there are more."""
    run: int = 1
    """Micro-batches that were run."""
    planned: int = 1
    """Micro-batches of the whole step."""
    reason: str = ""
    """Why the batch does not fit."""


def main() -> None:
    """Measure, print and draw."""
    args = arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    if args.cell:
        print(json.dumps(in_child(args)))
        return
    stop_like_interrupt()
    available = memory.available_mb(CPU, 1)
    if 1000 * args.limit_gb + SPARE_MB > available:
        sys.exit(f"error: --limit-gb is {args.limit_gb:g}, but only {available / 1000:.1f} GB are free")
    base = cell(args, BUILT, 0).peak_mb
    if base is None:
        sys.exit(f"error: --limit-gb is {args.limit_gb:g}, too little for the network alone")
    print(f"{args.blocks} blocks, {args.channels} channels, {'without' if args.no_batch_norm else 'with'} BatchNorm")
    print(f"limit {args.limit_gb:g} GB, micro-batches of {args.micro}, imports and network alone {base:.0f} MB\n")
    print(f"{'MB':24} {'global batch':>12} {f'peak after {EARLY}':>12} {'peak at end':>12} {'activations':>12}")
    table: dict[str, dict[int, Cell]] = {PLAIN: {}, MICRO: {}, RECOMPUTE: {}}
    for way, cells in table.items():
        for batch in args.batches:
            cells[batch] = cell(args, way, batch)
            print(line(way, batch, cells[batch], base), flush=True)
    draw(table, args)
    print(f"\n{args.plot} written")
    print(json.dumps(results(table, args, base)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-batch-norm", action="store_true")
    parser.add_argument("--micro", type=int, default=8, help="patches in a micro-batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16, 64, 256, 1024, 4096], help="global batches")
    parser.add_argument("--limit-gb", type=float, default=15, help="GB that a process may use")
    parser.add_argument("--full", type=int, default=256, help="largest global batch whose step is run to its end")
    parser.add_argument("--micro-steps", type=int, default=24, help="micro-batches of a larger one")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--plot", default="docs/images/batch-memory.png", help="PNG file to write")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # what a child process is to run
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batches.sort()
    if REFERENCE not in args.batches:
        parser.error(f"--batches lacks {REFERENCE}, which the largest one is compared with")
    return args


def cell(args: argparse.Namespace, way: str, batch: int) -> Cell:
    """Run one cell in a process of its own, which is ended where its resident memory passes the limit."""
    command = [sys.executable, __file__, *sys.argv[1:], "--cell", way, "--batch", str(batch)]
    over = False
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            try:
                out, errors = child.communicate(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                over = over or resident(child.pid) > 1e9 * args.limit_gb
                if over:
                    child.kill()
                elif psutil.virtual_memory().available < 1e6 * SPARE_MB:
                    sys.exit("error: others use the machine's memory, try again or with a lower --limit-gb")
    finally:
        child.kill()  # where this process is interrupted; no effect on one that has ended
        child.wait()
    if over:
        return Cell(None, reason="ended at the limit")
    if child.returncode in (-6, -9):  # an allocation failed outside of PyTorch, or the system ended the process
        return Cell(None, reason=f"died of signal {-child.returncode}")
    if child.returncode:
        sys.exit(f"error: {way}, global batch {batch}: exit code {child.returncode}\n{errors}")
    return Cell(*json.loads(out.splitlines()[-1]))


def resident(pid: int) -> int:
    """Pixels of resident memory; 0 where the process has just ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def in_child(args: argparse.Namespace) -> Cell:
    """One cell, in this process."""
    limit = int(1e9 * args.limit_gb)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        if args.cell == BUILT:
            network(args)
            return Cell(memory.peak_mb(CPU))
        return plain(args) if args.cell == PLAIN else learned(args)
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text):
            raise
        asked = text.partition("tried to allocate ")[2].split(" ")[0]
        return Cell(None, reason=f"refused {int(asked) / 1e6:.0f} MB more" if asked.isdigit() else "refused memory")


def network(args: argparse.Namespace) -> SRResNet:
    """As it is before training."""
    return SRResNet(SCALE, args.channels, args.blocks, not args.no_batch_norm)


def plain(args: argparse.Namespace) -> Cell:
    """The loop one writes first; its samples are floats from the start, without a copy in bytes."""
    net = network(args)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    for count in (min(args.micro, args.batch), args.batch):
        lr, hr = torch.rand(count, 3, CROP // SCALE, CROP // SCALE), torch.rand(count, 3, CROP, CROP)
        optimizer.zero_grad()
        F.mse_loss(net(lr), hr).backward()
        optimizer.step()
    return Cell(memory.peak_mb(CPU))


def learned(args: argparse.Namespace) -> Cell:
    """The pipeline's learner."""
    options = [
        f"model.channels={args.channels}",
        f"model.blocks={args.blocks}",
        f"model.batch_norm={not args.no_batch_norm}",
        f"train.global_batch={args.batch}",
        f"train.recompute={args.cell == RECOMPUTE}",
        "train.precision=fp32",  # as the plain loop
    ]
    learner = Learner(parse(options, "train", ""), 10**6, CPU)
    sizes = [min(args.micro, args.batch - start) for start in range(0, args.batch, args.micro)]
    run = len(sizes) if args.batch <= args.full else min(args.micro_steps, len(sizes))
    early: float | None = None

    def samples() -> Iterator[Batch]:
        nonlocal early
        rng = np.random.default_rng(0)
        for i, size in enumerate(sizes):
            if i == EARLY:
                early = memory.peak_mb(CPU)
            hr = rng.integers(0, 256, (size, CROP, CROP, 3), np.uint8)
            lr = rng.integers(0, 256, (size, CROP // SCALE, CROP // SCALE, 3), np.uint8)
            yield Batch(lr, hr, rng.integers(0, 8, size, np.uint8))

    for step, count in enumerate((1, run)):
        result = learner.step(step, samples(), count)
        assert result.skipped is None
    return Cell(memory.peak_mb(CPU), early, run, len(sizes))


def line(way: str, batch: int, found: Cell, base: float) -> str:
    """A row of the table."""
    if found.peak_mb is None:
        return f"{way:24} {batch:12} {'-':>12} {'does not fit':>12} {'-':>12}  ({found.reason})"
    early = f"{found.early_mb:.0f}" if found.early_mb else "-"
    note = "" if found.run == found.planned else f"  ({found.run} of {found.planned} micro-batches, then the update)"
    return f"{way:24} {batch:12} {early:>12} {found.peak_mb:12.0f} {found.peak_mb - base:12.0f}{note}"


def draw(table: dict[str, dict[int, Cell]], args: argparse.Namespace) -> None:
    """The table as a PNG."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    plt.switch_backend("agg")
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    looks = {PLAIN: ("C3", "o"), MICRO: ("C0", "s"), RECOMPUTE: ("C2", "^")}
    for way, cells in table.items():
        color, marker = looks[way]
        fits = [(batch, found.peak_mb / 1000) for batch, found in cells.items() if found.peak_mb is not None]
        misfits = [batch for batch, found in cells.items() if found.peak_mb is None]
        label = way if way == PLAIN else way.replace("batches", f"batches of {args.micro}")
        axis.plot(*zip(*fits, strict=True), color=color, marker=marker, ms=5, lw=1.5, label=label)
        if misfits:
            axis.plot(
                misfits, [args.limit_gb] * len(misfits), "x", color=color, ms=9, mew=2, label=f"{way}: does not fit"
            )
    axis.axhline(args.limit_gb, ls="--", lw=1, color="gray", zorder=0)
    axis.annotate(
        f"limit, {args.limit_gb:g} GB",
        (args.batches[0], args.limit_gb),
        (0, 4),
        textcoords="offset points",
        color="gray",
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set(xlabel="global batch, patches of 96x96", ylabel="peak memory of the process, GB")
    axis.xaxis.set_major_locator(FixedLocator(args.batches))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(top=1.6 * args.limit_gb)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(args.plot, dpi=110)


def results(table: dict[str, dict[int, Cell]], args: argparse.Namespace, base: float) -> list[dict[str, object]]:
    """The figures that are followed."""

    def ratio(over: float | None, under: float | None, less: float = 0) -> float | None:
        return None if over is None or under is None else round((over - less) / (under - less), 3)

    largest = args.batches[-1]
    micro, recompute = ({batch: found.peak_mb for batch, found in table[way].items()} for way in (MICRO, RECOMPUTE))
    flat = f"peak at global batch {largest} / at {REFERENCE}"
    ratios = [
        ("batch_memory_flat", ratio(micro[largest], micro[REFERENCE]), flat, 1.05),
        ("batch_memory_flat_recompute", ratio(recompute[largest], recompute[REFERENCE]), flat, 1.05),
        (
            "batch_memory_recompute",
            ratio(recompute[largest], micro[largest], base),
            "activations recomputed / kept",
            None,
        ),
    ]
    end = "_without_batch_norm" if args.no_batch_norm else ""
    return [
        {"name": n + end, "value": v, "unit": unit, "target": t, "better": "lower", "machine": machine()}
        for n, v, unit, t in ratios
    ]


if __name__ == "__main__":
    main()
