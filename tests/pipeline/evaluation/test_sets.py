"""Sets of images that a person names."""

from pathlib import Path

import pytest

from pipeline.evaluation.sets import find_sets
from pipeline.settings import UserError

KNOWN = {"Set5": "/known/Set5"}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name in ("Set14", "B100", ".hidden"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    (tmp_path / "sets" / "Manga109.zip").touch()
    (tmp_path / "sets" / "README.md").touch()
    return str(tmp_path / "sets")


def test_a_name_is_looked_up_in_the_settings_and_in_the_folder(folder: str) -> None:
    found, skipped = find_sets(["set5", "Set14", "BSD100", "manga109", "Urban100"], KNOWN, folder)
    assert found == {
        "Set5": "/known/Set5",
        "Set14": f"{folder}/Set14",
        "B100": f"{folder}/B100",
        "Manga109": f"{folder}/Manga109.zip",
    }
    assert len(skipped) == 1
    assert skipped[0].startswith("the published set Urban100 is skipped, because it is not at hand in ")


def test_a_place_needs_no_name(folder: str) -> None:
    found, _ = find_sets([f"{folder}/Set14", f"mine={folder}/B100", "s3://bucket/Urban100", "builtin"], {}, None)
    assert found == {
        "Set14": f"{folder}/Set14",
        "mine": f"{folder}/B100",
        "Urban100": "s3://bucket/Urban100",
        "builtin": "builtin",
    }


def test_without_names_all_sets_are_meant(folder: str) -> None:
    assert find_sets([], KNOWN, None) == (KNOWN, [])
    assert set(find_sets([], KNOWN, folder)[0]) == {"Set5", "Set14", "B100", "Manga109"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no set of images to score: expected --sets NAME=FOLDER"),
        (["photos"], "--sets names photos, which is neither a configured set nor a published one nor a folder"),
        (["Set5="], "--sets Set5= has no place, expected NAME=PLACE"),
        (["a=/x", "a=/y"], "two sets have the name a: expected NAME=PLACE"),
    ],
)
def test_what_is_no_set_is_one_sentence(texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        find_sets(texts, {}, None)
    assert message in str(error.value)


def test_a_folder_of_sets_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder of sets .*nowhere is empty or does not exist"):
        find_sets(["Set5"], {}, f"{tmp_path}/nowhere")
