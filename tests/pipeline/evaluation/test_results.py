"""Results of other tools: which file belongs to which image."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.listing import list_files
from pipeline.data.locations import FileLocation
from pipeline.evaluation.measuring import ScoredImage
from pipeline.evaluation.results import Matched, match_results
from pipeline.settings import UserError


def images(name: str, *stems: str) -> list[ScoredImage]:
    """Return the images of a set by their names."""
    place = FileLocation("/hr.png")
    return [
        ScoredImage(name, i, stem, "", BenchmarkImage(stem, place, None, ""), False) for i, stem in enumerate(stems)
    ]


def match(folder: Path, files: Sequence[str], scored: Sequence[ScoredImage]) -> tuple[Matched, dict[str, str]]:
    """Match empty files; return the outcome, and the name of each image's file."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    matched = match_results("tool", list_files(str(folder)), scored)
    found = {}
    for image in matched.images:
        for label, result in image.files.items():
            assert label == "tool"
            found[f"{image.set}/{image.name}"] = str(result.location).removeprefix(f"{folder}/")
    return matched, found


@pytest.mark.parametrize(
    "file",
    ["baby.png", "BABY.PNG", "baby_SR.png", "babyx4.png", "baby_x4.jpg", "baby_out.webp", "baby_x4_SwinIR.png",
     "baby_SRF_4_SRCNN.bmp", "deep/er/baby-out.tiff", "baby.x4.png"],
)  # fmt: skip
def test_a_result_may_have_what_tools_append_to_names(tmp_path: Path, file: str) -> None:
    matched, found = match(tmp_path, [file], images("Set5", "baby"))
    assert found == {"Set5/baby": file}
    assert (matched.problems, matched.unused) == ([], [])


def test_a_file_belongs_to_the_image_with_the_longest_name(tmp_path: Path) -> None:
    files = ["img_1_SR.png", "img_10_SR.png", "img_1_b_SR.png"]
    _, found = match(tmp_path, files, images("set", "img_1", "img_10", "img_1_b"))
    assert found == {f"set/{name.removesuffix('_SR.png')}": name for name in files}


def test_inputs_and_ground_truth_beside_results_are_no_results(tmp_path: Path) -> None:
    files = ["baby_x4_SR.png", "baby_x4_LR.png", "baby_x4_HR.png", "baby_bicubic.png"]
    matched, found = match(tmp_path, files, images("Set5", "baby"))
    assert found == {"Set5/baby": "baby_x4_SR.png"}
    assert (matched.problems, matched.unused) == ([], [])


def test_folders_say_which_set_results_belong_to(tmp_path: Path) -> None:
    scored = images("Set5", "baby", "bird") + images("BSD100", "bird")
    files = ["results-Set5/baby.png", "results-Set5/bird.png", "B100/x4/bird_SR.png"]
    _, found = match(tmp_path, files, scored)
    assert found == {"Set5/baby": files[0], "Set5/bird": files[1], "BSD100/bird": files[2]}


def test_a_degraded_set_has_the_folder_of_the_published_one(tmp_path: Path) -> None:
    files = ["Set5/baby.png", "results-Set14-jpeg60/baby.png"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    scored = images("Set5-jpeg60", "baby") + images("Set14-jpeg60", "baby")
    matched = match_results("tool", list_files(str(tmp_path)), scored, "-jpeg60")
    assert (len(matched.images), matched.problems) == (2, [])


def test_mismatches_are_listed(tmp_path: Path) -> None:
    files = ["baby_SR.png", "bird_a.png", "bird_b.png", "cat.png", "notes.txt"]
    matched, found = match(tmp_path, files, images("Set5", "baby", "bird", "head") + images("Set14", "lenna"))
    assert found == {"Set5/baby": "baby_SR.png"}
    assert matched.problems == [
        "tool: bird of Set5 has 2 files (bird_a.png, bird_b.png), expected one",
        "tool: no file belongs to head of Set5",
        "tool: no file belongs to an image of Set14",
    ]
    assert matched.unused == ["cat.png"]


def test_the_plainest_of_several_names_is_taken(tmp_path: Path) -> None:
    _, found = match(tmp_path, ["baby_SR.png", "baby_iter500.png"], images("Set5", "baby"))
    assert found == {"Set5/baby": "baby_SR.png"}
    _, found = match(tmp_path, ["baby.png"], images("Set5", "baby"))
    assert found == {"Set5/baby": "baby.png"}


def test_results_of_other_images_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image file of .* has the name of an image to score, such as baby\.png, "):
        match(tmp_path, ["cat.png"], images("Set5", "baby"))
