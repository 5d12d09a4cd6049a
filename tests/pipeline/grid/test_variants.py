"""The variants of a grid: combinations, draws and labels."""

import pytest

from pipeline.grid.variants import Variant, list_variants
from pipeline.settings import UserError
from pipeline.settings.command_line import parse

CELLS = ["bn·mse", "bn·perceptual", "nobn·mse", "nobn·perceptual"]


def variants(*argv: str) -> list[Variant]:
    return list_variants(parse(argv, "tune", ""))


def test_the_default_grid_is_batchnorm_by_loss() -> None:
    found = variants()
    assert [cell.label for cell in found] == CELLS
    assert [cell.config.model.model_dump()["batch_norm"] for cell in found] == [True, True, False, False]
    assert [list(cell.config.train.loss) for cell in found] == [["mse"], ["perceptual", "tv"]] * 2
    same = [(c.config.train.length, c.config.train.lr, c.config.train.seed, c.config.data) for c in found]
    assert all(each == same[0] for each in same)


def test_any_setting_can_be_an_axis_or_be_drawn() -> None:
    argv = ['tune.grid={"train.global_batch": [8, 32], "data.augment": {"flips": true, "none": false}}']
    argv += ['tune.sample={"train.lr": {"loguniform": [1e-4, 1e-2]}}', "tune.samples=2"]
    found = variants(*argv)
    assert len(found) == 8
    assert found[0].label.startswith("global_batch=8·flips·lr=")
    assert all(1e-4 <= cell.config.train.lr <= 1e-2 for cell in found)
    assert len({cell.config.train.lr for cell in found}) == 8
    assert [cell.label for cell in variants(*argv)] == [cell.label for cell in found]
    assert [cell.label for cell in variants(*argv, "train.seed=1")] != [cell.label for cell in found]


def test_networks_can_be_an_axis() -> None:
    small = ("model.channels=16", "model.batch_norm=false")
    found = variants(*small, 'tune.grid={"model.name": ["srresnet", "edsr"], "train.seed": [1, 2]}')
    assert [cell.label for cell in found] == ["srresnet·seed=1", "srresnet·seed=2", "edsr·seed=1", "edsr·seed=2"]
    assert [cell.config.model.name for cell in found] == ["srresnet", "srresnet", "edsr", "edsr"]
    assert {cell.config.model.model_dump()["channels"] for cell in found} == {16}
    with pytest.raises(UserError, match=r"unknown key model.batch_norm, which is a setting of srresnet"):
        variants("model.name=edsr")


def test_further_cells_stand_beside_the_grid() -> None:
    *grid, longer = variants('tune.also={"longer": {"train.length": "9 steps", "model.batch_norm": false}}')
    assert [cell.label for cell in grid] == CELLS
    assert longer.label == "longer"
    assert (longer.config.train.length, longer.config.model.model_dump()["batch_norm"]) == ("9 steps", False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ('tune.grid={"train.lrr": [1]}', "unknown key train.lrr, did you mean train.lr"),
        ('tune.grid={"train.lr": [-1]}', "train.lr is -1, expected a number above 0"),
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
        variants(option)
