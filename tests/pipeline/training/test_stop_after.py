"""Commands that stop after a time, and go on when they are rerun."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from pipeline.data import preparation
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training import driver, runs
from pipeline.training.stopping import OutOfTime
from tests import commands
from tests.conftest import read_json
from tests.pipeline.grid.grids import grid_options

Small = Callable[..., list[str]]


def run(module: str, *argv: str) -> str:
    """Output of a command that ends with exit code 0."""
    done = commands.run(module, *argv)
    assert done.code == 0, done
    assert "Traceback" not in done.stderr
    return done.stdout


def statuses(config: Config, *folders: str) -> list[str]:
    """Status of the MLflow run of each folder."""
    client = mlflow.MlflowClient(config.tracking_uri)
    ids = [next(iter(read_json(f"{folder}/tracking.json")["runs"].values())) for folder in folders]
    return [client.get_run(run_id).info.status for run_id in ids]


@pytest.mark.parametrize("value", ["11.5", "hours", "0 hours", "11.5 days", "-1 hours", "1e3 minutes", "9999999 hours"])
def test_a_time_has_a_number_and_a_unit(value: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.stop_after"):
        parse([f"--cluster.stop_after={value}"], "train", "")


def test_the_time_counts_from_the_start_of_the_command() -> None:
    assert parse([], "train", "").cluster.stop_at(100.0) is None
    assert parse(["--cluster.stop_after", "11.5 hours"], "train", "").cluster.stop_at(100.0) == 100 + 11.5 * 3600
    assert parse(["cluster.stop_after=0.5 minutes"], "train", "").cluster.stop_at(100.0) == 130


@pytest.mark.usefixtures("ray_session")
def test_it_shapes_no_training(small: Small) -> None:
    plain, limited = parse(small(), "train", ""), parse(small("cluster.stop_after=1 hours"), "train", "")
    patch_set, _ = preparation.prepare(plain)
    assert runs.training_name(plain, patch_set) == runs.training_name(limited, patch_set)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_training_is_marked_killed_and_goes_on_where_it_stopped(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    options = small("train.length=40 steps", "train.checkpoint_every=40", "cluster.stop_after=40 minutes")
    config = parse(options, "train", "")
    patch_set, _ = preparation.prepare(config)
    folder = runs.training_folder(config, patch_set)
    with pytest.raises(OutOfTime) as stopped:
        driver.train(config, patch_set, stop_at=time.time() + 2)
    assert stopped.value.code == 0
    step = stopped.value.step
    assert step is not None
    assert 0 < step < 40
    line = f"training stopped at step {step} of 40 after 40 minutes, as cluster.stop_after says: rerun the same command"
    assert line in capsys.readouterr().out
    assert not Path(folder, "result.json").exists()
    assert statuses(config, folder) == ["KILLED"]

    with pytest.raises(OutOfTime):  # a training does not start when its time is over
        driver.train(config, patch_set, stop_at=time.time() - 1)
    assert "training stopped before its first step after 40 minutes" in capsys.readouterr().out

    trained = driver.train(config, patch_set, stop_at=time.time() + 3600)
    assert f"train: resuming from step {step} " in capsys.readouterr().out
    assert trained.result.steps == 40
    assert statuses(config, folder) == ["FINISHED"]
    assert driver.train(config, patch_set, stop_at=time.time() - 1).found


@pytest.mark.long
def test_a_workflow_that_stops_before_its_training_evaluates_nothing(small: Small) -> None:
    options = small("cluster.stop_after=0.01 minutes")
    printed = run("run", *options)
    assert printed.endswith(
        "training stopped before its first step after 0.01 minutes, as cluster.stop_after says: rerun the same command "
        "to resume\n"
    )
    config = parse(options, "run", "")
    (folder,) = Path(config.outputs, "workflows").iterdir()
    assert statuses(config, str(folder)) == ["KILLED"]
    assert not (folder / "report.html").exists()
    assert not Path(config.outputs, "trainings").exists()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_grid_keeps_its_records_and_starts_no_other_cell(tmp_path: Path) -> None:
    grid = json.dumps({"train.length": {"short": "4 steps", "long": "100000 steps", "later": "6 steps"}})
    options = grid_options(tmp_path, "train.checkpoint_s=0", "train.validate_every=100000")
    run("train", *options, "train.length=4 steps")  # the first cell, so that the grid finds it finished
    options += [f"tune.grid={grid}", "tune.concurrent=1", f"tune.records={tmp_path / 'records'}"]
    config = parse(options, "tune", "")
    for minutes, started in ((0.01, 1), (2.5, 2)):
        printed = run("tune", *options, f"cluster.stop_after={minutes} minutes")
        assert printed.endswith(
            f"grid stopped with 1 of 3 cells finished after {minutes} minutes, as cluster.stop_after says: rerun the "
            "same command to resume\n"
        )
        assert [record.parent.name for record in (tmp_path / "records").glob("*/record.json")] == ["short"]
        (folder,) = Path(config.outputs, "grids").iterdir()
        assert statuses(config, str(folder)) == ["KILLED"]
        assert not (folder / "report.html").exists()
        assert not list(folder.glob("stopped*.json"))
        assert len(list(Path(config.outputs, "trainings").glob("*/checkpoints"))) == started
