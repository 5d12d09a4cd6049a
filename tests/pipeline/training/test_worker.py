"""The loop of a worker in this process: when it saves, validates, stops early and decides anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training import memory
from pipeline.training.job import LoopResult
from pipeline.training.learner import Learner, StepResult
from pipeline.training.ranks import Ranks
from pipeline.training.runs import read_history
from pipeline.training.session import NodeLeavesError, Session
from pipeline.training.stopping import PERMANENT
from pipeline.training.worker import Worker
from tests.conftest import SMALL, write_photos

CPU = torch.device("cpu")
OPTIONS = [*SMALL, "data.hold=stream", "train.length=12 steps", "train.keep_checkpoints=10"]


@pytest.fixture(scope="module")
def patch_set(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PatchSet:
    folder = tmp_path_factory.mktemp("worker")
    write_photos(folder / "photos")
    options = [f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *OPTIONS]
    return preparation.prepare(parse(options, "train", ""))[0]


def config(*more: str) -> Config:
    return parse([*OPTIONS, *more], "train", "")


def run(patch_set: PatchSet, folder: Path, *more: str, stop_at: float | None = None) -> LoopResult:
    ranks = Ranks(CPU)
    return Worker(config(*more), patch_set, str(folder), ranks, session=Session(ranks, stop_at)).run()


@pytest.fixture(scope="module")
def straight(patch_set: PatchSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without an interruption, in more time than that takes."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(patch_set, folder, stop_at=1e12).stopped_at is None
    return folder


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_when_its_time_is_up_it_saves_and_ends_and_resumes_exactly(
    patch_set: PatchSet, straight: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    for expected in (1, 2, 3):  # each session ends at its first step
        result = run(patch_set, stopped, "train.checkpoint_every=100", stop_at=0.0)
        assert result.stopped_at == expected
        assert checkpoints(stopped)[-1] == expected
        assert not (stopped / "result.json").exists()
    assert run(patch_set, stopped).stopped_at is None
    for name in ("model.safetensors", "best.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def test_when_a_node_leaves_it_saves_at_once_and_the_next_session_ends_as_never_disturbed(
    patch_set: PatchSet, straight: Path, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    ranks, reported = Ranks(CPU), list[int]()
    session = Session(ranks, is_told=lambda: True, report=lambda state: reported.append(state.step))
    with pytest.raises(NodeLeavesError, match="the training resumes from step 1 without it"):
        Worker(config("train.checkpoint_every=100"), patch_set, str(left), ranks, session=session).run()
    assert checkpoints(left) == reported == [1]
    session = Session(ranks, is_told=lambda: False, report=lambda state: reported.append(state.step))
    Worker(config(), patch_set, str(left), ranks, session=session).run()
    assert reported == [1, 12]  # within seconds only the last one
    assert (left / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.long
def test_adversarial_training_selects_by_a_distance_and_resumes_exactly(patch_set: PatchSet, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = ["train.method=gan", "train.gan.from_scratch=true", "train.gan.warmup_steps=3", "train.gan.r1=0.1"]
    options.append("train.gan.patch.channels=4")
    run(patch_set, straight, *options, "train.lr=1e-2")
    history = read_history(str(straight))
    distances = {r.step: r.metrics["val/st_lpips"] for r in history if r.kind == "validation" and r.step}
    result = json.loads((straight / "result.json").read_text())
    best = min(distances, key=lambda step: distances[step])
    assert result["best"] == {"step": best, "value": distances[best], "metric": "val/st_lpips"}
    journaled = {name for record in history for name in record.metrics}
    assert {"train/adversarial", "train/discriminator/accuracy", "val/lr_psnr", "val/phase_ratio"} <= journaled
    assert run(patch_set, stopped, *options, "train.lr=1e-2", stop_at=0.0).stopped_at == 1
    run(patch_set, stopped, *options, "train.lr=1e-2")
    for name in ("model.safetensors", "best.safetensors", "checkpoints/000000012/discriminator.safetensors"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def test_checkpoints_and_validations_keep_their_distance_in_seconds(
    patch_set: PatchSet, straight: Path, tmp_path: Path
) -> None:
    rare, often = tmp_path / "rare", straight
    run(patch_set, rare, "train.checkpoint_s=1000", "train.validate_s=1000")
    assert checkpoints(rare) == [12]
    assert checkpoints(often) == [2, 4, 6, 8, 10, 12]
    validated = {
        folder: [record.step for record in read_history(str(folder)) if record.kind == "validation"]
        for folder in (rare, often)
    }
    assert validated == {rare: [0, 12], often: [0, 4, 8, 12]}
    assert (rare / "model.safetensors").read_bytes() == (often / "model.safetensors").read_bytes()


def test_the_result_names_the_validation_of_the_best_weights_after_a_crash(patch_set: PatchSet, tmp_path: Path) -> None:
    options = ["train.checkpoint_s=1000", "train.keep_checkpoints=10"]
    run(patch_set, tmp_path, *options, stop_at=0.0)
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "checkpoints", saved)
    run(patch_set, tmp_path, *options)
    best = json.loads((tmp_path / "result.json").read_text())["best"]
    weights = (tmp_path / "best.safetensors").read_bytes()

    (tmp_path / "result.json").unlink()  # as if the process had died before its second checkpoint
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.copytree(saved, tmp_path / "checkpoints")
    run(patch_set, tmp_path, *options, "train.validate_s=1000")
    assert json.loads((tmp_path / "result.json").read_text())["best"] == best
    assert (tmp_path / "best.safetensors").read_bytes() == weights


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_lost_best_weights_are_written_again(patch_set: PatchSet, tmp_path: Path, content: bytes | None) -> None:
    weights = tmp_path / "best.safetensors"
    run(patch_set, tmp_path, stop_at=0.0)
    weights.unlink(missing_ok=True)
    if content:
        weights.write_bytes(content)
    run(patch_set, tmp_path)
    assert safetensors.torch.load_file(weights)
    assert json.loads((tmp_path / "result.json").read_text())["best"]["step"] in (4, 8, 12)


def test_on_another_device_all_but_the_steps_is_decided_anew(
    patch_set: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plan.json"
    run(patch_set, tmp_path, stop_at=0.0)
    plan = json.loads(file.read_text())
    assert plan["device"] == memory.describe(CPU)
    elsewhere = {**plan, "device": "Tesla T4 with 16 GB", "precision": "fp16", "micro_batch": 1, "steps": 10}
    file.write_text(json.dumps(elsewhere))
    result = run(patch_set, tmp_path)
    assert result.plan is not None
    assert (result.plan.steps, result.plan.precision, result.plan.micro_batch) == (10, "fp32", 2)
    assert json.loads(file.read_text())["device"] == memory.describe(CPU)


@pytest.mark.parametrize("micro_batch", ["2", "auto"])
def test_a_lack_of_memory_is_one_sentence_that_no_restart_mends(
    patch_set: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: str
) -> None:
    real = Learner.step

    def step(self: Learner, number: int, *more: Any) -> StepResult:
        if number == 5:  # a step of the training, not of its plan
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return real(self, number, *more)

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(memory.OutOfMemoryError) as error:
        run(patch_set, tmp_path, f"train.micro_batch={micro_batch}", "train.global_batch=2")
    assert isinstance(error.value, PERMANENT)
    assert str(error.value) == (
        f"the memory of {memory.describe(CPU)} is too small for micro-batches of up to 2 patches of 32 pixels (CUDA "
        "out of memory. Tried to allocate 2 GiB.): expected train.recompute=true, a smaller train.micro_batch"
        f"{' or auto' if micro_batch == '2' else ''}, or a smaller data.crop"
    )
    assert checkpoints(tmp_path)[-1] == 4


def test_the_loss_scale_is_part_of_the_checkpoint(patch_set: PatchSet, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    half = ["train.precision=fp16", "train.length=4 steps", "train.validate_every=4"]
    run(patch_set, straight, *half)
    run(patch_set, resumed, *half, stop_at=0.0)
    state = json.loads((resumed / "checkpoints/000000001/state.json").read_text())["state"]
    assert state["loss_scale"] == {"value": 2.0**12 * 6, "good_steps": 1, "calibrating": False}
    run(patch_set, resumed, *half)
    assert (resumed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
