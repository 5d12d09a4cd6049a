"""The grid as users start it: its output, its files, its runs in MLflow, and how it resumes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline import storage, tracking
from pipeline.settings import UserError
from pipeline.settings.command_line import parse, parse_with
from tests.conftest import ROOT
from tests.pipeline.grid.grids import Grid, grid_options, tune
from tests.services import Services


def test_it_prints_plan_live_table_and_results(finished_grid: Grid) -> None:
    _, folder, printed, errors = finished_grid
    assert re.search(r"3 of 3 trials to train, \d at once, each with 1 worker of \d CPU; about ", printed)
    assert "grid: mse starting at step 0 of 8" in printed
    assert re.search(r"grid: perceptual finished at step 8 of 8, \d+\.\d\d dB", printed)
    assert re.search(r"grid: broken failed: training diverged: 2 steps in a row", printed)
    assert re.search(r"held-out \(2\) +bicubic +\d\d\.\d\d", printed)
    assert "published" not in printed  # the published network is eight times as wide
    assert re.search(
        r"On held-out images, highest PSNR: (mse|perceptual); lowest ST-LPIPS: (mse|perceptual)\.", printed
    )
    assert re.search(r"cell broken failed: training diverged: 2 steps in a row [^\n]*\n$", errors)
    assert f"report: {folder}/report.html" in printed


def test_its_output_in_a_pipe_has_no_control_characters(finished_grid: Grid) -> None:
    _, _, printed, errors = finished_grid
    assert re.findall(r"[^\n -~\u00a0-\uffff]", printed + errors) == []


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
    version = client.get_model_version_by_alias("srresnet-x4", "best-psnr")
    assert version.run_id == runs[best].info.run_id
    models = {model.source_run_id: model for model in client.search_logged_models([experiment.experiment_id])}
    assert set(models) == {runs[name].info.run_id for name in ("mse", "perceptual")}
    assert version.source == models[version.run_id].artifact_location
    assert version.description.startswith(f"{best} of the grid ")
    psnr = runs[best].data.metrics["held-out/psnr_y"]
    assert float(version.tags["held-out/psnr_y"]) == pytest.approx(psnr, rel=1e-5)
    whole = client.get_run(parent)
    assert (whole.data.metrics["held-out/psnr_y"], whole.data.tags["best_cell"]) == (psnr, best)
    assert [data.dataset.name for data in whole.inputs.dataset_inputs] == ["photos"]
    kept = {file.path for file in client.list_artifacts(parent)}
    results = {
        "results.md",
        "results.csv",
        "results.json",
        "plane.md",
        "plane.svg",
        "cost.svg",
        "comparison.png",
        "report.html",
    }
    assert kept == {"config.yaml", *results}
    note = runs["mse"].data.tags["mlflow.note.content"]
    assert f"python -m pipeline.run --from-run {runs['mse'].info.run_id}" in note


def test_settings_are_fetched_by_the_id_of_a_run(finished_grid: Grid) -> None:
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
def test_a_run_is_reproduced_from_its_id(finished_grid: Grid) -> None:
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
def test_cells_without_their_weights_are_left_out_with_a_reason(tmp_path: Path) -> None:
    options = grid_options(tmp_path, "train.perceptual.weights=/none.pth", "--dry-run")
    printed, errors = tune(*options, code=1)
    assert re.search(r"2 of 4 trials to train", printed)
    assert re.search(r"nobn·perceptual +left out", printed)
    expected = "cell bn·perceptual left out: train.perceptual.weights is /none.pth, expected an existing .safetensors"
    assert expected in errors
    assert errors.splitlines()[-1].startswith("cell nobn·perceptual left out: train.perceptual.weights")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_interrupted_grid_resumes(tmp_path: Path) -> None:
    grid = 'tune.grid={"train.length": ["60 steps", "600 steps"]}'  # so the first cell is finished soon
    cadence = ["train.checkpoint_every=50", "train.validate_every=500", "train.log_every=50"]
    options = grid_options(tmp_path, grid, *cadence)
    home = tmp_path / "home"
    command = [sys.executable, "-m", "pipeline.tune", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 300
        # Wait until the first cell is finished and the second has a checkpoint.
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


SEARCH = [
    "train.length=200 steps", "train.validate_every=20", "train.log_every=20", "train.checkpoint_every=20",
    "train.warmup=0", "model.init=paper",
    "tune.scheduler=asha", "tune.grace=40",
]  # fmt: skip
"""Options of a grid with early stopping."""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_asha_stops_cells_that_fall_behind(tmp_path: Path) -> None:
    options = grid_options(tmp_path, 'tune.grid={"train.lr": [1e-2, 1e-9, 1e-10]}', *SEARCH)
    printed, _ = tune(*options)
    assert re.search(r"lr=0.01 +finished", printed)
    stopped = set(re.findall(r"(lr=1e-\d+) +stopped +\d+", printed))
    assert stopped
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlflow.db")
    statuses = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert {label for label, status in statuses.items() if status == "KILLED"} == stopped
    (page,) = tmp_path.glob("home/grids/*/report.html")
    table = (page.parent / "results.md").read_text()
    for label in stopped:
        assert re.search(rf"{label} \(stopped at step \d+\)", page.read_text())
        assert re.search(rf"\| held-out \(2\) \| {label} \(stopped at step \d+\) \| \d+\.\d\d \|", table)
    written = {name: (page.parent / name).read_bytes() for name in ("report.html", "results.md", "results.csv")}
    again, _ = tune(*options)
    assert "0 of 3 trials to train" in again
    assert {name: (page.parent / name).read_bytes() for name in written} == written


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_search_with_asha_gives_every_draw_its_cores(tmp_path: Path) -> None:
    draws = ["tune.grid={}", 'tune.sample={"train.lr": {"loguniform": [1e-10, 1e-2]}}', "tune.samples=12"]
    printed, _ = tune(*grid_options(tmp_path, *draws, *SEARCH))
    states = re.findall(r"^lr=\S+ +(finished|stopped) ", printed, re.MULTILINE)
    assert len(states) == 12
    assert set(states) == {"finished", "stopped"}


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
    rare = ["train.checkpoint_every=100", "train.validate_every=500"]  # each takes many requests
    options = grid_options(tmp_path, "train.length=1500 steps", grid, *rare)
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
        fetching = parse([f"home={tmp_path}", f"cache={tmp_path / 'cache'}"], "tune", "")
        assert tracking.fetch_weights(fetching, f"runs:/{runs[name].info.run_id}")
    assert mlflow.pyfunc.load_model("models:/srresnet-x4@best-psnr")
    (grid_folder,) = storage.names(f"{home}/grids")
    assert len(storage.read(f"{home}/grids/{grid_folder}/report.html") or b"") > 10_000
