"""Versions of a registered model: their tags, and the alias of the best one."""

from pathlib import Path

import mlflow
import pytest

from pipeline.settings.command_line import parse
from pipeline.tracking import ModelVersion, Tracker, TrainedModel, register_version


@pytest.fixture
def tracker(home: Path) -> Tracker:
    return Tracker(parse([f"home={home}"], "run", ""))


def register(
    tracker: Tracker,
    folder: Path,
    name: str,
    score: float,
    held_out: str = "images",
    scale: int = 4,
    higher: bool = True,
) -> None:
    """Register the run of a folder of this name."""
    with tracker.run(str(folder / name), name, {}) as run:
        assert run.log_model(TrainedModel(b"", scale, "SRResNet", name))
        version = ModelVersion(folder.name, run, name, scale, held_out, {"held-out/psnr_y": score, "Set5/x": 1.5})
        assert register_version(tracker, version, "best", "held-out/psnr_y", higher)


def holder(tracker: Tracker, folder: Path) -> str:
    """Name of the run whose version has the alias."""
    client = mlflow.MlflowClient(tracker.uri)
    found = client.get_model_version_by_alias(folder.name, "best")
    return str(client.get_run(found.run_id).info.run_name)


def test_the_alias_moves_only_to_something_better(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(tracker, tmp_path, "first", 28)
    assert holder(tracker, tmp_path) == "first"
    for name, score in (("worse", 27.9), ("equal", 28.0)):
        register(tracker, tmp_path, name, score)
        assert holder(tracker, tmp_path) == "first"
    assert "stays at version 1: its held-out/psnr_y is 28, that of the new version 27.9" in capsys.readouterr().out
    register(tracker, tmp_path, "better", 28.1)
    assert holder(tracker, tmp_path) == "better"


def test_a_lower_distance_is_better(tracker: Tracker, tmp_path: Path) -> None:
    for name, distance, best in (("a", 0.5, "a"), ("b", 0.6, "a"), ("c", 0.4, "c")):
        register(tracker, tmp_path, name, distance, higher=False)
        assert holder(tracker, tmp_path) == best


def test_scores_on_other_images_or_scales_are_not_compared(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(tracker, tmp_path, "first", 28)
    register(tracker, tmp_path, "toy", 40, held_out="other images")
    register(tracker, tmp_path, "x2", 40, scale=2)
    assert holder(tracker, tmp_path) == "first"
    assert capsys.readouterr().out.count("was scored on other images") == 2


def test_an_alias_without_known_scores_stays(tracker: Tracker, tmp_path: Path) -> None:
    register(tracker, tmp_path, "old", 1)
    client = mlflow.MlflowClient(tracker.uri)
    for tag in ("held_out_images", "held-out/psnr_y", "scale"):
        client.delete_model_version_tag(tmp_path.name, "1", tag)
    register(tracker, tmp_path, "new", 40)
    assert holder(tracker, tmp_path) == "old"


def test_the_alias_moves_from_a_version_of_the_same_run_that_mlflow_cannot_load(
    tracker: Tracker, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(tracker.uri)
    with tracker.run(str(tmp_path / "old"), "old", {}) as run:
        client.create_registered_model(tmp_path.name)
        client.create_model_version(tmp_path.name, f"{tmp_path}/weights", run.id)  # as earlier releases did
    for key, value in (("scale", "4"), ("held_out_images", "images"), ("held-out/psnr_y", "28")):
        client.set_model_version_tag(tmp_path.name, "1", key, value)
    client.set_registered_model_alias(tmp_path.name, "best", "1")
    register(tracker, tmp_path, "old", 28)
    version = client.get_model_version_by_alias(tmp_path.name, "best")
    assert (str(version.version), version.run_id) == ("2", run.id)


def test_a_run_without_a_model_is_not_registered(
    tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracker.run(str(tmp_path / "work"), "work", {}) as run:
        version = ModelVersion(tmp_path.name, run, "work", 4, "images", {"held-out/psnr_y": 28})
        assert not register_version(tracker, version, "best", "held-out/psnr_y")
    assert capsys.readouterr().err == (
        f"MLflow has no model of the run {run.id} yet: rerun the command to register it\n"
    )


def test_versions_carry_their_scores_and_each_run_has_one(tracker: Tracker, tmp_path: Path) -> None:
    register(tracker, tmp_path, "first", 28)
    register(tracker, tmp_path, "first", 28.25)
    (version,) = mlflow.MlflowClient(tracker.uri).search_model_versions(f"name = '{tmp_path.name}'")
    assert version.tags == {
        "scale": "4", "held_out_images": "images", "held-out/psnr_y": "28.25", "Set5/x": "1.5"
    }  # fmt: skip
    assert version.description.startswith("first ([run](#/experiments/1/runs/")
    assert version.description.endswith("\n\n- held-out/psnr_y: 28.25\n- Set5/x: 1.5")
