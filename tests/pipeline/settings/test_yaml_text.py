"""Configurations that are too large, too deep, or no YAML: refused at once, in a short sentence."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from pipeline.settings.yaml_text import parse_yaml

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Aliases of aliases that stand for 9^9 values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "has more than 5000 values, expected settings"),
        (f"tune: {{grid: {{train.seed: [{'1,' * 6000}]}}}}", "has more than 5000 values, expected settings"),
        ("train: " + "[" * 20_000, "has more than 30 lists or mappings in each other"),
        ("train: " + "{a: " * 20_000, "has more than 30 lists or mappings in each other"),
        ("- " * 20_000 + "a", "has more than 30 lists or mappings in each other"),
        ("name: &a {x: *a}", "has an alias of itself, *a"),
        (f"name: {'x' * 200_000}", "has more than 200000 bytes, expected a file of settings"),
        ("train: {lr: " + "9" * 5000 + "}", "is not valid YAML: Exceeds the limit"),
        ("train: {length: 2026-13-45}", "is not valid YAML: month must be in 1..12"),
        ("train: {length: !!python/object:os.system x}", "is not valid YAML: could not determine a constructor"),
        ("? [a]\n: 3", "is not valid YAML: "),
        ("a: 1\n---\nb: 2", "is not valid YAML: expected a single document"),
        ("\0", "is not valid YAML: "),
        ("just text", "holds str, expected a mapping of settings"),
    ],
    ids=lambda text: text[:12],
)
def test_it_is_refused_at_once_in_a_short_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        parse(["--config", str(file)], "run", "")
    assert time.monotonic() - began < 5
    assert str(error.value).startswith(f"{file} {message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 400


def test_ordinary_aliases_work(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("tune:\n  also:\n    a: &base {train.seed: 1, train.lr: 0.1}\n    b: {<<: *base, train.lr: 0.2}\n")
    also = parse(["--config", str(file)], "run", "").tune.also
    assert also == {"a": {"train.seed": 1, "train.lr": 0.1}, "b": {"train.seed": 1, "train.lr": 0.2}}


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(UserError, match="/dev/zero has more than 200000 bytes"):
        parse(["--config", "/dev/zero"], "run", "")


@given(st.text(st.sampled_from("ab12 :-[]{}&*!|>'\"\n,.?#%<~"), max_size=60))
def test_any_text_is_a_mapping_or_one_sentence(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, "a.yaml"), dict)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
