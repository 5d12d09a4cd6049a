"""The weights that a training starts from, by all names of a model."""

from pathlib import Path

import pytest

from pipeline.networks import bundled
from pipeline.networks.weights import build_network, read_weights, to_safetensors
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training import initial, runs

SMALL = ("model.channels=4", "model.blocks=1", "model.batch_norm=false")


def config(folder: Path, start: str, *options: str) -> Config:
    return parse([f"home={folder / 'home'}", f"train.init_from={start}", *SMALL, *options], "train", "")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a training, and its workflow's folder beside it."""
    folder = tmp_path / "home/trainings/mine"
    folder.mkdir(parents=True)
    (tmp_path / "home/workflows/mine").mkdir(parents=True)
    weights = to_safetensors(build_network(4, parse(SMALL, "train", "").model, 1), 4)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_file_and_folders_are_the_same_start(trained: Path, tmp_path: Path) -> None:
    workflow = tmp_path / "home/workflows/mine"
    starts = [config(tmp_path, str(place)) for place in (trained / "model.safetensors", trained, workflow)]
    for start in starts:
        initial.check_initial(start)
        assert initial.find_initial(start) == str(trained / "model.safetensors")
        assert initial.locate_initial(start) == starts[0]
    identities = [runs.identify(start, "set") for start in starts]
    assert identities[0] == identities[1] == identities[2]


def test_a_relative_folder_becomes_absolute_and_other_names_stay(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config(tmp_path, "home/trainings/mine").train.init_from == str(trained)
    (tmp_path / "plain").mkdir()
    assert config(tmp_path, "plain").train.init_from == str(tmp_path / "plain")
    assert config(tmp_path, "start.safetensors").train.init_from == str(tmp_path / "start.safetensors")
    for name in ("srresnet-x4", "models:/sr@best-psnr", "runs:/0123", "s3://bucket/model.safetensors"):
        assert config(tmp_path, name).train.init_from == name


def test_a_bundled_model_is_a_start(tmp_path: Path) -> None:
    start = parse([f"home={tmp_path}", "train.init_from=srresnet-x4", "model.batch_norm=false"], "train", "")
    initial.check_initial(start)
    by_path = parse(
        [f"home={tmp_path}", f"train.init_from={bundled.weights('srresnet-x4')}", "model.batch_norm=false"], "train", ""
    )
    assert runs.identify(start, "set") == runs.identify(by_path, "set")


def test_the_start_is_copied_to_where_all_workers_read(trained: Path, tmp_path: Path) -> None:
    stored = initial.store_initial(config(tmp_path, str(trained)), str(tmp_path / "next"))
    assert stored.train.init_from == str(tmp_path / "next/initial.safetensors")
    copied, known = read_weights(stored.train.init_from), read_weights(str(trained / "model.safetensors"))
    assert copied.keys() == known.keys()
    from_nothing = parse([f"home={tmp_path}"], "train", "")
    assert initial.store_initial(from_nothing, str(tmp_path / "none")) == from_nothing
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("home/trainings/mine", ["model.blocks=2"], "belong to another network than scale and model describe"),
        ("home/trainings/mine", ["scale=2"], "belong to another network than scale and model describe"),
        ("home/trainings", [], "train.init_from is .*home/trainings: .* has no model.safetensors"),
        ("bicubic", [], "train.init_from is bicubic, expected a model with weights of this project"),
        ("srresnet-x9", [], "train.init_from is srresnet-x9: there is no model srresnet-x9: expected a bundled model"),
        ("none.safetensors", [], "train.init_from is .*none.safetensors: .*there is no such file"),
    ],
)
def test_a_start_that_does_not_fit_is_one_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        initial.check_initial(config(tmp_path, start, *options))
