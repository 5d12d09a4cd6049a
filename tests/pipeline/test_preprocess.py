import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import preprocess, shards
from pipeline.config import Config, Preprocess, UserError, parse
from pipeline.patchset import PatchSet
from pipeline.scoring import channels_first
from sr_model.degrade import downscale

pytestmark = pytest.mark.usefixtures("ray_session")
Small = Callable[..., list[str]]


def prepare(argv: list[str]) -> tuple[PatchSet, bool]:
    return preprocess.prepare(read(argv))


def read(argv: list[str]) -> Config:
    return parse(argv, "preprocess", "")


def digests(patch_set: PatchSet) -> dict[str, str]:
    shards = (*patch_set.shards, *patch_set.holdout)
    return {s.file: hashlib.sha256(Path(patch_set.url, s.file).read_bytes()).hexdigest() for s in shards}


@given(side=st.integers(48, 600), tile=st.integers(12, 48), stride=st.integers(2, 60))
def test_tiles_cover_every_pixel_and_stay_inside(side: int, tile: int, stride: int) -> None:
    settings = Preprocess(tile=4 * (tile // 4) if tile >= 32 else 32, stride=max(stride // 4 * 4, 8))
    origins = shards.tile_origins(side, settings)
    assert origins == sorted(set(origins))
    assert origins[0] == 0
    assert origins[-1] + settings.tile == side
    if (settings.stride or 0) <= settings.tile:
        assert all(b - a <= settings.tile for a, b in pairwise(origins))


def test_tiles_are_cut_from_the_degraded_whole_picture(small: Small, photos: Path) -> None:
    """A patch has no border of its own: its LR is part of the picture's LR."""
    patch_set, _ = prepare(small())
    pictures = {p.name: np.asarray(Image.open(p)) for p in photos.glob("*.png")}
    seen = set()
    for shard in patch_set.shards:
        for row in pq.read_table(f"{patch_set.url}/{shard.file}").to_pylist():
            hr = pictures[row["image_id"]]
            lr = downscale(channels_first(hr), 4).permute(1, 2, 0).numpy()
            y, x = row["y"], row["x"]
            assert row["hr"] == hr[y : y + 48, x : x + 48].tobytes()
            assert row["lr"] == lr[y // 4 : y // 4 + 12, x // 4 : x // 4 + 12].tobytes()
            seen.add((row["image_id"], y, x))
    trained_on = {name for name in pictures if not name.startswith("coffee")}
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


def test_cut_short_and_run_again_it_is_as_run_once(small: Small) -> None:
    whole, _ = prepare(small("preprocess.shard_mb=0.05"))
    expected = digests(whole)
    shards = [Path(whole.url, file) for file in expected]
    # As a kill leaves it: no manifest, one shard missing, one half, one with rubbish, a leftover part.
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
    names = {prepare(small(*more))[0].name for more in ([], ["preprocess.degradation.bicubic=legacy"], ["preprocess.tile=64"])}
    assert len(names) == 3


def test_bad_pictures_are_left_out_by_name_and_reason(small: Small, photos: Path) -> None:
    good, _ = prepare(small())
    (photos / "broken.png").write_bytes(b"not a picture")
    (photos / "cut.png").write_bytes((photos / "chelsea0.png").read_bytes()[:9000])
    Image.new("RGB", (20, 300)).save(photos / "thin.png")
    (photos / "twin.png").write_bytes((photos / "chelsea0.png").read_bytes())
    patch_set, _ = prepare(small("preprocess.max_reject_share=0.5"))
    reasons = {record.name: record.rejected for record in patch_set.pictures if record.rejected}
    assert set(reasons) == {"broken.png", "cut.png", "thin.png", "twin.png"}
    assert "is no picture" in str(reasons["broken.png"])
    assert "truncated" in str(reasons["cut.png"])
    assert "20x300 is too small, expected at least 48 pixels a side" in str(reasons["thin.png"])
    assert "has the same content as chelsea0.png" in str(reasons["twin.png"])
    assert sum(patch_set.row_groups) == sum(good.row_groups)


def test_too_many_bad_pictures_fail(small: Small, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1 of 7 pictures were rejected, more than preprocess.max_reject_share 0.05"):
        prepare(small())


def test_held_out_pictures_and_their_copies_are_never_trained_on(small: Small, photos: Path) -> None:
    (photos / "a_copy.png").write_bytes((photos / "coffee0.png").read_bytes())
    patch_set, _ = prepare(small())
    trained = {record.name for shard in patch_set.shards for record in shard.pictures}
    assert "a_copy.png" not in trained
    assert "coffee0.png" not in trained


def test_a_holdout_pattern_that_matches_nothing_is_refused(small: Small) -> None:
    with pytest.raises(UserError, match=r"preprocess.holdout has 'monalisa', expected a pattern that matches"):
        prepare(small("preprocess.holdout=monalisa"))


def test_large_pictures_are_reduced_first(small: Small, photos: Path) -> None:
    patch_set, _ = prepare(small("preprocess.max_side=100"))
    assert {patch_set.read_holdout(i).hr.shape for i in range(2)} == {(100, 100, 3)}
