"""Every mistake in a setting is one sentence about that setting, in the words of the documentation."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.settings import Config, UserError, explain
from pipeline.settings.command_line import parse
from pipeline.settings.mistakes import known_keys, suggest

VALUES: list[Any] = [
    5, -1, 1.5, 10**30, float("nan"), float("inf"), "no such value", "", None, True, [], [1], ["x", None], [[{}]],
    {}, {"a": 1}, {"a": {"b": 2}}, {"a": None}, {1: 2}, {"a": [[]]},
]  # fmt: skip
"""Values of all types; no setting accepts all of them."""
TEXTS = ["", "no such value", "[", '{"a": ', "null"]
"""Texts that may follow an option."""
FOREIGN = (
    "pydantic", "Input should", "Value error", "valid ", "constrained", "literal", "instance of", "unpack", "Parsing",
    "dict", "tuple", "str_", "string", "int_", "None", "True", "False", "list[", "model_type", "[key]", "Error",
)  # fmt: skip
"""Words of pydantic and of Python."""


def check_sentence(message: str, key: str) -> None:
    outside_of_quotes = re.sub(r"'[^']*'|\"[^\"]*\"|\{.*?\}|\[.*?\]", "", message)
    assert re.search(rf"(^| ){re.escape(key)}\b", message), message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    assert not [word for word in FOREIGN if re.search(rf"(?<![a-z_]){re.escape(word)}", outside_of_quotes)], message
    assert "expected" in message or "unknown key" in message, message


@pytest.mark.parametrize("key", known_keys())
def test_a_wrong_value_in_a_file_is_explained(key: str) -> None:
    refused = 0
    for value in VALUES:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        try:
            Config(**nested)
        except ValidationError as error:
            refused += 1
            check_sentence(explain(error), key)
    assert refused >= 5


@pytest.mark.parametrize("key", known_keys())
def test_a_wrong_text_on_the_command_line_is_explained(key: str) -> None:
    for text in TEXTS:
        try:
            parse([f"--{key}={text}"], "run", "")
        except UserError as error:
            check_sentence(str(error), key)


@pytest.mark.parametrize("section", ["train", "data", "model", "preprocess.degradation", "train.perceptual"])
@pytest.mark.parametrize("value", [5, None, "text", [1], {"no_such_setting": 1}, {1: 2}])
def test_a_wrong_section_is_explained(section: str, value: Any) -> None:
    nested: Any = value
    for part in reversed(section.split(".")):
        nested = {part: nested}
    with pytest.raises(ValidationError) as error:
        Config(**nested)
    check_sentence(explain(error.value), section)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--evaluate.benchmarks", "Set5"],
            "evaluate.benchmarks is 'Set5', expected NAME=VALUE, such as Set5=data/Set5",
        ),
        (["--train.loss", "mse"], "expected NAME=VALUE, where VALUE is a number above 0, such as mse=1"),
        (["--train.loss", "mse=much"], "train.loss.mse is 'much', expected a number above 0"),
        (["--train.micro_batch", "few"], "train.micro_batch is 'few', expected an integer of at least 1, or auto"),
        (
            ["--train.betas", "0.9"],
            "train.betas is [0.9], expected a list of 2 values, each a number of at least 0 and ",
        ),
        (["--tune.grid", "train.lr=1"], "tune.grid[train.lr] is '1', expected a list, or a mapping"),
        (["--cluster.workers", "2.5"], "cluster.workers is '2.5', expected an integer of at least 1, or null"),
        (["--name", "my images"], "name is 'my images', expected letters A to Z, digits, "),
        (
            ["--data", "/photos"],
            "data is '/photos', expected settings of this section, such as data.crop; did you mean ",
        ),
        (["--train.lr"], "--train.lr has no value, expected a number above 0"),
        (["train.lr"], "train.lr has no value, expected --train.lr VALUE or train.lr=VALUE"),
        (["--config"], "--config has no value"),
        (["configs/demo.yaml"], "expected --config configs/demo.yaml"),
        (["my settings.yml"], "expected --config 'my settings.yml'"),
        (["help"], "expected --help or --help-all"),
        (["--dry-run"], "only pipeline.train and pipeline.tune take --dry-run"),
    ],
)
def test_a_message_shows_the_form_that_is_expected(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(argv, "run", "")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("option", "meant"),
    {
        "--lr": "train.lr", "--learning-rate": "train.lr", "--epochs": "train.length=\"20 epochs\"",
        "--steps": "train.length=\"1000 steps\"", "--batch_size": "train.global_batch",
        "--batch-size": "train.global_batch",
        "-b": None, "--gpus": "cluster.workers", "--workers": "cluster.workers", "--num_workers": "cluster.workers",
        "--output": "home", "--output_dir": "home", "--seed": "train.seed", "--dataset": "source",
        "--upscale_factor": "scale", "--resume": "rerun the same command", "--pretrained": "train.init_from",
        "--patch_size": "data.crop", "--cfg": "--config", "--train.batch_size": "train.global_batch",
        "--train.global-batch": "train.global_batch", "--train_lr": "train.lr", "--fp16": "train.precision",
        "--val_freq": "train.validate_every", "--n_resblocks": "model.blocks", "--tile": "preprocess.tile",
    }.items(),
)  # fmt: skip
def test_a_common_word_of_other_tools_leads_to_the_setting(option: str, meant: str | None) -> None:
    with pytest.raises(UserError) as error:
        parse([option, "20"], "run", "")
    assert f"unknown key {option.lstrip('-')}" in str(error.value)
    assert meant is None or meant in str(error.value)


def test_a_hint_names_a_setting_that_exists() -> None:
    from pipeline.settings.hints import SETTINGS_BY_WORD

    known = {*known_keys(), "--config"}
    assert {setting.split(",")[0] for setting in SETTINGS_BY_WORD.values()} <= known
    assert all(suggest(word) for word in SETTINGS_BY_WORD)


def test_the_words_of_a_file_get_the_same_hints() -> None:
    values: dict[str, Any] = {"train": {"epochs": 20}}
    with pytest.raises(ValidationError) as error:
        Config(**values)
    assert (
        explain(error.value) == 'unknown key train.epochs, did you mean train.length, such as train.length="20 epochs"?'
    )
