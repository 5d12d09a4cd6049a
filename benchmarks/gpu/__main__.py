"""Measure the pipeline on one GPU, without Ray and MLflow, in two parts of under nine minutes each.

Part 1 measures rates, correctness, steps, memory, two ranks on the card, the reader and a validation. Part 2 trains for
three minutes, kills and resumes that training, and compares precisions. What the arithmetic predicts is printed first.
Every section runs in a process of its own with a time limit, and its measurements are written at once: as lines of
DIR/results.jsonl, and as tables in DIR/results.md. What sections print goes to DIR/log.txt.

Without a GPU, or with --small, everything is done in small on the CPU, to show that it works.

    python -m benchmarks.gpu 1 --out DIR
    python -m benchmarks.gpu 2 --out DIR --source PHOTOS --set5 BENCHMARKS/Set5
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import ceilings, correctness, feeding, memory, precisions, results, steps, training, two_ranks
from benchmarks.gpu.job import FULL, SMALL, Job, Size
from benchmarks.gpu.predictions import find_card, predict
from benchmarks.measuring import machine, parser_of, print_results
from pipeline.settings.command_line import stop_like_interrupt

_LIMIT_S = 530
"""Seconds of a part. The limits of its sections add up to it, so a slow section takes no time from the others."""
_PATIENCE = 5
"""Factor of all time limits on a CPU, which compiles more slowly and may be busy."""


@dataclass(frozen=True)
class Section:
    """A part of the work that runs in its own process."""

    name: str
    limit_s: float
    """Seconds after which it is killed."""
    measure: Callable[[Job], None]


def sections(part: int, size: Size) -> list[Section]:
    """Return the sections of a part, the most important first."""
    if part == 2:
        return [Section("training", 300, training.measure), Section("precisions", 230, precisions.measure)]
    main = size.main_batch
    others = [batch for batch in size.batches if batch != main]
    return [
        Section("ceilings", 20, ceilings.measure),
        Section("correctness", 75, correctness.measure),
        Section(f"steps of {main}", 115, partial(steps.measure, batches=[main], batch_norm=False)),
        Section("two ranks", 70, two_ranks.measure),
        Section("feeding", 70, feeding.measure),
        Section("memory", 40, memory.measure),
        *(Section(f"steps of {b}", 45, partial(steps.measure, batches=[b], batch_norm=False)) for b in others),
        Section("steps with BatchNorm", 50, partial(steps.measure, batches=[main, *others], batch_norm=True)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a part, or one section of it in this process.

    Args:
        argv: the command line without the program's name; by default that of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(argv)
    on_cpu = arguments.small or not torch.cuda.is_available()
    size = SMALL if on_cpu else FULL
    card = find_card(None if on_cpu else torch.cuda.get_device_name())
    predicted = predict(arguments.part, size, card)
    offered = {section.name: section for section in sections(arguments.part, size)}
    chosen = [offered[name] for name in arguments.only or offered if name in offered]
    if len(chosen) < len(arguments.only or ()):
        sys.exit(f"error: --only names {', '.join(arguments.only)}, expected some of {', '.join(offered)}")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.work:  # this is the process of a section
        if on_cpu:  # at this size, several threads or processes would only wait for each other
            torch.set_num_threads(1)
            os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        recorder = results.Recorder(out, chosen[0].name, predicted)
        device = torch.device("cpu" if on_cpu else "cuda")
        chosen[0].measure(Job(recorder, size, device, arguments.work, arguments.source, arguments.set5))
        return
    stop_like_interrupt()
    print(f"{machine()}\n\nPredicted for a {card.name}:\n\n{results.predictions_table(predicted)}\n", flush=True)
    before = len(results.read(out))
    until = time.monotonic() + arguments.limit_s * (_PATIENCE if on_cpu else 1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for section in chosen:
            first = len(results.read(out))
            recorder = results.Recorder(out, section.name, predicted)
            began = time.monotonic()
            limit_s = min(section.limit_s * (_PATIENCE if on_cpu else 1), until - began)
            if fault := _run(section, argv, out, Path(work), limit_s):
                recorder.add("the section", None, "", note=fault)
            recorder.add("duration", time.monotonic() - began, "s")
            measured = results.read(out)
            print(results.table(measured[first:]), flush=True)
            (out / "results.md").write_text(f"# {machine()}\n\n{results.table(measured)}")
    print_results([m.result for m in results.read(out)[before:] if m.result.target is not None])


def _run(section: Section, argv: Sequence[str], out: Path, work: Path, limit_s: float) -> str:
    """Run a section in a process of its own, and return what went wrong."""
    if limit_s <= 0:
        return "the part has no time left"
    compiled = work / "compiled"  # sections share what they compile
    command = [sys.executable, "-m", "benchmarks.gpu", *argv, f"--work={work}", "--only", section.name]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(compiled)}
    with (out / "log.txt").open("a") as log:
        log.write(f"\n===== {section.name}\n")
        log.flush()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            shutil.rmtree(compiled, ignore_errors=True)  # it may hold half a file
            return f"it was killed after {limit_s:.0f} s"
        finally:
            _kill_group(process)
    return f"it ended with exit code {code}; log.txt says why" if code else ""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("part", type=int, choices=(1, 2), help="the part to run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that the results are added to")
    parser.add_argument("--small", action="store_true", help="do everything in small on the CPU")
    parser.add_argument("--source", default="builtin", help="training images: folder, archive or dataset (%(default)s)")
    parser.add_argument("--set5", help="folder of Set5, to score on it")
    parser.add_argument("--limit-s", type=float, default=_LIMIT_S, help="seconds after which a part ends (%(default)g)")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="run only these sections")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # for the process of a section
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
