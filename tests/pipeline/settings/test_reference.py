"""The generated reference of the settings."""

import pytest

from pipeline.settings import reference
from pipeline.settings.mistakes import known_keys
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reference" / "settings.md"


def test_the_reference_has_a_row_for_every_setting() -> None:
    text = reference.as_markdown()
    for key in known_keys():
        assert f"| `{key}` |" in text
    assert "| `train.lr` | number (> 0) | `0.0004` |" in text
    assert "| `scale` | one of `2`, `3`, `4`, `8` | `4` |" in text
    assert "| `train.micro_batch` | integer (≥ 1) or `auto` | `" in text
    assert "| `preprocess.max_side` | integer (≥ 64) or null | `null` |" in text
    assert "## `preprocess.degradation`" in text


def test_rows_have_four_cells() -> None:
    rows = [line for line in reference.as_markdown().splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {5}


def test_the_page_is_up_to_date() -> None:
    if not PAGE.exists():
        pytest.skip(f"there is no {PAGE.relative_to(ROOT)}")
    expected = reference.as_markdown()
    assert PAGE.read_text() == expected, (
        "write the page anew: python -m pipeline.settings.reference > docs/reference/settings.md"
    )
