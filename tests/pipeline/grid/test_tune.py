"""The grid as its users start it, and what it leaves."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline import cluster, storage, tracking
from pipeline.data.patchset import PatchSet
from pipeline.grid import experiment
from pipeline.grid.cells import Cell, plan_cells
from pipeline.settings import UserError
from pipeline.settings.command_line import parse, parse_with
from pipeline.training.planning import Plan
from tests.conftest import ROOT
from tests.pipeline.grid.grids import Grid, grid_options, tune
from tests.services import Services

CELLS = ["bn·mse", "bn·perceptual", "nobn·mse", "nobn·perceptual"]


def cells(*argv: str) -> list[Cell]:
    return plan_cells(parse(argv, "tune", ""))


def test_the_default_grid_is_batchnorm_by_loss() -> None:
    found = cells()
    assert [cell.label for cell in found] == CELLS
    assert [cell.config.model.batch_norm for cell in found] == [True, True, False, False]
    assert [list(cell.config.train.loss) for cell in found] == [["mse"], ["perceptual", "tv"]] * 2
    same = [(c.config.train.length, c.config.train.lr, c.config.train.seed, c.config.data) for c in found]
    assert all(each == same[0] for each in same)


def test_any_setting_can_be_an_axis_or_be_drawn() -> None:
    argv = ['tune.grid={"train.global_batch": [8, 32], "data.augment": {"flips": true, "none": false}}']
    argv += ['tune.sample={"train.lr": {"loguniform": [1e-4, 1e-2]}}', "tune.samples=2"]
    found = cells(*argv)
    assert len(found) == 8
    assert found[0].label.startswith("global_batch=8·flips·lr=")
    assert all(1e-4 <= cell.config.train.lr <= 1e-2 for cell in found)
    assert len({cell.config.train.lr for cell in found}) == 8
    assert [cell.label for cell in cells(*argv)] == [cell.label for cell in found]
    assert [cell.label for cell in cells(*argv, "train.seed=1")] != [cell.label for cell in found]


def test_further_cells_stand_beside_the_grid() -> None:
    *grid, longer = cells('tune.also={"longer": {"train.length": "9 steps", "model.batch_norm": false}}')
    assert [cell.label for cell in grid] == CELLS
    assert longer.label == "longer"
    assert (longer.config.train.length, longer.config.model.batch_norm) == ("9 steps", False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ('tune.grid={"train.lrr": [1]}', "unknown key train.lrr, did you mean train.lr"),
        ('tune.grid={"train.lr": [-1]}', "train.lr is -1, expected greater than 0"),
        ('tune.grid={"train.lr": [1, 1]}', r"several cells would be called lr_1: expected different values, or names"),
        ('tune.also={"bn·mse": {"train.lr": 1}}', r"several cells would be called bn-mse: expected"),
        ('tune.also={"大": {"train.lr": 1}, "小": {"train.lr": 2}}', r"several cells would be called _: expected"),
        ('tune.also={"longer": {"train.steps": 1}}', "unknown key train.steps"),
        ('tune.grid={"train.lr": []}', "tune.grid.train.lr is empty, expected at least one value"),
        ('tune.sample={"train.lr": {"gauss": [0, 1]}}', "tune.sample.train.lr is .*, expected one of uniform,"),
        ('tune.sample={"train.lr": {"uniform": [1]}}', "tune.sample.train.lr is .*uniform"),
        ("tune.metric=bench/Set5/psnr_y", "tune.metric is 'bench/Set5/psnr_y', expected a metric of held-out images"),
    ],
)
def test_a_mistake_in_the_grid_is_one_sentence(option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells(option)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 2}], [], (1, 2, {"CPU": 1})),
        ([{"CPU": 1}], [], (1, 1, {"CPU": 1})),
        ([{"CPU": 8}], [], (4, 2, {"CPU": 1})),
        ([{"CPU": 32}], [], (4, 2, {"CPU": 4})),
        ([{"CPU": 32}], ["tune.concurrent=2"], (2, 2, {"CPU": 8})),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 4}], [], (4, 1, {"CPU": 2, "GPU": 1})),
        ([{"CPU": 1}] * 2, [], (1, 2, {"CPU": 1})),
        ([{"CPU": 32}], ["cluster.workers=1", "cluster.cpus_per_worker=16"], (2, 1, {"CPU": 16})),
        ([{"CPU": 8, "GPU": 1}], [], (1, 1, {"CPU": 8, "GPU": 1})),
        ([{"CPU": 32, "GPU": 8}] * 2, [], (4, 4, {"CPU": 4, "GPU": 1})),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 4}], ["cluster.workers=3"], (2, 3, {"CPU": 5, "GPU": 1})),
    ],
)
def test_as_many_trials_at_once_as_fit(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, int]],
    options: list[str],
    expected: tuple[int, int, dict[str, float]],
) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert cluster.trial_resources(parse(options, "tune", ""), 4) == expected


def test_a_trial_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4}}])
    with pytest.raises(UserError, match=r"cluster\.workers is 3, with 2 CPU each, but the cluster has room for 2"):
        cluster.trial_resources(parse(["cluster.workers=3", "cluster.cpus_per_worker=2"], "tune", ""), 4)
    with pytest.raises(UserError, match=r"cluster\.workers is 9, with 1 CPU each, but the cluster has room for 4"):
        cluster.trial_resources(parse(["cluster.workers=9"], "tune", ""), 4)


def with_plans(found: list[Cell], *steps: int) -> list[Cell]:
    for cell, count in zip(found, steps, strict=True):
        cell.plan = Plan(count, 8, bf16=False, compiled=False, step_s=1.0)
    return found


def test_minutes_become_the_steps_of_the_slowest_cell_of_that_length(tmp_path: Path) -> None:
    argv = ["train.length=40 minutes", 'tune.grid={"model.batch_norm": [true, false]}']
    argv += [
        'tune.also={"longer": {"train.length": "100 minutes", "train.seed": 1}, "few": {"train.length": "7 steps"}}'
    ]
    found = with_plans(cells(*argv), 90, 100, 250, 7)
    experiment._settle(found, parse(argv, "tune", ""), str(tmp_path))
    assert {cell.label: cell.total for cell in found} == {"bn": 90, "nobn": 90, "longer": 250, "few": 7}
    assert found[2].config.train.length == "250 steps"
    again = with_plans(cells(*argv), 50, 100, 250, 7)  # as if one had been measured only now
    experiment._settle(again, parse(argv, "tune", ""), str(tmp_path))
    assert [cell.total for cell in again] == [90, 90, 250, 7]


def measured_but_one(dumped: dict[str, Any], patch_set: str, threads: int, gpu: bool) -> dict[str, Any]:
    if dumped["train"]["lr"] == 2:
        raise MemoryError("no room for it")
    return asdict(Plan(5, 8, bf16=False, compiled=False, step_s=1.0))


@pytest.mark.usefixtures("ray_session")
def test_a_cell_that_cannot_be_measured_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_measured", measured_but_one)
    found = cells(f"home={tmp_path}", 'tune.grid={"train.lr": [1, 2, 3]}')
    for cell in found:
        cell.patch_set = PatchSet("x", "x", 4, 192, {}, [], [])
    able = experiment._measure(found, str(tmp_path), 1, False)
    assert [cell.label for cell in able] == ["lr=1", "lr=3"]
    assert found[1].state == "failed"
    assert re.search("cannot measure a step: .*no room for it", found[1].reason)
    with pytest.raises(UserError, match="cannot measure a step"):
        experiment._measure([found[1]], str(tmp_path), 1, False)


@pytest.mark.usefixtures("ray_session")
def test_cells_that_hold_out_different_images_are_refused(small: Callable[..., list[str]]) -> None:
    options = small('tune.grid={"preprocess.degradation.noise": [0, 20]}')
    with pytest.raises(UserError, match="the cells hold out different images"):
        experiment.run(parse(options, "tune", ""))


def test_it_prints_plan_live_table_and_results(finished_grid: Grid) -> None:
    _, folder, printed, errors = finished_grid
    assert re.search(r"3 of 3 trials to train, \d at once, each with 1 worker of \d CPU; about ", printed)
    assert re.search(r"1 +mse +training +\d+ of 8", printed)
    assert re.search(r"3 +perceptual +finished +8 of 8 +\d+\.\d+ +\d+\.\d\d dB", printed)
    assert re.search(r"held-out \(2\) +bicubic +\d\d\.\d\d", printed)
    assert re.search(r"held-out +published nobn·perceptual +9\.21", printed)
    assert re.search(r"On held-out images, highest PSNR: (mse|perceptual)\.", printed)
    assert "cell broken failed: training diverged: 2 steps in a row" in errors
    assert f"report: {folder}/report.html" in printed


def test_a_failing_cell_does_not_stop_the_others(finished_grid: Grid) -> None:
    with Path(finished_grid[1], "results.csv").open() as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    assert {label: row["state"] for label, row in rows.items()} == {
        "mse": "finished", "broken": "failed", "perceptual": "finished"
    }  # fmt: skip
    assert "not finite" in rows["broken"]["reason"]
    assert float(rows["mse"]["held-out/psnr_y"]) > 15
    markdown = Path(finished_grid[1], "results.md").read_text()
    assert "| held-out (2) | perceptual |" in markdown


def test_mlflow_compares_the_cells_by_name(finished_grid: Grid) -> None:
    _, folder, _, _ = finished_grid
    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1]}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'super-resolution'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "grid": "FINISHED", "mse": "FINISHED", "broken": "FAILED", "perceptual": "FINISHED"
    }  # fmt: skip
    parent = runs.pop("grid").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    assert [run.data.tags["cell"] for name, run in runs.items()] == list(runs)
    for names in ("train/objective", "val/psnr_y", "held-out/ssim_y", "parameters", "patches_per_s"):
        assert names in runs["mse"].data.metrics
        assert names in runs["perceptual"].data.metrics
    assert {"train/perceptual", "train/tv"} <= set(runs["perceptual"].data.metrics)
    steps = [
        [(m.step, m.key) for m in client.get_metric_history(runs[name].info.run_id, "val/psnr_y")]
        for name in ("mse", "perceptual")
    ]
    assert steps[0] == steps[1]
    shown = [
        sorted(f.path.split("+timestamp")[0] for f in client.list_artifacts(runs[name].info.run_id, "images"))
        for name in ("mse", "perceptual")
    ]
    assert shown[0] == shown[1] != []
    best = max(("mse", "perceptual"), key=lambda name: runs[name].data.metrics["held-out/psnr_y"])
    assert client.get_model_version_by_alias("srresnet-x4", "best-psnr").run_id == runs[best].info.run_id
    kept = {file.path for file in client.list_artifacts(parent)}
    assert kept == {"config.yaml", "results.md", "results.csv", "results.json", "comparison.png", "report.html"}
    note = runs["mse"].data.tags["mlflow.note.content"]
    assert f"python -m pipeline.run --from-run {runs['mse'].info.run_id}" in note


def test_a_runs_settings_are_had_from_its_id(finished_grid: Grid) -> None:
    options, folder, _, _ = finished_grid
    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1]}/mlflow.db")
    (run,) = client.search_runs(["1"], "attributes.run_name = 'perceptual'")
    argv = ["--from-run", run.info.run_id, options[1], "train.length=9 steps"]
    config, _ = parse_with({}, argv, "run", "", tracking.fetch_config)
    assert config.train.loss == {"perceptual": 1.0, "tv": 5.5e-4}
    assert (config.model, config.data) == (parse(options, "tune", "").model, parse(options, "tune", "").data)
    assert config.train.length == "9 steps"
    with pytest.raises(UserError, match=r"run none of MLflow at sqlite:.* cannot be used"):
        parse_with({}, ["--from-run", "none", options[1]], "run", "", tracking.fetch_config)


@pytest.mark.long
def test_a_run_is_made_again_from_its_id(finished_grid: Grid) -> None:
    options, folder, _, _ = finished_grid
    home = options[1]
    client = mlflow.MlflowClient(f"sqlite:///{folder.parents[1]}/mlflow.db")
    (run,) = client.search_runs(["1"], "attributes.run_name = 'mse'")
    printed, _ = tune("--from-run", run.info.run_id, home, "name=again", module="run")
    assert re.search(r"training finished: .*/trainings/again-x4-nobn-mse-", printed)
    (again,) = client.search_runs(["1"], "attributes.run_name LIKE 'again-%'")
    assert {**again.data.params} == {**run.data.params}
    assert again.data.metrics["val/psnr_y"] == run.data.metrics["val/psnr_y"]


@pytest.mark.long
def test_missing_weights_leave_cells_out_by_one_sentence(tmp_path: Path) -> None:
    options = grid_options(tmp_path, "train.perceptual.weights=/none.pth", "--dry-run")
    printed, errors = tune(*options)
    assert re.search(r"2 of 4 trials to train", printed)
    assert re.search(r"nobn·perceptual +left out", printed)
    expected = "cell bn·perceptual left out: train.perceptual.weights is /none.pth, expected an existing .safetensors"
    assert expected in errors


@pytest.mark.long
@pytest.mark.timeout(600)
def test_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    grid = 'tune.grid={"train.lr": [1e-3, 2e-3]}'
    cadence = ["train.checkpoint_every=50", "train.validate_every=500", "train.log_every=50"]
    options = grid_options(tmp_path, grid, "train.length=1900 steps", *cadence)
    home = tmp_path / "home"
    command = [sys.executable, "-m", "pipeline.tune", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 300
        # the first cell is finished, the second has begun
        while len(list(home.glob("trainings/*/checkpoints/*/state.json"))) < 3 or not list(
            home.glob("trainings/*/result.json")
        ):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Traceback" not in errors
    (first,) = home.glob("trainings/*/result.json")
    before = first.stat().st_mtime_ns
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    assert sorted(r.info.status for r in client.search_runs(["1"])) == ["FINISHED", "KILLED", "KILLED"]
    printed, _ = tune(*options)
    assert "1 of 2 trials to train" in printed
    assert first.stat().st_mtime_ns == before
    runs = client.search_runs(["1"])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    (second,) = (file.parent for file in home.glob("trainings/*/result.json") if file != first)
    sessions = [
        json.loads(line)
        for file in sorted(second.glob("journal/*.jsonl"))
        for line in file.read_text().splitlines()
        if json.loads(line)["kind"] == "session"
    ]
    assert len(sessions) <= 2
    assert sessions[-1]["step"] % 50 == 0 < sessions[-1]["step"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_asha_stops_what_is_behind(tmp_path: Path) -> None:
    grid = 'tune.grid={"train.lr": [1e-2, 1e-9, 1e-10]}'
    more = ["train.length=600 steps", "train.validate_every=20", "tune.scheduler=asha", "tune.grace=40"]
    options = grid_options(tmp_path, grid, *more, "train.warmup=0", "model.init=paper", "train.log_every=20")
    printed, _ = tune(*options)
    assert re.search(r"lr=0.01 +finished", printed)
    assert len(re.findall(r"lr=1e-\d+ +stopped +\d+", printed)) >= 1
    again, _ = tune(*options)
    assert "0 of 3 trials to train" in again


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    found = Services(tmp_path / "services")
    found.start()
    yield found
    found.stop()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_with_postgresql_and_s3_and_the_server_away_for_a_while(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in services.exports.items():
        monkeypatch.setenv(key, value)
    grid = 'tune.grid={"train.loss": {"mse": {"mse": 1}, "l1": {"l1": 1}}}'
    options = grid_options(tmp_path, "train.length=1500 steps", grid)
    home = "s3://super-resolution/runs"
    options[1] = f"--home={home}"
    command = [sys.executable, "-m", "pipeline.tune", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 300
        while not any(
            storage.names(f"{home}/trainings/{name}/checkpoints") for name in storage.names(f"{home}/trainings")
        ):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        services.mlflow.stop()
        time.sleep(60)
        services.mlflow.start()
        printed, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, printed
    client = mlflow.MlflowClient(services.mlflow.url)
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "grid": "FINISHED", "mse": "FINISHED", "l1": "FINISHED"
    }  # fmt: skip
    for name in ("mse", "l1"):
        steps = [m.step for m in client.get_metric_history(runs[name].info.run_id, "train/objective")]
        assert sorted(set(steps)) == list(range(2, 1501, 2))
        assert client.list_artifacts(runs[name].info.run_id, "model")
    (grid_folder,) = storage.names(f"{home}/grids")
    assert len(storage.read(f"{home}/grids/{grid_folder}/report.html") or b"") > 10_000
