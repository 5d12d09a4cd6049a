import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.settings.fields import section_models
from tests.conftest import ROOT


def read(*argv: str) -> Config:
    return parse(argv, "run", "Test.")


def test_options_override_the_file_in_both_spellings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: mine\ntrain: {lr: 0.1, seed: 3}\nsource: /photos\n")
    config = read("--config", str(file), "--train.lr", "0.2", "train.global_batch=32")
    assert (config.name, config.source) == ("mine", ["/photos"])
    assert (config.train.lr, config.train.seed, config.train.global_batch) == (0.2, 3, 32)


def test_another_network_than_that_of_the_file_keeps_what_both_have(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {channels: 32, blocks: 8, batch_norm: false}\n")
    config = read("--config", str(file), "--model.name=edsr", "--model.residual_scale=0.1")
    expected = {"name": "edsr", "channels": 32, "blocks": 8, "residual_scale": 0.1, "init": "upsampler"}
    assert config.model.model_dump() == expected
    assert config.training_label == "edsr-x4-edsr-mse"
    assert read("--model.name=edsr", "--name=mine").name == "mine"
    same = read("--config", str(file), "--model.name=srresnet")
    assert same.model.model_dump()["batch_norm"] is False
    assert same.name == "srresnet"


def test_null_takes_a_setting_of_the_file_away(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("tune: {records: folder}\ncluster: {workers: 3}\n")
    config = read("--config", str(file), "--tune.records", "null", "cluster.workers=null")
    assert (config.tune.records, config.cluster.workers) == (None, None)


def test_values_with_equal_signs_stay_with_their_option() -> None:
    config = read("--evaluate.benchmarks", "Set5=/a", "--evaluate.benchmarks", "Set14=/b")
    assert config.evaluate.benchmarks == {"Set5": "/a", "Set14": "/b"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train.lrr=3"], "unknown key train.lrr, did you mean train.lr?; --help-all lists all settings"),
        (["train.lr=-1"], "train.lr is '-1', expected a number above 0"),
        (["train.lr=fast"], "train.lr is 'fast', expected a number above 0"),
        (["scale=5"], "scale is 5, expected 2, 3, 4 or 8"),
        (["model.name=rcan"], "model.name is 'rcan', expected srresnet or edsr"),
        (
            ["model.name=edsr", "model.batch_norm=true"],
            "unknown key model.batch_norm, which is a setting of srresnet, see model.name",
        ),
        (["data.crop=98"], "data.crop is 98, expected a multiple of the scale 4"),
        (
            ['train.loss={"perceptual": 1}', 'train.perceptual={"layers": {"relu5_4": 1}, "shift": 3}', "data.crop=16"],
            "data.crop is 16, expected at least 19 for the term perceptual",
        ),
        (["data.crop=256"], "data.crop is 256, expected no more than preprocess.tile, 192"),
        (
            ['train.loss={"perceptual": 1}', "train.perceptual.start=0.5"],
            "train.perceptual.start needs a term that compares pixels until then, such as l1 in train.loss",
        ),
        (
            ['train.loss={"perceptual": 1, "tv": 0.2}', "train.perceptual.start=0.5"],
            "train.perceptual.start needs a term that compares pixels until then",
        ),
        (
            ["train.loss=vgg=1"],
            "train.loss is {'vgg': '1'}, expected weights of terms among mse, l1, charbonnier, tv, phase, ",
        ),
        (["source="], "source is [''], expected a path or URL"),
        (["home="], "home is '', expected a path or URL"),
        (
            ['evaluate.benchmarks={"Set5+": "x"}'],
            "evaluate.benchmarks is {'Set5+': 'x'}, expected another name",
        ),
        (['evaluate.benchmarks={"held-out": "x"}'], "evaluate.benchmarks is {'held-out': 'x'}, expected another name"),
        (["oops"], "cannot read 'oops', expected --KEY VALUE or KEY=VALUE"),
        (["--config", "none.yaml"], "cannot read the configuration none.yaml: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_what_was_expected(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


NUMBERS = [
    "train.lr", "train.memory_mb", "train.clip_norm", "train.ema_decay", "train.warmup", "train.perceptual.scale",
    "train.perceptual.start", "preprocess.shard_mb", "preprocess.max_reject_share", "preprocess.degradation.clean",
    "data.hold_mb", "cluster.resize_s", "train.seed", "model.channels", "evaluate.images",
]  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "Infinity", "1e999"])
def test_a_number_must_be_finite_on_the_command_line_and_in_a_file(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{key} is '{value}', expected ")):
        read(f"{key}={value}")
    nested: object = float(value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(nested))
    with pytest.raises(UserError, match=rf"^{re.escape(key)} is -?(nan|inf), expected "):
        read("--config", str(file))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "option",
    [
        'tune.grid={"train.lr": [0.1, VALUE]}',
        'tune.grid={"train.loss": {"odd": {"mse": VALUE}}}',
        'tune.sample={"train.lr": {"uniform": [0.1, VALUE]}}',
        'tune.also={"odd": {"train.betas": [0.9, VALUE]}}',
        'train.loss={"mse": VALUE}',
        'train.perceptual.layers={"conv2_2": VALUE}',
        "train.betas=[0.9, VALUE]",
    ],
)
def test_numbers_in_lists_and_mappings_must_be_finite_too(option: str, value: str) -> None:
    with pytest.raises(UserError, match=r"expected (a )?finite number"):
        read(option.replace("VALUE", value))


def test_a_length_or_seed_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(UserError, match="expected a length of at most 1,000,000,000,000 steps"):
        read(f"train.length={'9' * 400} steps")
    with pytest.raises(UserError, match="expected a number from -2"):
        read(f"train.seed={2**63}")


def test_the_file_is_validated_like_the_options(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {length: forever}\n")
    with pytest.raises(UserError, match=r"train.length is 'forever', expected .*a.yaml"):
        read("--config", str(file))
    file.write_text("trian: {}\n")
    with pytest.raises(UserError, match=r"unknown key trian, did you mean"):
        read("--config", str(file))
    file.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="holds list, expected a mapping"):
        read("--config", str(file))
    file.write_text("on: 3\n")
    with pytest.raises(UserError, match="unknown key True"):
        read("--config", str(file))
    file.write_text("train: 5\n")
    with pytest.raises(UserError, match="train is 5 in the configuration, expected a mapping"):
        read("--config", str(file), "train.lr=1")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configurations_are_valid_and_name_no_path(file: Path) -> None:
    config = read("--config", str(file))
    assert "home" not in yaml.safe_load(file.read_text())
    assert config.source in (["builtin"], ["div2k"])


def test_every_setting_is_documented() -> None:
    def undocumented(model: type[BaseModel], prefix: str = "") -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            if not field.description:
                missing.append(prefix + name)
            for section in section_models(field.annotation):
                missing += undocumented(section, f"{prefix}{name}.")
        return missing

    assert undocumented(Config) == []


@pytest.mark.parametrize("given", [["--scale", "2"], ["scale=2"]])
def test_a_choice_of_numbers_is_taken_from_the_command_line(given: list[str]) -> None:
    assert read(*given).scale == 2


def test_the_environment_sets_nothing_by_accident(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/root-of-evil")
    monkeypatch.setenv("NAME", "other")
    assert (Config().home, Config().name) == (None, "srresnet")
    assert (read().home, read().name) == (str(tmp_path / "runs"), "srresnet")


def test_an_existing_source_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a, b", "[2019]", "{x}", '"quoted"', "2019"]
    for name in names:
        (tmp_path / name).mkdir()
    argv = [part for name in names for part in ("--source", name)]
    assert read(*argv, "source=builtin,other").source == [
        *(str(tmp_path / name) for name in names), "builtin", str(tmp_path / "other"),
    ]  # fmt: skip
    assert read("--source", '["a", "b"]').source == [str(tmp_path / "a"), str(tmp_path / "b")]
