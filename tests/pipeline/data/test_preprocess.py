import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import cluster, preprocess, storage
from pipeline.data import patchset, preparation
from pipeline.data.inventory import take_inventory
from pipeline.data.locations import FileLocation
from pipeline.data.manifest import ManifestOfFormat3
from pipeline.data.patchset import PatchSet
from pipeline.data.rejection import RejectionKind
from pipeline.data.shard_plan import tile_origins
from pipeline.data.source_images import SourceImage
from pipeline.settings import Config, Preprocess, UserError
from pipeline.settings.command_line import parse
from sr_model.degrade import downscale
from sr_model.pixels import Pixels, to_pixels, to_tensor
from tests.conftest import ROOT, random_image

pytestmark = pytest.mark.usefixtures("ray_session")
Small = Callable[..., list[str]]
T = TypeVar("T")
R = TypeVar("R")


def prepare(argv: list[str]) -> tuple[PatchSet, bool]:
    return preparation.prepare(read(argv))


def read(argv: list[str]) -> Config:
    return parse(argv, "preprocess", "")


def digests(patch_set: PatchSet) -> dict[str, str]:
    shards = (*patch_set.shards, *patch_set.holdout)
    return {s.file: hashlib.sha256(Path(patch_set.url, s.file).read_bytes()).hexdigest() for s in shards}


def tiles(patch_set: PatchSet) -> list[bytes]:
    groups = (patch_set.read_group(number) for number in range(patch_set.row_groups.count))
    return sorted(hr.tobytes() + lr.tobytes() for pair in groups for hr, lr in zip(*pair, strict=True))


def test_an_empty_source_and_unreadable_images_are_one_sentence_and_exit_code_2(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(sys, "argv", ["preprocess", *small(f"--source={empty}")])
    with pytest.raises(SystemExit) as ended:
        preprocess.main()
    assert ended.value.code == 2
    assert "holds no image" in capsys.readouterr().err
    (empty / "bad.png").write_bytes(b"no")
    with pytest.raises(SystemExit) as ended:
        preprocess.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert "error: 1 of 7 images were rejected" in errors
    assert "bad.png is no image of a known format" in errors
    assert "Traceback" not in errors


@given(side=st.integers(48, 600), tile=st.integers(12, 48), stride=st.integers(2, 60))
def test_tiles_cover_every_pixel_and_stay_inside(side: int, tile: int, stride: int) -> None:
    settings = Preprocess(tile=4 * (tile // 4) if tile >= 32 else 32, stride=max(stride // 4 * 4, 8))
    origins = tile_origins(side, settings)
    assert origins == sorted(set(origins))
    assert origins[0] == 0
    assert origins[-1] + settings.tile == side
    if (settings.stride or 0) <= settings.tile:
        assert all(b - a <= settings.tile for a, b in pairwise(origins))


def test_tiles_are_cut_from_the_degraded_whole_image(small: Small, photos: Path) -> None:
    """A tile's LR pixels are part of the image's LR pixels, so a tile has no border effects."""
    patch_set, _ = prepare(small())
    images = {p.name: np.asarray(Image.open(p)) for p in photos.glob("*.png")}
    seen = set()
    for shard in patch_set.shards:
        for row in pq.read_table(f"{patch_set.url}/{shard.file}").to_pylist():
            hr = images[row["image_id"]]
            lr = to_pixels(downscale(to_tensor(hr), 4))
            y, x = row["y"], row["x"]
            assert row["hr"] == hr[y : y + 48, x : x + 48].tobytes()
            assert row["lr"] == lr[y // 4 : y // 4 + 12, x // 4 : x // 4 + 12].tobytes()
            seen.add((row["image_id"], y, x))
    trained_on = {name for name in images if not name.startswith("coffee")}
    assert seen == {(name, y, x) for name in trained_on for y in (0, 48, 96) for x in (0, 48, 96)}
    assert patch_set.holdout_names == ["coffee0.png", "coffee1.png"]


def test_the_same_inputs_are_never_preprocessed_twice(small: Small) -> None:
    first, found = prepare(small())
    assert not found
    times = {file: Path(first.url, file).stat().st_mtime_ns for file in digests(first)}
    again, found = prepare(small())
    assert found
    assert again == first
    assert times == {file: Path(first.url, file).stat().st_mtime_ns for file in digests(first)}


def test_a_finished_set_of_format_3_is_found(small: Small) -> None:
    made, _ = prepare(small())
    shards = list(made.read_shards())
    trained, held_out = shards[: len(made.shards)], shards[len(made.shards) :]
    old = ManifestOfFormat3(
        made.name, made.scale, made.tile, made.manifest.settings, trained, held_out, made.rejected()
    )
    shutil.rmtree(Path(made.url, "index"))
    shutil.rmtree(Path(made.url, "images"))
    storage.write_document(patchset.manifest_url(made.url), old)
    again, found = prepare(small())
    assert found
    assert again.manifest.totals == made.manifest.totals
    assert list(again.all_shards) == list(made.all_shards)


def test_shards_by_hash_hold_the_same_tiles_and_change_only_where_an_image_does(small: Small, photos: Path) -> None:
    options = ["preprocess.shard_mb=0.05"]
    by_name, _ = prepare(small(*options))
    options.append("preprocess.grouping=hash")
    by_hash, found = prepare(small(*options))
    assert not found
    assert len(by_hash.shards) > 2
    assert by_hash.manifest.totals.tiles == by_name.manifest.totals.tiles
    assert sorted(image.name for image in by_hash.images()) == sorted(image.name for image in by_name.images())
    assert tiles(by_hash) == tiles(by_name)
    assert prepare(small(*options)) == (by_hash, True)
    Image.fromarray(np.asarray(Image.open(photos / "chelsea1.png"))[::-1]).save(photos / "chelsea1.png")
    changed, _ = prepare(small(*options))
    assert len(digests(changed).items() - digests(by_hash).items()) <= 2


def test_an_interrupted_run_resumes_and_gives_the_same_patch_set(small: Small) -> None:
    whole, _ = prepare(small("preprocess.shard_mb=0.05"))
    expected = digests(whole)
    shards = [Path(whole.url, file) for file in expected]
    # A killed run leaves no manifest and may leave missing, truncated, damaged and partial shards.
    Path(whole.url, "manifest.json").unlink()
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    shards[2].write_bytes(b"rubbish")
    Path(whole.url, f"{shards[0].name}.part").write_bytes(b"PAR1")
    kept = shards[3].stat().st_mtime_ns
    again, found = prepare(small("preprocess.shard_mb=0.05"))
    assert not found
    assert again == whole
    assert digests(again) == expected
    assert shards[3].stat().st_mtime_ns == kept


def test_a_changed_source_gives_a_new_set_that_reuses_shards(small: Small, photos: Path) -> None:
    first, _ = prepare(small())
    Image.fromarray(np.asarray(Image.open(photos / "chelsea1.png"))[::-1]).save(photos / "chelsea1.png")
    second, found = prepare(small())
    assert not found
    assert second.url != first.url
    assert {s.file for s in first.shards} & {s.file for s in second.shards}
    assert digests(first).items() & digests(second).items()


def test_any_setting_that_shapes_the_rows_gives_another_set(small: Small) -> None:
    names = {
        prepare(small(*more))[0].name
        for more in ([], ["preprocess.degradation.bicubic=legacy"], ["preprocess.tile=64"])
    }
    assert len(names) == 3


def test_bad_images_are_rejected_with_name_and_reason(small: Small, photos: Path) -> None:
    good, _ = prepare(small())
    (photos / "broken.png").write_bytes(b"not an image")
    (photos / "cut.png").write_bytes((photos / "chelsea0.png").read_bytes()[:9000])
    Image.new("RGB", (20, 300)).save(photos / "thin.png")
    (photos / "twin.png").write_bytes((photos / "chelsea0.png").read_bytes())
    patch_set, _ = prepare(small("preprocess.max_reject_share=0.5"))
    reasons = {record.name: record.rejected for record in patch_set.rejected()}
    assert set(reasons) == {"broken.png", "cut.png", "thin.png", "twin.png"}
    kinds = {name: reason.kind for name, reason in reasons.items() if reason}
    assert kinds == {
        "broken.png": RejectionKind.NO_IMAGE,
        "cut.png": RejectionKind.DAMAGED,
        "thin.png": RejectionKind.TOO_SMALL,
        "twin.png": RejectionKind.DUPLICATE,
    }
    assert "is no image" in str(reasons["broken.png"])
    assert "truncated" in str(reasons["cut.png"])
    assert "20x300 is too small, expected at least 48 pixels a side" in str(reasons["thin.png"])
    assert "has the same content as chelsea0.png" in str(reasons["twin.png"])
    assert patch_set.tiles == good.tiles


def test_too_many_bad_images_fail(small: Small, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1 of 7 images were rejected, more than preprocess.max_reject_share 0.05"):
        prepare(small())


def test_held_out_images_and_their_copies_are_never_trained_on(small: Small, photos: Path) -> None:
    (photos / "a_copy.png").write_bytes((photos / "coffee0.png").read_bytes())
    patch_set, _ = prepare(small())
    trained = {record.name for record in patch_set.images() if record.tiles}
    assert "a_copy.png" not in trained
    assert "coffee0.png" not in trained


def test_a_holdout_pattern_that_matches_nothing_is_refused(small: Small) -> None:
    with pytest.raises(UserError, match=r"preprocess.holdout has 'monalisa', expected a pattern that matches"):
        prepare(small("preprocess.holdout=monalisa"))


def test_large_images_are_reduced_first(small: Small, photos: Path) -> None:
    patch_set, _ = prepare(small("preprocess.max_side=100"))
    assert {patch_set.read_holdout(i).hr.shape for i in range(2)} == {(100, 100, 3)}


def test_noise_and_jpeg_are_functions_of_seed_and_content(small: Small, photos: Path) -> None:
    def lr(*more: str) -> Pixels:
        return prepare(small(*(f"preprocess.degradation.{option}" for option in more)))[0].read_holdout(0).lr

    clean, noisy = lr(), lr("noise=10", "blur=1.2")
    assert np.array_equal(noisy, lr("noise=10", "blur=1.2", "seed=0"))
    assert not np.array_equal(noisy, lr("noise=10", "blur=1.2", "seed=1"))
    assert 6 < (lr("noise=10").astype(float) - clean).std() < 11
    assert 0 < np.abs(lr("jpeg=30").astype(int) - clean).mean() < 12
    (photos / "coffee0.png").rename(photos / "coffee9.png")
    renamed, _ = prepare(small("preprocess.degradation.noise=10", "preprocess.degradation.blur=1.2"))
    assert np.array_equal(noisy, renamed.read_holdout(1).lr)


def test_draws_for_a_tile_do_not_depend_on_other_images(small: Small, photos: Path) -> None:
    def tiles(name: str) -> dict[tuple[int, int], bytes]:
        patch_set, _ = prepare(small("preprocess.degradation.jpeg=20,95", "preprocess.degradation.clean=0.5"))
        rows = [row for s in patch_set.shards for row in pq.read_table(f"{patch_set.url}/{s.file}").to_pylist()]
        return {(row["y"], row["x"]): row["lr"] for row in rows if row["image_id"] == name}

    before = tiles("chelsea0.png")
    assert len(before) > 1
    Image.fromarray(random_image(144, 144)).save(photos / "another.png")
    assert tiles("chelsea0.png") == before
    (photos / "chelsea0.png").rename(photos / "z.png")
    assert tiles("z.png") == before


def test_flat_tiles_are_dropped_and_counted(small: Small, photos: Path) -> None:
    image = np.full((144, 144, 3), 90, np.uint8)
    image[:48] = random_image(48, 144)
    Image.fromarray(image).save(photos / "flat.png")
    patch_set, _ = prepare(small("preprocess.min_detail=2"))
    (record,) = [record for record in patch_set.images() if record.name == "flat.png"]
    assert (record.tiles, record.flat) == (3, 6)
    rows = [row for s in patch_set.shards for row in pq.read_table(f"{patch_set.url}/{s.file}").to_pylist()]
    assert {row["y"] for row in rows if row["image_id"] == "flat.png"} == {0}


def test_an_interrupted_inventory_resumes(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = cluster.map_tasks

    def broken(function: Callable[[T], R], tasks: Sequence[T], **_: Any) -> Iterator[R | cluster.TaskError[T]]:
        yield from list(original(function, tasks[:4]))
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "map_tasks", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare(small())
    asked: list[int] = []

    def counting(function: Callable[[T], R], tasks: Sequence[T], **_: Any) -> Iterator[R | cluster.TaskError[T]]:
        asked.append(len(tasks))
        return original(function, tasks)

    monkeypatch.setattr(cluster, "map_tasks", counting)
    prepare(small())
    assert asked[0] == 2


def test_a_file_that_could_not_be_read_is_read_again(small: Small, photos: Path) -> None:
    """A rejection is cached only if it follows from the content."""
    gone = photos / "gone.png"
    gone.symlink_to("elsewhere.png")
    (photos / "elsewhere.png").mkdir()
    (photos / "broken.png").write_bytes(b"not an image")
    images = [SourceImage(file.name, FileLocation(str(file)), "1", 100) for file in (gone, photos / "broken.png")]
    cache = photos.parent / "inventory"
    first = take_inventory(read(small("preprocess.max_reject_share=1")), images, str(cache))
    assert [image.rejected and image.rejected.kind for image in first] == [
        RejectionKind.UNREADABLE,
        RejectionKind.NO_IMAGE,
    ]
    (saved,) = cache.iterdir()
    assert pq.read_table(saved)["kind"].to_pylist() == [RejectionKind.NO_IMAGE]
    gone.unlink()
    gone.write_bytes((photos / "chelsea0.png").read_bytes())
    second = take_inventory(read(small("preprocess.max_reject_share=1")), images, str(cache))
    assert second[0].rejected is None
    assert second[1] == first[1]


def test_a_damaged_inventory_is_taken_again(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = prepare(small())
    (saved,) = (tmp_path / "home/patchsets/inventory").iterdir()
    saved.write_bytes(saved.read_bytes()[:-9])
    assert prepare(small()) == (first, True)
    assert f"{saved} is damaged" in capsys.readouterr().err
    assert not saved.exists()


def test_names_that_are_odd_or_no_utf_8_are_in_the_patch_set(small: Small, photos: Path) -> None:
    (photos / "chelsea0.png").rename(photos / "Screen::1 [x]?#%20.png")
    os.rename(photos / "chelsea1.png", os.fsencode(photos) + b"/caf\xe9.png")
    made, _ = prepare(small("preprocess.holdout=Screen::1 [x]?#%20"))
    assert made.holdout_names == ["Screen::1 [x]?#%20.png", "coffee0.png", "coffee1.png"]
    assert "caf\\xe9.png" in [record.name for record in made.images() if record.tiles]
    assert list(patchset.load(made.url).images()) == list(made.images())
    (cache,) = Path(made.url).parent.joinpath("inventory").iterdir()
    assert len(pq.read_table(cache)) == 6
    again, found = prepare(small("preprocess.holdout=Screen::1 [x]?#%20"))
    assert found
    assert again == made


def test_an_unexpected_exception_rejects_one_image_and_keeps_the_others(
    small: Small, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is one that no part of the pipeline expects."""

    def fail_once(function: Callable[[T], R], tasks: Sequence[T], **_: Any) -> Iterator[R | cluster.TaskError[T]]:
        yield cluster.TaskError(tasks[0], "KeyError: 'x' (images.py, line 1)")
        yield from map(function, tasks[1:])

    monkeypatch.setattr(cluster, "map_tasks", fail_once)
    images = [SourceImage(file.name, FileLocation(str(file)), "1", 100) for file in sorted(photos.iterdir())]
    config = read(small("preprocess.max_reject_share=0.2"))
    first, *others = take_inventory(config, images, str(photos.parent / "inventory"))
    assert first.rejected is not None
    assert str(first.rejected) == "cannot be inspected: KeyError: 'x' (images.py, line 1)"
    assert [image.rejected for image in others] == [None] * 5
    with pytest.raises(UserError, match=r"train-\w+.parquet could not be made \(KeyError.*rerun the same command"):
        prepare(small("preprocess.max_reject_share=0.9"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_is_bounded_for_large_and_for_many_images(tmp_path: Path) -> None:
    """No process takes 2 GB for an image of 100 megapixels and 5,000 small ones."""
    (tmp_path / "photos").mkdir()
    tile = random_image(250, 250)
    Image.fromarray(np.tile(tile, (40, 40, 1))).save(tmp_path / "photos/large.png", compress_level=1)
    for i in range(5000):
        tile[0, :2] = [[i % 256] * 3, [i // 256] * 3]
        Image.fromarray(tile[:64, :64]).save(tmp_path / f"photos/{i:04}.png")
    options = [f"--source={tmp_path / 'photos'}", f"--home={tmp_path / 'home'}", "preprocess.tile=64", "data.crop=32"]
    options += ["preprocess.holdout=0000", "preprocess.degradation.blur=1"]
    largest: dict[str, float] = {}
    with subprocess.Popen([sys.executable, "-m", "pipeline.preprocess", *options], cwd=ROOT) as driver:
        while driver.poll() is None:
            for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_full_info().uss / 1e9
                    largest[process.name()] = max(memory, largest.get(process.name(), 0))
            time.sleep(0.1)
    assert driver.returncode == 0
    (manifest,) = (tmp_path / "home/patchsets").glob("*/manifest.json")
    assert patchset.load(str(manifest.parent)).tiles == 4999 + 157**2
    assert max(largest.values()) < 2, largest
