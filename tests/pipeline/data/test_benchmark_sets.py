from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import benchmark_sets
from pipeline.data.benchmark_sets import BenchmarkImage, BenchmarkSet
from pipeline.data.locations import FileLocation, Location
from pipeline.evaluation.scoring import load_pair
from pipeline.settings import UserError
from tests.archives import png, write_archive
from tests.conftest import random_image


def save(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png())


def list_set(folder: Path | str, scale: int = 4) -> BenchmarkSet:
    return benchmark_sets.list_set("Set5", str(folder), scale, cache="/none")


def path(location: Location | None, folder: Path) -> str | None:
    """Return the path of a file below a folder."""
    if location is None:
        return None
    assert isinstance(location, FileLocation)
    return str(Path(location.url).relative_to(folder))


def pairs(folder: Path, scale: int = 4) -> dict[str, tuple[str | None, str | None]]:
    """Return the paths of the HR and the LR file of each image of a set."""
    return {image.name: (path(image.hr, folder), path(image.lr, folder)) for image in list_set(folder, scale).images}


LAYOUTS = [
    ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
    ("HR/baby.png", "LRbicx4/baby.png"),
    ("GTmod12/baby.png", "LRbicx4/baby.png"),
    ("image_SRF_4/baby_SRF_4_HR.png", "image_SRF_4/baby_SRF_4_LR.png"),
    ("baby_SRF_4_HR.png", "baby_SRF_4_LR.png"),
    ("baby_HR.png", "baby_LR.png"),
    ("hr/baby.png", "lr/baby.png"),
    ("HR/baby.png", "LR/baby.png"),
    ("Hr/baby.png", "Lr/X4/baby.png"),
    ("HR/x4/baby.png", "LR_bicubic/x4/baby.png"),
    ("HR/X4/baby.png", "LR/X4/babyx4.png"),
    ("HR/baby.png", "X4/babyx4.png"),
    ("x4/HR/baby.png", "x4/LR/baby.png"),
    ("baby.png", "LRbicx4/babyx4.png"),
    ("original/baby.png", "original/x4/baby.png"),
    ("GT/baby.png", "LR_x4/baby.png"),
    ("DIV2K_valid_HR/baby.png", "DIV2K_valid_LR_bicubic/X4/babyx4.png"),
    ("Set5/HR/baby.png", "Set5/LR_bicubic/X4/babyx4.png"),
    ("HR/sub/baby.png", "LR_bicubic/X4/sub/babyX4.png"),
]


@pytest.mark.parametrize(("hr", "lr"), LAYOUTS)
def test_the_layouts_of_published_sets(tmp_path: Path, hr: str, lr: str) -> None:
    save(tmp_path, hr, lr)
    assert pairs(tmp_path) == {"baby": (hr, lr)}
    if "SRF" in hr:
        others = ["image_SRF_2/baby_SRF_2_HR.png", "image_SRF_4/baby_SRF_4_bicubic.png"]
    else:
        others = [lr.replace("x4", "x2").replace("X4", "X2")] if "4" in lr else []
    save(tmp_path, *others)
    assert pairs(tmp_path) == {"baby": (hr, lr)}
    (tmp_path / lr).unlink()
    assert pairs(tmp_path) == {"baby": (hr, None)}


@pytest.mark.parametrize(("hr", "lr"), LAYOUTS)
def test_lr_images_are_never_scored_as_ground_truth(tmp_path: Path, hr: str, lr: str) -> None:
    save(tmp_path, lr)
    with pytest.raises(UserError, match=r"Set5: .* LR images"):
        list_set(tmp_path)


@pytest.mark.parametrize("folder", ["lr", "LRbicx4", "LR_bicubic/X4"])
def test_a_folder_of_lr_images_is_refused(tmp_path: Path, folder: str) -> None:
    save(tmp_path, f"{folder}/baby.png")
    with pytest.raises(UserError, match="is a folder of LR images, expected HR images"):
        list_set(tmp_path / folder)


def test_the_set_of_another_scale_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, "image_SRF_2/baby_SRF_2_HR.png", "image_SRF_2/baby_SRF_2_LR.png")
    with pytest.raises(UserError, match="holds no HR image for a scale of 4"):
        list_set(tmp_path)
    assert len(list_set(tmp_path, 2).images) == 1


def test_hr_images_alone(tmp_path: Path) -> None:
    save(tmp_path, "baby.png", "bird.jpg")
    assert pairs(tmp_path) == {"baby": ("baby.png", None), "bird": ("bird.jpg", None)}
    with pytest.raises(UserError, match="holds no image"):
        list_set(write_archive(tmp_path / "empty.zip", {}))


def test_a_missing_lr_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "HR/baby.png", "HR/bird.png", "LRbicx4/baby.png")
    with pytest.raises(UserError, match="has no LR file for bird"):
        list_set(tmp_path)


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        (["linux4"], ["linux4"]),
        (["linux4"], ["linux4x4"]),
        (["a", "ax4"], ["a", "ax4"]),
        (["a", "ax4"], ["ax4", "ax4x4"]),
        (["a", "linux4"], ["ax4", "linux4"]),
    ],
)
def test_the_scale_in_a_name_is_dropped_only_where_it_has_to_be(tmp_path: Path, hr: list[str], lr: list[str]) -> None:
    save(tmp_path, *(f"HR/{name}.png" for name in hr), *(f"LRbicx4/{name}.png" for name in lr))
    expected = {a: (f"HR/{a}.png", f"LRbicx4/{b}.png") for a, b in zip(hr, lr, strict=True)}
    assert pairs(tmp_path) == expected


def test_images_of_the_same_name_in_several_folders_are_all_there(tmp_path: Path) -> None:
    save(tmp_path, "calendar/1.png", "city/1.png", "city/2.png")
    assert list(pairs(tmp_path)) == ["calendar/1", "city/1", "city/2"]
    save(tmp_path, "city/1.jpg")
    assert list(pairs(tmp_path)) == ["calendar/1.png", "city/1.jpg", "city/1.png", "city/2.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["Set5/baby.png", "Set14/bridge.png"], r"holds several sets \(Set14, Set5\), expected one of them"),
        (["x/Set5/baby.png", "x/Set14/bridge.png"], r"holds several sets \(Set14, Set5\)"),
        (["Set5/baby.png", "photo.png"], r"holds several sets \(the folder itself, Set5\)"),
        (["a/HR/baby.png", "b/HR/bridge.png"], r"holds several sets \(a, b\)"),
        (["Set5/image_SRF_4/a_SRF_4_HR.png", "Set14/image_SRF_4/b_SRF_4_HR.png"], r"several sets \(Set14, Set5\)"),
        (["HR/a.png", "GTmod12/a.png", "LRbicx4/a.png"], r"holds GTmod12/a.png and HR/a.png, expected one HR image"),
        (["HR/a.png", "LRbicx4/a.png", "LR_bicubic/X4/a.png"], r"for one HR image, expected one LR file"),
    ],
)
def test_several_sets_or_choices_in_one_folder_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    save(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        list_set(tmp_path)


def test_bicubic_lr_images_are_preferred(tmp_path: Path) -> None:
    save(tmp_path, "HR/a.png", "LR_bicubic/X4/ax4.png", "LR_unknown/X4/ax4.png")
    assert pairs(tmp_path) == {"a": ("HR/a.png", "LR_bicubic/X4/ax4.png")}


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    save(tmp_path, "HR/a.png", "LR_bicubic/X4/ax4.png", "LR_bicubic/X2/ax2.png", "LR_bicubic/X4/zx4.png", "cover.png")
    (tmp_path / "readme.txt").touch()
    assert list_set(tmp_path).summary() == (
        "benchmark Set5: 1 image, LR files of the set; left out: 1 image of scale 2, 1 LR image, 1 other image, "
        "1 file of another type (.txt 1)"
    )


def test_folders_and_files_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "Set5 [x4] #1?%20::y"
    names = ["a::b.png", "c [1].png", "d%20e?.png", "f\ng.png"]
    save(folder, *(f"HR/{name}" for name in names), *(f"LR/{name}" for name in names))
    assert {hr for hr, _ in pairs(folder).values()} == {f"HR/{name}" for name in names}


def test_a_pair_in_lower_case_folders_is_scored_as_the_same_pair(tmp_path: Path) -> None:
    hr = random_image(64, 64)
    for folder, pixels in (("hr", hr), ("lr", hr[::4, ::4])):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "im.png")
    (image,) = list_set(tmp_path).images
    assert isinstance(image, BenchmarkImage)
    loaded_hr, loaded_lr, origin = load_pair(image.hr, image.lr, 4, 10**6)
    assert np.array_equal(loaded_hr, hr)
    assert np.array_equal(loaded_lr, hr[::4, ::4])
    assert origin == "files of the set"
