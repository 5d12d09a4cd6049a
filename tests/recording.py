"""`pipeline.train` that also records the samples of every step: `python -m tests.recording OPTIONS`.

Each rank writes `samples/STEP-WORLD-RANK-TIME` into the training's folder, a hash for each sample. Steps are slow until
there is a file `samples/hurry`.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from pipeline import train
from pipeline.data.reader import Batch
from pipeline.training import driver, worker
from pipeline.training.job import LoopResult, TrainJob
from pipeline.training.learner import Learner, StepResult


def hashes(batch: Batch) -> list[str]:
    """One for each sample."""
    arrays = [part.cpu().numpy() for part in batch]
    return [hashlib.sha256(b"".join(p.tobytes() for p in sample)).hexdigest() for sample in zip(*arrays, strict=True)]


def train_loop(arguments: dict[str, TrainJob]) -> LoopResult:
    """Run the real loop, and record what it learns from."""
    folder = Path(arguments["job"].folder, "samples")
    folder.mkdir(parents=True, exist_ok=True)
    real = Learner.step

    def recorded_step(
        self: Learner, step: int, batches: Iterable[Batch], count: int = 1, *more: torch.Tensor
    ) -> StepResult:
        seen: list[str] = []

        def tap() -> Iterator[Batch]:
            for batch in batches:
                seen.extend(hashes(batch))
                yield batch

        result = real(self, step, tap(), count, *more)
        ranks = self.ranks
        name = f"{step:06d}-{ranks.world_size}-{ranks.rank}-{time.time_ns()}"
        (folder / name).write_text("\n".join(seen))
        if not (folder / "hurry").exists():
            time.sleep(0.05)
        return result

    Learner.step = recorded_step  # type: ignore[assignment, method-assign]
    return worker.train_loop(arguments)


if __name__ == "__main__":
    from tests import recording

    driver.train_loop = recording.train_loop  # type: ignore[attr-defined]
    train.main()
