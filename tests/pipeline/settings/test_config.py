import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.settings.fields import section_models
from pipeline.settings.mistakes import known_keys
from tests.conftest import ROOT


def read(*argv: str) -> Config:
    return parse(argv, "run", "Test.")


def test_options_override_the_file_in_both_spellings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: mine\ntrain: {lr: 0.1, seed: 3}\nsource: /photos\n")
    config = read("--config", str(file), "--train.lr", "0.2", "train.global_batch=32")
    assert (config.name, config.source) == ("mine", ["/photos"])
    assert (config.train.lr, config.train.seed, config.train.global_batch) == (0.2, 3, 32)


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
        (["train.lrr=3"], "unknown key train.lrr, did you mean train.lr?; --help lists all"),
        (["train.lr=-1"], "train.lr is '-1', expected greater than 0"),
        (["train.lr=fast"], "train.lr is 'fast', expected a valid number, unable to parse string as a number"),
        (["scale=5"], "scale is 5, expected 2, 3, 4 or 8"),
        (["data.crop=98"], "data.crop is 98, expected a multiple of the scale 4"),
        (["data.crop=256"], "data.crop is 256, expected no more than preprocess.tile, 192"),
        (
            ['train.loss={"perceptual": 1}', "train.perceptual.start=0.5"],
            "train.perceptual.start needs a term that compares pixels until then, such as l1 in train.loss",
        ),
        (
            ['train.loss={"perceptual": 1, "tv": 0.2}', "train.perceptual.start=0.5"],
            "train.perceptual.start needs a term that compares pixels until then",
        ),
        (["train.loss=vgg=1"], "train.loss is {'vgg': '1'}, expected terms among ['charbonnier', 'l1', 'mse', "),
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


@pytest.mark.parametrize("stage", ["run", "train"])
def test_help_shows_every_key(stage: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for key in ("--config", *(f"--{key}" for key in known_keys()), "(default: 0.0004)"):
        assert key in shown
    assert "(default: None)" not in shown
    assert "(default: null)" not in shown
