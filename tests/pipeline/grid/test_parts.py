"""A training in parts: each leaves a record, and the next one resumes from it in another place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.grid import experiment
from pipeline.grid.cells import Cell, finished_training, restore_from_record, save_record, training_folder
from pipeline.grid.parts import record_stopped
from pipeline.grid.records import go_on
from pipeline.networks.weights import load_network
from pipeline.reporting import records, results_page
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training import runs
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ranks import Ranks
from pipeline.training.session import Session
from pipeline.training.worker import Worker
from tests.conftest import SMALL, write_photos
from tests.pipeline.grid.grids import grid_options, tune

LONG = ["train.length=12 steps", "train.schedule=linear", "train.stable=0.5", "train.warmup=0.25"]
LONGER = ["train.length=24 steps", "train.schedule=linear", "train.stable=0.75", "train.warmup=0.125"]
"""Its learning rate is that of `LONG` until step 6."""


@pytest.fixture(scope="module")
def patch_set(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PatchSet:
    folder = tmp_path_factory.mktemp("parts")
    write_photos(folder / "photos")
    options = [f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL]
    return preparation.prepare(parse(options, "train", ""))[0]


class StopsAfter(Session):
    """Ends a training after some steps."""

    def __init__(self, ranks: Ranks, steps: int) -> None:
        super().__init__(ranks)
        self.left = steps

    def is_time_up(self, logged: bool) -> bool:
        """Count a step."""
        self.left -= 1
        return self.left <= 0


class Machine:
    """A home of its own, in which the same cell is trained."""

    def __init__(self, folder: Path, patch_set: PatchSet, kept: Path, *options: str) -> None:
        more = [f"--home={folder}", f"tune.records={kept}", "tune.keep_state=fp32", "data.hold=stream"]
        more += ["train.validate_every=100", "train.checkpoint_every=100"]
        self.config = parse([*SMALL, *LONG, *more, *options], "tune", "")
        self.cell = Cell("mse", self.config, patch_set)

    @property
    def home(self) -> str:
        return training_folder(self.cell)

    def restore(self) -> Cell:
        self.cell = restore_from_record(self.cell, self.config)
        return self.cell

    def train(self, stops: int = 0) -> int | None:
        """Train to the end, or for so many steps."""
        ranks = Ranks(torch.device("cpu"))
        session = StopsAfter(ranks, stops) if stops else Session(ranks)
        return Worker(self.config, self.cell.patch_set, self.home, ranks, session=session).run().stopped_at

    def record(self) -> int | None:
        return record_stopped(self.cell, self.config, scored=False)


def test_parts_on_several_machines_give_the_weights_of_one_training(
    patch_set: PatchSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    straight = Machine(tmp_path / "straight", patch_set, tmp_path / "none")
    straight.train()
    kept = tmp_path / "records"
    for done in (1, 2):
        machine = Machine(tmp_path / f"machine{done}", patch_set, kept)
        machine.restore()
        assert machine.train(stops=1) == done
        assert machine.record() == done
        assert machine.record() is None  # this part is recorded
        record = records.read(str(kept), "mse")
        assert record is not None
        assert (record.result.steps, record.planned_steps) == (done, 12)
        assert [part.steps for part in record.parts] == list(range(1, done + 1))
        assert {file.suffix for file in kept.rglob("*.*")} == {".json", ".safetensors", ".md"}
    assert "cell mse resumes from step 1 of the record" in capfd.readouterr().out
    shipped = load_network(f"{kept}/mse/model.safetensors").state_dict()
    stopped = load_network(f"{machine.home}/stopped.safetensors").state_dict()
    torch.testing.assert_close(shipped, stopped, rtol=1e-3, atol=1e-6)  # fp16

    last = Machine(tmp_path / "last", patch_set, kept)
    assert last.restore().record is None
    assert last.train() is None
    assert storage.read(f"{last.home}/model.safetensors") == storage.read(f"{straight.home}/model.safetensors")
    save_record(last.cell, str(kept))
    record = records.read(str(kept), "mse")
    assert record is not None
    assert record.planned_steps is None
    assert [part.steps for part in record.parts] == [1, 2, 12]
    assert sum(part.seconds for part in record.parts) == pytest.approx(record.seconds)
    assert results_page.record_row(record).core_hours == pytest.approx(record.seconds * record.threads / 3600)
    assert not (kept / "mse/state").exists()

    finished = Machine(tmp_path / "reader", patch_set, kept)
    assert finished.restore().record == record
    assert finished_training(finished.cell)


def test_the_plan_and_the_best_weights_so_far_go_with_the_state(patch_set: PatchSet, tmp_path: Path) -> None:
    kept, own = tmp_path / "records", ("train.validate_every=1", "train.micro_batch=auto")
    first = Machine(tmp_path / "one", patch_set, kept, *own)
    assert first.train(stops=2) == 2
    assert first.record() == 2
    second = Machine(tmp_path / "two", patch_set, kept, *own)
    second.restore()
    for file in ("plan.json", "best.safetensors"):
        assert storage.read(f"{second.home}/{file}") == storage.read(f"{first.home}/{file}") is not None
    _, state = Checkpoints(f"{second.home}/checkpoints", 1).restore() or ({}, None)
    assert state
    assert state.best
    assert state.best.step == 1, "the last step before the stop is not validated"

    record = records.read(str(kept), "mse")
    assert record
    earlier = replace(record, result=replace(record.result, steps=1))
    with pytest.raises(UserError, match="holds the state of step 2, but the record mse is of step 1: restore both"):
        go_on(str(kept), earlier, str(tmp_path / "three"))


def test_a_state_that_would_not_be_found_again_is_refused(tmp_path: Path) -> None:
    options = [*SMALL, f"home={tmp_path}", "tune.records=a", "tune.keep_state=bf16"]
    with pytest.raises(
        UserError, match=r"tune\.keep_state resumes from the folder that it writes, but tune\.records is"
    ):
        parse([*options, "tune.new_records=b"], "tune", "")
    with pytest.raises(UserError, match=r"has the length 5 minutes, expected steps or epochs with tune\.keep_state"):
        experiment.run(parse([*options, "train.length=5 minutes"], "tune", ""))


@pytest.mark.long
def test_a_longer_training_goes_on_where_the_schedules_part(patch_set: PatchSet, tmp_path: Path) -> None:
    kept = tmp_path / "records"
    short = Machine(tmp_path / "short", patch_set, kept)
    for _ in range(3):
        short.train(stops=1)
    assert short.record() == 3
    longer = Machine(tmp_path / "longer", patch_set, kept, *LONGER)
    longer.restore()
    assert Checkpoints(f"{longer.home}/checkpoints", 1).steps() == [3]
    longer.train()
    straight = Machine(tmp_path / "straight", patch_set, tmp_path / "none", *LONGER)
    straight.train()
    assert storage.read(f"{longer.home}/model.safetensors") == storage.read(f"{straight.home}/model.safetensors")
    save_record(longer.cell, str(kept))
    record = records.read(str(kept), "mse")
    assert record is not None
    assert [part.steps for part in record.parts] == [3, 24]
    for other in (["train.length=24 steps"], [*LONGER, "train.lr=1e-3"]):
        with pytest.raises(UserError, match="holds the record of another training"):
            Machine(tmp_path / "other", patch_set, kept, *other).restore()


def test_a_part_without_its_state_is_refused(patch_set: PatchSet, tmp_path: Path) -> None:
    kept = tmp_path / "records"
    machine = Machine(tmp_path / "one", patch_set, kept)
    machine.train(stops=1)
    machine.record()
    interrupted = Machine(tmp_path / "three", patch_set, kept)
    storage.write(f"{interrupted.home}/checkpoints/000000001/model.safetensors", b"")  # a copy that was cut short
    interrupted.restore()
    assert Checkpoints(f"{interrupted.home}/checkpoints", 1).restore() is not None
    storage.remove(f"{kept}/mse/state")
    assert machine.restore().record is None  # this machine is as far
    with pytest.raises(UserError, match=r"mse/state holds no whole state.*: restore it"):
        Machine(tmp_path / "two", patch_set, kept).restore()


def test_schedules_are_compared_step_by_step() -> None:
    def settings(*more: str) -> Config:
        return parse([*SMALL, *more], "train", "")

    short = settings(*LONG)
    known = runs.identify(short, "set")
    assert runs.continues(known, short, 12, short, "set")
    assert runs.continues(known, short, 6, settings(*LONGER), "set")
    assert not runs.continues(known, short, 8, settings(*LONGER), "set")
    assert not runs.continues(known, short, 6, settings(*LONGER), "another set")
    assert not runs.continues(known, short, 6, settings(*LONGER, "train.seed=1"), "set")
    assert not runs.continues(known, short, 6, settings(*LONGER, "train.length=4 steps"), "set")
    assert not runs.continues(known, short, 6, settings(*LONGER, "train.length=24 epochs"), "set")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_grid_that_is_stopped_goes_on_in_another_home_from_its_records(tmp_path: Path) -> None:
    kept = tmp_path / "records"
    options = grid_options(tmp_path, "train.checkpoint_s=0", "train.validate_every=100000", "train.length=100000 steps")
    options += ['tune.grid={"train.loss": {"mse": {"mse": 1.0}}}', f"tune.records={kept}", "tune.keep_state=bf16"]
    options += ["cluster.stop_after=1.5 minutes", "evaluate.st_lpips=false"]
    printed, _ = tune(*options)
    first = records.read(str(kept), "mse")
    assert first is not None
    assert f"cell mse recorded at step {first.result.steps} of 100000" in printed
    printed, _ = tune(*options, f"home={tmp_path / 'elsewhere'}")
    assert f"cell mse resumes from step {first.result.steps} of the record {kept}/mse" in printed
    second = records.read(str(kept), "mse")
    assert second is not None
    assert second.result.steps > first.result.steps
    assert second.parts[:1] == first.parts
    assert [set(part.scores) for part in second.parts] == [{"held-out"}, {"held-out"}]
    assert (second.planned_steps, second.result.steps) == (100_000, second.parts[-1].steps)
