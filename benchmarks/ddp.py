"""Compare two workers of one thread with one worker of two threads, at the same global batch of 16 patches.

The processes start once and take turns, because a busy machine then disturbs both alike. Medians are compared.

    python -m benchmarks.ddp [--batch-norm] [--rounds N] [--steps N]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import multiprocessing

from benchmarks.measuring import Result, medians, parser_of, print_results, print_times, random_batch
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.precision import choose_precision
from pipeline.training.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """Workers that train one network."""

    world_size: int
    threads: int
    """CPU threads of each worker."""
    pipes: list[Connection] = field(default_factory=list)
    """One connection to each worker."""

    def start(self, options: Sequence[str], rendezvous: str) -> None:
        """Start the workers."""
        context = multiprocessing.get_context("spawn")
        for rank in range(self.world_size):
            own, workers = context.Pipe()
            arguments = (workers, options, rank, self.world_size, self.threads, rendezvous)
            context.Process(target=run_worker, args=arguments, daemon=True).start()
            self.pipes.append(own)

    def time_steps(self, count: int) -> float:
        """Make steps, and return the seconds per step of the slowest worker."""
        self.send(count)
        seconds: list[float] = [pipe.recv() for pipe in self.pipes]
        return max(seconds) / count

    def send(self, count: int) -> None:
        """Tell all workers how many steps to make; 0 ends them."""
        for pipe in self.pipes:
            pipe.send(count)


def run_worker(
    pipe: Connection, options: Sequence[str], rank: int, world_size: int, threads: int, rendezvous: str
) -> None:
    """Receive numbers of steps, make that many, and send the seconds they took, until the number is 0."""
    torch.set_num_threads(threads)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    config = parse(options, "train", "")
    ranks = Ranks(torch.device("cpu"), rank, world_size, world_size)
    learner = Learner(config, 10**6, ranks, choose_precision(config.train.precision, ranks.device))
    batch = random_batch(config.train.global_batch // world_size, seed=rank)
    done = 0
    while count := pipe.recv():
        start = time.perf_counter()
        for _ in range(count):
            learner.step(done, [batch])
            done += 1
        pipe.send(time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--batch-norm", action="store_true", help="measure the network with BatchNorm")
    parser.add_argument("--rounds", type=int, default=8, help="timed turns of each team (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps per turn (%(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="channels of the network (%(default)s)")
    parser.add_argument("--blocks", type=int, default=16, help="blocks of the network (%(default)s)")
    arguments = parser.parse_args()
    options = [f"model.{key}={getattr(arguments, key)}" for key in ("batch_norm", "channels", "blocks")]
    teams = {"one worker of two threads": Team(1, 2), "two workers of one thread": Team(2, 1)}
    times: dict[str, list[float]] = {name: [] for name in teams}
    with tempfile.TemporaryDirectory() as folder:
        for team in teams.values():
            team.start(options, f"{folder}/rendezvous")
            team.time_steps(2)  # warm up
        for _ in range(arguments.rounds):
            for name, team in teams.items():
                times[name].append(team.time_steps(arguments.steps))
        for team in teams.values():
            team.send(0)
    print_times(times)
    one, two = medians(times).values()
    name = "ddp_batch_norm" if arguments.batch_norm else "ddp"
    unit = "patches/s of two workers of one thread / of one worker of two threads"
    print_results(Result(name, round(one / two, 3), unit, 0.9, "higher"))


if __name__ == "__main__":
    main()
