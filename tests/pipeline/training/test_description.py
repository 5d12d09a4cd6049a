"""The parameters of a training in MLflow are few, and they tell trainings apart."""

from pathlib import Path

import pytest

from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.description import run_parameters
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def parsed(*argv: str) -> Config:
    return parse(["home=/home", *argv], "run", "")


def test_the_default_training_has_the_parameters_that_every_training_has() -> None:
    assert run_parameters(parsed("name=x")) == {
        "scale": 4, "train.length": "1000 steps", "train.global_batch": 16, "train.lr": 4e-4
    }  # fmt: skip


def test_what_differs_and_shapes_is_a_parameter_and_the_technical_rest_is_not() -> None:
    config = parsed(
        "model.channels=32", "model.batch_norm=false", "train.optimizer=muon", "data.crop=48", "scale=2",
        "preprocess.degradation.noise=3", "preprocess.tile=64", "train.validate_every=50", "train.micro_batch=2",
        "data.lanes=2", "cluster.workers=1", 'train.perceptual.layers={"conv1_2": 1}',
    )  # fmt: skip
    different = run_parameters(config).keys() - run_parameters(parsed("name=x")).keys()
    assert different == {
        "model.channels", "model.batch_norm", "train.optimizer", "data.crop", "preprocess.degradation.noise"
    }  # fmt: skip


def test_settings_of_a_term_count_where_the_term_is_used() -> None:
    layers = 'train.perceptual.layers={"conv1_2": 1}'
    parameters = run_parameters(parsed('train.loss={"perceptual": 1, "tv": 5e-4}', layers))
    assert parameters["train.loss"] == "perceptual=1,tv=0.0005"
    assert parameters["train.perceptual.layers"] == "conv1_2=1"


def test_a_cell_has_the_values_of_all_axes_even_where_they_are_the_defaults() -> None:
    config = parsed('tune.grid={"train.lr": [4e-4, 1e-3], "train.seed": [0, 1]}', "name=x")
    assert run_parameters(config, "cell")["train.seed"] == 0
    assert {"model.batch_norm", "train.loss"} <= run_parameters(parsed("name=x"), "cell").keys()
    assert "model.batch_norm" not in run_parameters(parsed("name=x"))


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_images_have_room_below_the_parameters_of_shipped_configurations(file: Path) -> None:
    """MLflow's chart of an image has room for about ten lines of 36 characters, and the image needs a third of it."""
    parameters = run_parameters(parsed("--config", str(file)))
    assert len(", ".join(f"{key}={value}" for key, value in parameters.items())) < 7 * 36
