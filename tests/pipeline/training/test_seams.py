"""A new network, a new term of the objective and a new method of training are one file each, and its registration."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data import preparation
from pipeline.settings.command_line import parse
from pipeline.tracking import TrainingResult
from pipeline.training.runs import read_history
from tests import commands
from tests.conftest import ROOT

TOYS = ["--model.name=toy", "model.width=5", "train.method=with_critic", 'train.loss={"l1": 1, "brightness": 0.5}']


@pytest.mark.usefixtures("ray_session")
def test_a_network_a_term_and_a_method_of_ones_own_train_like_those_that_are_there(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    patch_set, _ = preparation.prepare(parse(small(), "train", ""))
    folder = tmp_path / "training"
    folder.mkdir()
    options = [option for option in small("train.brightness.start=0.5", *TOYS) if not option.startswith("model.")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.toys", patch_set.url, str(folder), *options, "model.width=5"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Toy x4 with 5 channels\n"
    assert {file.name for file in (folder / "checkpoints/000000008").iterdir()} == {
        "model.safetensors",
        "critic.safetensors",
        "ema.safetensors",
        "optimizer.pt",
        "state.json",
    }
    history = [record.metrics for record in read_history(str(folder)) if record.kind == "train"]
    assert all({"train/objective", "train/l1", "train/critic/objective"} <= set(metrics) for metrics in history)
    assert ["train/brightness" in metrics for metrics in history] == [False, False, True, True]
    result = storage.read_document(f"{folder}/result.json", TrainingResult)
    assert result is not None
    assert result.metrics["val/psnr_y"] > 15


def test_an_unknown_method_is_refused_by_name(small: Callable[..., list[str]]) -> None:
    done = commands.run("train", *small("train.method=magic"))
    assert done.code == 2
    assert done.stderr == "error: train.method is 'magic', expected one of supervised, gan, flow\n"
