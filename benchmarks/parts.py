"""Measure what a training loses if it is made in parts whose records keep the optimizer's moments in bf16.

The same training runs three times on the built-in photographs: in one go, and in parts between which the moments are
kept in fp32 or rounded to bf16, as `tune.keep_state` does. With fp32, the weights must be the same as in one go.
Settings of the pipeline may follow, such as `train.optimizer=muon`.

    python -m benchmarks.parts [--steps N] [--parts N] [--seeds N] [KEY=VALUE ...]
"""

from __future__ import annotations

import tempfile

import ray
import torch

from benchmarks.measuring import Result, parser_of, print_results
from pipeline import storage
from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.settings.grid import Moments
from pipeline.tracking import TrainingResult
from pipeline.training import portable
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ranks import Ranks
from pipeline.training.session import Session
from pipeline.training.worker import Worker

CPU = torch.device("cpu")
WAYS: dict[str, Moments | None] = {"in one go": None, "parts, fp32": "fp32", "parts, bf16": "bf16"}


class Part(Session):
    """A session that ends after some steps.

    Args:
        steps: number of steps.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(Ranks(CPU))
        self._left = steps

    def is_time_up(self, logged: bool) -> bool:
        """Tell whether the steps are made; called after each of them."""
        self._left -= 1
        return self._left <= 0


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="length of the training (%(default)s)")
    parser.add_argument("--parts", type=int, default=4, help="parts of equal length (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of all trainings")
    arguments = parser.parse_args()
    differences = []
    with tempfile.TemporaryDirectory() as home:
        for seed in range(arguments.seeds):
            length = [f"--train.length={arguments.steps} steps", f"--train.validate_every={arguments.steps}"]
            options = [
                "--config=configs/demo.yaml",
                f"--home={home}",
                *length,
                f"train.seed={seed}",
                "data.hold=stream",
            ]
            config = parse([*options, *arguments.settings], "train", "")
            patch_set, _ = preparation.prepare(config)
            ray.shutdown()  # preparation may have started it; the training gets all cores
            scores, weights = {}, {}
            for way, moments in WAYS.items():
                folder = f"{home}/{seed}-{way}"
                scores[way] = train(config, patch_set, folder, arguments.steps, arguments.parts, moments)
                weights[way] = storage.read(f"{folder}/model.safetensors")
                print(f"seed {seed}, {way}: {scores[way]:.4f} dB", flush=True)
            assert weights["parts, fp32"] == weights["in one go"]
            differences.append(scores["parts, bf16"] - scores["in one go"])
    mean = sum(differences) / len(differences)
    unit = f"dB of mean held-out PSNR more than in one go, {arguments.parts} parts, {arguments.seeds} seeds"
    print_results(Result("parts_bf16", round(mean, 4), unit, -0.01, "higher"))


def train(config: Config, patch_set: PatchSet, folder: str, steps: int, parts: int, moments: Moments | None) -> float:
    """Train, and return PSNR (Y) of the held-out images in dB; `moments` is None for a training in one go."""
    for _ in range(parts - 1 if moments else 0):
        Worker(config, patch_set, folder, Ranks(CPU), session=Part(steps // parts)).run()
        checkpoints = Checkpoints(f"{folder}/checkpoints", 1)
        found = checkpoints.restore()
        assert found is not None
        assert moments is not None
        files, state = found
        checkpoints.save(portable.unpack(portable.pack(files, moments)), state)
        checkpoints.wait()
    Worker(config, patch_set, folder, Ranks(CPU)).run()
    result = storage.read_document(f"{folder}/result.json", TrainingResult)
    assert result is not None
    return result.metrics["val/psnr_y"]


if __name__ == "__main__":
    main()
