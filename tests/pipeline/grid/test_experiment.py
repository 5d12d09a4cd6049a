"""The stages of a grid before its trainings: measured plans, settled steps, patch sets."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data import patchset
from pipeline.grid import experiment
from pipeline.grid.cells import Cell, Outcome, Outcomes, State, name_grid
from pipeline.grid.shares import Share
from pipeline.grid.variants import list_variants
from pipeline.settings import Config, Preprocess, UserError
from pipeline.settings.command_line import parse
from pipeline.training.planning import Plan

PATCH_SET = patchset.assemble("x", "x", 4, Preprocess(), [], 0)
SHARE = Share(1, 1, {"CPU": 1})


def planned(*argv: str) -> tuple[list[Cell], Outcomes]:
    cells = [Cell(v.label, v.config, PATCH_SET) for v in list_variants(parse(argv, "tune", ""))]
    return cells, {cell.label: Outcome() for cell in cells}


def plan(steps: int) -> Plan:
    return Plan(steps, 8, "fp32", compiled=False, step_s=1.0)


def test_minutes_become_the_steps_of_the_slowest_cell_of_that_length(tmp_path: Path) -> None:
    argv = [f"home={tmp_path}", "train.length=40 minutes", 'tune.grid={"model.batch_norm": [true, false]}']
    argv += [
        'tune.also={"longer": {"train.length": "100 minutes", "train.seed": 1}, "few": {"train.length": "7 steps"}}'
    ]
    config = parse(argv, "tune", "")
    for measured in ((90, 100, 250, 7), (50, 100, 250, 7)):  # the second time, one cell is measured once more
        cells, outcomes = planned(*argv)
        plans = {cell.label: plan(steps) for cell, steps in zip(cells, measured, strict=True)}
        settled = experiment.settle_steps(cells, outcomes, plans, config, str(tmp_path))
        totals = {label: outcome.total for label, outcome in outcomes.items()}
        assert totals == {"bn": 90, "nobn": 90, "longer": 250, "few": 7}
        assert settled[2].config.train.length == "250 steps"


def test_grace_as_long_as_a_training_is_refused(tmp_path: Path) -> None:
    argv = [f"home={tmp_path}", "tune.scheduler=asha", "tune.grace=9", "train.length=9 steps"]
    argv += ['tune.grid={"train.lr": [1]}']
    cells, outcomes = planned(*argv)
    with pytest.raises(UserError, match=r"tune.grace is 9, expected less than the steps of a cell, 9"):
        experiment.settle_steps(cells, outcomes, {"lr=1": plan(9)}, parse(argv, "tune", ""), str(tmp_path))


def test_a_grid_of_equal_trainings_is_refused() -> None:
    cells, _ = planned('tune.grid={"train.lr": [1]}')
    with pytest.raises(UserError, match="the cells lr=1, twin are the same training"):
        name_grid(cells[0].config, [*cells, replace(cells[0], label="twin")])


def measure_except_two(config: Config, patch_set: str, threads: int, gpu: bool) -> Plan:
    if config.train.lr == 2:
        raise MemoryError("no room for it")
    return plan(5)


@pytest.mark.usefixtures("ray_session")
def test_a_cell_that_cannot_be_measured_fails_alone(tmp_path: Path) -> None:
    cells, outcomes = planned(f"home={tmp_path}", 'tune.grid={"train.lr": [1, 2, 3]}')
    folder = str(tmp_path / "grid")
    plans = experiment.measure_plans(cells, outcomes, folder, SHARE, measure_except_two)
    assert list(plans) == ["lr=1", "lr=3"]
    assert storage.read_document(f"{folder}/plan.json", experiment.Plans) == plans
    assert [outcome.state for outcome in outcomes.values()] == [State.WAITING, State.FAILED, State.WAITING]
    assert re.search("cannot measure a step: .*no room for it", outcomes["lr=2"].reason)
    with pytest.raises(UserError, match="cannot measure a step"):
        experiment.measure_plans([cells[1]], outcomes, folder, SHARE, measure_except_two)


@pytest.mark.usefixtures("ray_session")
def test_cells_that_hold_out_different_images_are_refused(small: Callable[..., list[str]]) -> None:
    options = small('tune.grid={"preprocess.degradation.noise": [0, 20]}')
    with pytest.raises(UserError, match="the cells hold out different images"):
        experiment.run(parse(options, "tune", ""))


def test_trainings_that_share_a_gpu_get_a_part_of_its_memory_unless_they_name_one() -> None:
    share = Share(4, 1, {"CPU": 2, "GPU": 0.25}, memory_mb=3250)
    assert share.per_gpu == 4
    assert str(share) == "1 worker of 2 CPU, 0.25 GPU"
    given = share.give_to(parse([], "tune", ""))
    assert (given.cluster.workers, given.cluster.cpus_per_worker, given.train.memory_mb) == (1, 2, 3250)
    assert share.give_to(parse(["train.memory_mb=2000"], "tune", "")).train.memory_mb == 2000
    assert SHARE.give_to(parse([], "tune", "")).train.memory_mb is None
