"""Trainings whose files are damaged: they fall back, go on, or end with one sentence that says what to do."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.data import preparation
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.networks.weights import to_safetensors
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.storage import DamagedFileError
from pipeline.training import driver, runs, trainer
from pipeline.training.ranks import Ranks
from pipeline.training.session import NodeLeavesError
from pipeline.training.trainer import FailurePolicy, Patience
from pipeline.training.worker import Worker
from sr_model.networks.srresnet import SRResNet
from tests.conftest import SMALL, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Config, PatchSet]:
    folder = tmp_path_factory.mktemp("damage")
    write_photos(folder / "photos")
    options = [f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL]
    config = parse([*options, "data.hold=stream", "train.keep_checkpoints=2"], "train", "")
    return config, preparation.prepare(config)[0]


def run(described: tuple[Config, PatchSet], folder: Path) -> None:
    Worker(*described, str(folder), Ranks(torch.device("cpu"))).run()


@pytest.fixture(scope="module")
def straight(described: tuple[Config, PatchSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "training"
    run(described, folder)
    return folder


@pytest.fixture
def training(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "training"))


def newest(training: Path) -> Path:
    return max((training / "checkpoints").iterdir())


def _without_files(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text('{"state": {"step": 8}}')


def _half(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _one_missing(checkpoint: Path) -> None:
    (checkpoint / "ema.safetensors").unlink()


@pytest.mark.parametrize("damage", [_without_files, _half, _one_missing])
def test_a_damaged_checkpoint_falls_back_and_ends_in_the_same_weights(
    described: tuple[Config, PatchSet],
    straight: Path,
    training: Path,
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("result.json", "model.safetensors"):
        (training / name).unlink()
    assert newest(training).name == "000000008"
    damage(newest(training))
    run(described, training)
    assert f"the checkpoint {newest(training)} is damaged: falling back to the previous one" in capfd.readouterr().err
    assert runs.read_history(str(training))[-1].step == 8
    assert {r.step for r in runs.read_history(str(training)) if r.kind == "session"} == {0, 6}
    assert (training / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_checkpoint_of_another_network_is_one_sentence(described: tuple[Config, PatchSet], training: Path) -> None:
    (training / "result.json").unlink()
    file, state_file = newest(training) / "model.safetensors", newest(training) / "state.json"
    file.write_bytes(to_safetensors(SRResNet(4, channels=4, blocks=1)))
    state = json.loads(state_file.read_text())
    state["files"]["model.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    state_file.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"000000008 does not fit this training \([^\n]+\): delete .*/checkpoints to"):
        run(described, training)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"steps": 0, "micro_batch": 2, "precision": "fp32", "compiled": false}']
)
def test_a_damaged_plan_is_one_sentence(described: tuple[Config, PatchSet], training: Path, content: str) -> None:
    (training / "plan.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{training}/plan.json is damaged[^\n]*; delete {training} to train again"):
        run(described, training)


@pytest.mark.parametrize("content", ["", "{", '{"steps": 8}'])
def test_a_damaged_result_is_one_sentence_and_can_be_made_again(
    described: tuple[Config, PatchSet], straight: Path, training: Path, content: str
) -> None:
    (training / "result.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"result.json is damaged[^\n]*; delete it and rerun the command, which"):
        runs.open_training(str(training))
    (training / "result.json").unlink()
    (training / "model.safetensors").unlink()
    run(described, training)
    assert runs.open_training(str(training))
    assert (training / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_finished_training_without_weights_is_one_sentence(training: Path) -> None:
    (training / "model.safetensors").unlink()
    with pytest.raises(DamagedFileError, match=rf"model.safetensors is missing.*: delete {training}/result.json and"):
        runs.open_training(str(training))


def test_a_torn_journal_stops_nothing(described: tuple[Config, PatchSet], straight: Path, training: Path) -> None:
    last = max((training / "journal").glob("*.jsonl"))
    last.write_bytes(last.read_bytes()[:-30])
    (training / "result.json").unlink()
    run(described, training)
    assert runs.read_history(str(training))[-1].step == 8
    assert (training / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_only_errors_that_a_restart_may_mend_restart_a_training() -> None:
    def decide(failure: Exception) -> FailureDecision:
        policy = FailurePolicy(ray.train.FailureConfig(max_failures=3), None)
        return policy.make_decision(WorkerGroupError("", {1: failure}))

    assert decide(RuntimeError("connection reset")) is FailureDecision.RETRY
    assert decide(OSError("the store is gone")) is FailureDecision.RETRY
    assert decide(DamagedShardError("/set/train-0.parquet", "is missing")) is FailureDecision.RAISE
    assert decide(UserError("a mistake")) is FailureDecision.RAISE


def test_a_node_that_leaves_is_no_failure() -> None:
    policy = FailurePolicy(ray.train.FailureConfig(max_failures=0), Patience(60, promised=False))
    for step in range(20):
        leaving = WorkerGroupError("", {0: NodeLeavesError(step), 1: RuntimeError("connection reset")})
        assert policy.make_decision(leaving) is FailureDecision.RETRY
    assert policy.make_decision(WorkerGroupError("", {0: RuntimeError("a fault")})) is FailureDecision.RAISE


def test_a_training_waits_for_workers_as_long_as_nodes_are_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def failures(patience: Patience | None, error: Exception, apart_s: float) -> int:
        """Failures to start workers, one every so many seconds, until the training gives up; 100 stands for never."""
        policy = FailurePolicy(ray.train.FailureConfig(controller_failure_limit=2), patience)
        for count in range(100):
            monkeypatch.setattr(trainer, "monotonic", lambda now=1000 + count * apart_s: now)
            if policy.make_decision(ControllerError(error)) is FailureDecision.RAISE:
                return count + 1
        return 100

    late, failed = WorkerGroupStartupTimeoutError(1), WorkerGroupStartupFailedError("no node")
    assert failures(None, late, 62) == 3
    assert failures(Patience(900, promised=True), late, 62) == 100
    assert failures(Patience(900, promised=False), late, 62) == 17
    assert failures(Patience(900, promised=False), late, 3600) == 100  # it trained in between
    assert failures(Patience(900, promised=True), failed, 2) == 100
    assert failures(Patience(0, promised=False), late, 62) == 3
    assert failures(Patience(100, promised=True), failed, 2) == 23  # such as an image that lacks a package
    assert failures(Patience(900, promised=True), ValueError("a fault of Ray"), 62) == 1


@pytest.mark.long
def test_a_shard_that_is_damaged_stops_two_workers_at_once(described: tuple[Config, PatchSet], tmp_path: Path) -> None:
    config, patch_set = described
    copied = patch_set.at(shutil.copytree(patch_set.url, tmp_path / "set").as_posix())
    shard = Path(copied.url, copied.shards[-1].file)
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1  # a pixel
    shard.write_bytes(content)
    more = {"home": str(tmp_path), "cluster": config.cluster.model_copy(update={"workers": 2, "max_failures": -1})}
    train = config.train.model_copy(update={"length": "100 steps"})
    own = config.model_copy(update={**more, "train": train, "tracking": parse([f"--home={tmp_path}"], "", "").tracking})
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        driver.train(own, copied)
    assert time.monotonic() - began < 90  # a restart alone takes 20 s on two cores
    sentence = str(error.value)
    assert sentence.startswith(f"training {runs.training_folder(own, copied)} stopped: the shard {shard} is damaged (")
    assert f"python -m pipeline.patchset verify {copied.url}" in sentence
    sessions = [r for r in runs.read_history(runs.training_folder(own, copied)) if r.kind == "session"]
    assert len(sessions) == 1


def test_a_missing_shard_is_said_before_anything_starts(described: tuple[Config, PatchSet], tmp_path: Path) -> None:
    config, patch_set = described
    copied = patch_set.at(shutil.copytree(patch_set.url, tmp_path / "set").as_posix())
    Path(copied.url, copied.shards[-1].file).unlink()
    own = config.model_copy(update={"home": str(tmp_path / "home")})
    with pytest.raises(DamagedShardError, match=f"{copied.shards[-1].file} is missing or incomplete"):
        driver.train(own, copied)
    assert not (tmp_path / "home").exists()
