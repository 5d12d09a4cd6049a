"""Measure what the settings of glibc's memory allocator in `pipeline/__init__.py` gain.

Two processes take turns, one with the settings and one without them. Each of them trains a full-size SRResNet x4 on 16
patches of 96x96 in two micro-batches, and enlarges an image of 240x160 pixels, on one thread. Without the settings,
glibc returns memory to the system after each step, and gets it back page by page.

    python -m benchmarks.allocator [--rounds N]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from benchmarks.measuring import Result, parser_of, print_results, random_batch
from pipeline import ALLOCATOR
from pipeline.data.reader import Batch
from pipeline.networks import bundled
from pipeline.networks.upscalers import NetworkUpscaler
from pipeline.networks.weights import load_network
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.ranks import Ranks

WORK = ("step", "image")
SIZE = (160, 240)
"""Height and width of the image."""
WARM_UP = 2
"""Rounds that are not counted, in which the memory grows to what is needed."""


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds (default: %(default)s)")
    parser.add_argument("--child", action="store_true", help="compute a round for each line of input")
    options = parser.parse_args()
    if options.child:
        compute()
        return
    plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    command = [sys.executable, "-m", "benchmarks.allocator", "--child"]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain | more)
        for more in ({}, ALLOCATOR)
    ]
    rounds = [[ask(child) for child in children] for _ in range(options.rounds + WARM_UP)][WARM_UP:]
    for child in children:
        child.communicate()
    results = []
    for work in WORK:
        without, with_them = (median(facts[number][work] for facts in rounds) for number in range(2))
        print(f"{work}: {without:.3f} s without the settings, {with_them:.3f} s with them")
        results.append(
            Result(f"allocator_{work}", round(without / with_them, 3), "time without / with", 1.02, "higher")
        )
    before, after = (max(facts[number]["peak_mb"] for facts in rounds) for number in range(2))
    results.append(Result("allocator_memory", round(after / before, 3), "peak memory with / without", 1.1, "lower"))
    print_results(results)


def ask(child: subprocess.Popen[str]) -> dict[str, float]:
    """Let a process compute a round, and return its facts."""
    assert child.stdin
    assert child.stdout
    child.stdin.write("\n")
    child.stdin.flush()
    facts: dict[str, float] = json.loads(child.stdout.readline())
    return facts


def compute() -> None:
    """Compute a round for each line of input, and print the seconds of its parts and the peak of memory in MB."""
    torch.set_num_threads(1)
    learner = Learner(parse([], "train", ""), 10**6, Ranks(torch.device("cpu")), "fp32", False)
    batch = random_batch(16)
    halves = [Batch(*(part[:8] for part in batch)), Batch(*(part[8:] for part in batch))]
    upscaler = NetworkUpscaler(load_network(bundled.weights(bundled.DEFAULT)))
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    actions = {"step": lambda: learner.step(0, halves, 2), "image": lambda: upscaler.enlarge(image)}
    for _ in sys.stdin:
        facts = {}
        for work, action in actions.items():
            began = time.perf_counter()
            action()
            facts[work] = time.perf_counter() - began
        facts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
