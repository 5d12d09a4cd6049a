"""Two ranks on one device: their gradients are those of one process, and they stay equal whatever happens on one.

They talk through gloo, because NCCL refuses two ranks on a card. NCCL between cards is therefore not measured here.
"""

from __future__ import annotations

import tempfile

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.gpu.correctness import change, state
from benchmarks.gpu.job import Job
from pipeline.data.reader import Batch
from pipeline.settings import Config
from pipeline.training.learner import Learner
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks

_BATCH = 16
_SHARES = ((8, 8), (11, 5), (16, 0))
"""Samples of both ranks: equal, unequal, and none for one of them."""


def measure(job: Job, compiles: bool = True) -> None:
    """Make all checks; `compiles` says whether to compare compiled steps with eager ones, too."""
    options = f"train.global_batch={_BATCH}"
    exact, normed = job.config(options, "train.clip_norm=1e9"), job.config(options, "model.batch_norm=true")
    whole = job.batch(_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(list(whole), f"{folder}/batch.pt")
        threads = max(torch.get_num_threads() // 2, 1)
        arguments = (folder, str(job.device), threads, exact, normed, job.half, compiles)
        spawn(_run_rank, arguments, nprocs=2)
        ranks = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
    reference = Learner(exact, 10, job.ranks, "fp32")
    reference.step(0, [whole])
    expected = gradient(reference)
    for shares in _SHARES:
        name = f"shares of {shares[0]} and {shares[1]}"
        given = ranks[0][f"gradient {shares}"]
        error = float((given - expected).norm() / expected.norm())
        unit = "norm of the error / of the gradient"
        job.recorder.add(f"{name}: gradient against one process, fp32", error, unit, 1e-4)
        apart = _largest(ranks[0][f"weights {shares}"], ranks[1][f"weights {shares}"])
        job.recorder.add(f"{name}: weights of the ranks with BatchNorm", apart, "largest difference", 0)
    for rank, found in enumerate(ranks):
        name = f"NaN on rank 1: on rank {rank}"
        job.recorder.add(f"{name}, change of weights, moments, EMA and statistics", found["change"], "", 0)
        job.recorder.add(f"{name}, steps skipped", found["skipped"], "", 1, "higher")
    apart = _largest(ranks[0]["weights at the end"], ranks[1]["weights at the end"])
    job.recorder.add("NaN on rank 1: weights of the ranks two steps later", apart, "largest difference", 0)
    if compiles:
        start, eager, compiled = ranks[0]["compiled"]
        apart = float((compiled - eager).norm() / (eager - start).norm())
        job.recorder.add("compiled: weights after three steps", apart, "distance from eager / way from the start", 0.1)
        apart = _largest(compiled, ranks[1]["compiled"][-1])
        job.recorder.add("compiled: weights of the ranks after three steps", apart, "largest difference", 0)


def gradient(learner: Learner) -> Tensor:
    """The gradient of the last step in one vector on the CPU."""
    return torch.cat([p.grad.flatten() for p in learner.net.parameters() if p.grad is not None]).cpu()


def _run_rank(
    rank: int, folder: str, device: str, threads: int, exact: Config, normed: Config, half: Precision, compiles: bool
) -> None:
    """Make the steps of one rank, and save what came out."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = Batch(*torch.load(f"{folder}/batch.pt"))
    ranks = Ranks(torch.device(device), rank, 2, 2)
    found: dict[str, object] = {}
    for shares in _SHARES:
        own = _share(whole, shares, rank)
        learner = Learner(exact, 10, ranks, "fp32")
        learner.step(0, [own])
        found[f"gradient {shares}"] = gradient(learner)
        learner = Learner(normed, 10, ranks, half)
        for step in range(2):
            learner.step(step, [own])
        found[f"weights {shares}"] = _weights(learner)
    before = state(learner)
    hook = learner.net.register_forward_hook(lambda _module, _inputs, output: output * (float("nan") if rank else 1.0))
    learner.step(2, [_share(whole, (8, 8), rank)])
    hook.remove()
    found["change"] = change(before, learner)
    for step in (3, 4):
        learner.step(step, [_share(whole, (8, 8), rank)])
    found["skipped"] = float(len(learner.take_skipped(wait=True)))
    found["weights at the end"] = _weights(learner)
    if compiles:
        learners = [Learner(exact, 10, ranks, "fp32", compiled) for compiled in (False, True)]
        start = _weights(learners[0])
        for step in range(3):
            for learner in learners:
                learner.step(step, [_share(whole, (8, 8), rank)])
        found["compiled"] = (start, *map(_weights, learners))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _share(whole: Batch, shares: tuple[int, int], rank: int) -> Batch:
    start = shares[0] if rank else 0
    return Batch(*(part[start : start + shares[rank]] for part in whole))


def _weights(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.net.parameters()]).cpu()


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
