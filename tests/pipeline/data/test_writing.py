"""How a patch set is made, without Ray: what ends a run early, and what is copied from other patch sets."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from benchmarks.simulated import Objects
from pipeline import cluster, storage
from pipeline.data import patchset, preparation
from pipeline.data.failures import FailedShards
from pipeline.data.patchset import PatchSet
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from tests.conftest import SMALL, random_image

T = TypeVar("T")
R = TypeVar("R")
FINE = [option for option in SMALL if "holdout" not in option and "shard_mb" not in option]
FINE += ["preprocess.shard_mb=0.02", "preprocess.holdout=00"]
"""Nearly every image gets a shard of its own."""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda _: None)
    monkeypatch.setattr(cluster, "map_tasks", lambda function, tasks, **_: map(function, tasks))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.fromarray(random_image(100, 100, number)).save(folder / f"{number:02}.png")
    return folder


def prepare(source: Path | str, home: Path | str, *more: str) -> PatchSet:
    options = [f"--source={source}", f"--home={home}", *FINE, *more]
    return preparation.prepare(parse(options, "preprocess", ""))[0]


def cut(file: Path) -> None:
    """Damage an image so that its header can still be read."""
    file.write_bytes(file.read_bytes()[:-3000])


def made(home: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in home.glob("patchsets/x4-*/*.parquet")}


def test_too_many_rejected_images_end_the_run_as_soon_as_that_is_certain(photos: Path, tmp_path: Path) -> None:
    for number in range(3, 9):
        cut(photos / f"{number:02}.png")
    message = r"3 of 10 images were rejected, more than preprocess.max_reject_share 0.2: 03.png cannot be decoded: .*"
    with pytest.raises(UserError, match=message):
        prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.2")
    assert 3 <= len(made(tmp_path / "home")) < 8
    kept = made(tmp_path / "home")
    whole = prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.9")
    assert whole.manifest.totals.rejected == 6
    assert kept.items() <= made(tmp_path / "home").items()


def test_too_many_rejected_images_end_the_inventory_as_soon_as_that_is_certain(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3, 9):
        (photos / f"{number:02}.png").write_bytes(f"no image {number}".encode())
    inspected: list[str] = []

    def watch(function: Callable[[T], R], tasks: Sequence[T], **given: Any) -> Iterator[R]:
        assert len(given["pauses"]) == 2
        for task in tasks:
            if image := getattr(task, "image", None):
                inspected.append(image.name)
            yield function(task)

    monkeypatch.setattr(cluster, "map_tasks", watch)
    message = (
        "3 of 10 images were rejected, more than preprocess.max_reject_share 0.2: "
        "03.png is no image of a known format (PNG, JPEG, WebP, TIFF, BMP); "
        "04.png is no image of a known format (PNG, JPEG, WebP, TIFF, BMP); "
        "05.png is no image of a known format (PNG, JPEG, WebP, TIFF, BMP)"
    )
    with pytest.raises(UserError) as ended:
        prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.2")
    assert str(ended.value) == message
    assert inspected == [f"{number:02}.png" for number in range(6)]
    inspected.clear()
    with pytest.raises(UserError) as ended:  # what is known suffices
        prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.2")
    assert str(ended.value) == message
    assert not inspected
    whole = prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.6")
    assert inspected == [f"{number:02}.png" for number in range(6, 10)]
    assert whole.manifest.totals.rejected == 6


def test_a_store_that_refuses_is_not_asked_for_all_its_images(
    photos: Path, tmp_path: Path, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with wrong credentials. The next run tries again."""
    for file in sorted(photos.iterdir()):
        store.put(f"photos/{file.name}", file.read_bytes())
    asked: list[str] = []
    get = store.get

    def refuse(key: str) -> bytes:
        asked.append(key)
        raise PermissionError(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "get", refuse)
        patch.setattr(store, "describe", lambda key: {"name": key, "size": len(get(key)), "type": "file"})
        with pytest.raises(UserError, match=r"^3 of 10 images were rejected, .*: 00.png cannot be read: "):
            prepare("simulated://photos", tmp_path / "home", "preprocess.max_reject_share=0.2")
    assert len(asked) == 3
    assert prepare("simulated://photos", tmp_path / "home").manifest.totals.rejected == 0


def test_as_many_rejected_images_as_allowed_end_no_run(photos: Path, tmp_path: Path) -> None:
    for number in range(3, 5):
        cut(photos / f"{number:02}.png")
    assert prepare(photos, tmp_path / "home", "preprocess.max_reject_share=0.2").manifest.totals.rejected == 2


def test_a_run_ends_with_the_names_of_all_shards_that_failed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing: list[str] = []

    def fail_twice(function: Callable[[T], R], tasks: Sequence[T], **given: Any) -> Iterator[R | cluster.TaskError[T]]:
        for number, task in enumerate(tasks):
            spec = getattr(task, "spec", None)
            if spec and number in (1, 4):
                assert len(given["pauses"]) == 2
                failing.append(spec.file)
                yield cluster.TaskError(task, "the store is down", temporary=True)
            else:
                yield function(task)

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "map_tasks", fail_twice)
        with pytest.raises(UserError, match=r"is unfinished: .*; rerun the same command to resume") as ended:
            prepare(photos, tmp_path / "home")
    assert len(failing) == 2
    assert all(f"{file} could not be made (the store is down)" in str(ended.value) for file in failing)
    kept = made(tmp_path / "home")
    whole = prepare(photos, tmp_path / "home")
    assert {shard.file for shard in whole.all_shards} == {*kept, *failing}
    assert kept.items() <= made(tmp_path / "home").items()


def test_the_other_shards_are_made_before_a_run_ends_because_of_a_failed_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of later rounds, too."""

    def fail(function: Callable[[T], R], tasks: Sequence[T], **_: Any) -> Iterator[R | cluster.TaskError[T]]:
        for number, task in enumerate(tasks):
            failed = hasattr(task, "spec") and number == 1
            yield cluster.TaskError(task, "it is full") if failed else function(task)

    monkeypatch.setattr(preparation, "_ROUND", 4)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "map_tasks", fail)
        with pytest.raises(
            UserError, match=r"is unfinished: train-\w+.parquet could not be made \(it is full\); train-"
        ):
            prepare(photos, tmp_path / "home")
    kept = made(tmp_path / "home")
    whole = prepare(photos, tmp_path / "home")
    assert len(kept) == whole.manifest.totals.shards - len(range(1, whole.manifest.totals.shards, 4))
    assert kept.items() <= made(tmp_path / "home").items()


@pytest.mark.parametrize(("shards", "most"), [(20, 16), (1600, 16), (5000, 50)])
def test_a_run_ends_early_when_more_than_a_share_of_all_shards_failed(shards: int, most: int) -> None:
    failed = FailedShards("set", shards)
    failed.check()
    for number in range(most):
        failed.add(f"{number}.parquet", "the disk is full")
    message = (
        "set is unfinished: 0.parquet could not be made (the disk is full); 1.parquet could not be made (the disk is "
        f"full); 2.parquet could not be made (the disk is full) and {most - 2} more; rerun the same command to resume"
    )
    with pytest.raises(UserError) as ended:
        failed.add("last.parquet", "the disk is full")
    assert str(ended.value) == message
    with pytest.raises(UserError, match="and"):
        failed.check()


def shards(patch_set: PatchSet) -> set[str]:
    return {f"patchsets/{patch_set.name}/{shard.file}" for shard in patch_set.all_shards}


def test_the_shards_of_another_set_are_copied_within_the_store(photos: Path, tmp_path: Path, store: Objects) -> None:
    home = "simulated://home"
    first = prepare(photos, home)
    sizes = {key: len(store.get(f"home/{key}")) for key in shards(first)}
    cut(photos / "07.png")
    store.requests.clear()
    second = prepare(photos, home, "preprocess.max_reject_share=0.2")
    local = prepare(photos, tmp_path / "local", "preprocess.max_reject_share=0.2")
    assert second.name == local.name != first.name
    common = {shard.file for shard in first.all_shards} & {shard.file for shard in second.all_shards}
    assert store.requests.count("copy") == len(common) > 5
    assert list(second.read_shards()) == list(local.read_shards())
    for shard in local.all_shards:
        assert store.get(f"home/patchsets/{second.name}/{shard.file}") == Path(local.url, shard.file).read_bytes()
    assert patchset.load(second.url).name == second.name
    assert sizes == {key: len(store.get(f"home/{key}")) for key in shards(first)}


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no record"])
def test_a_shard_that_is_not_as_recorded_is_read_or_made_again(
    photos: Path, tmp_path: Path, store: Objects, damage: str
) -> None:
    home = "simulated://home"
    first = prepare(photos, home)
    folder = f"home/patchsets/{first.name}"
    victim = next(iter(first.shards)).file
    content = store.get(f"{folder}/{victim}")
    if damage == "changed":
        place = len(content) // 3
        store.put(f"{folder}/{victim}", content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "cut":
        store.put(f"{folder}/{victim}", content[:-10])
    elif damage == "gone":
        storage.remove(f"simulated://{folder}/{victim}")
    else:
        store.put(f"{folder}/index/etags.parquet", b"PAR1 rubbish")
    cut(photos / "09.png")
    store.requests.clear()
    second = prepare(photos, home, "preprocess.max_reject_share=0.2")
    assert victim in {shard.file for shard in second.all_shards}
    assert store.get(f"home/patchsets/{second.name}/{victim}") == content
    common = {shard.file for shard in first.all_shards} & {shard.file for shard in second.all_shards}
    assert store.requests.count("copy") == len(common) - (damage != "no record")


def test_the_shards_of_an_interrupted_set_are_found(photos: Path, store: Objects) -> None:
    first = prepare(photos, "simulated://home")
    for key in [key for key in store.keys if not key.endswith(".parquet") or "/index/" in key]:
        storage.remove(f"simulated://{key}")
    cut(photos / "07.png")
    store.requests.clear()
    second = prepare(photos, "simulated://home", "preprocess.max_reject_share=0.2")
    common = {shard.file for shard in first.all_shards} & {shard.file for shard in second.all_shards}
    assert store.requests.count("copy") == len(common) > 5


def test_the_index_of_another_set_is_read_once(photos: Path, store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(photos, "simulated://home")
    cut(photos / "07.png")
    read: list[str] = []
    get = store.get

    def note(key: str) -> bytes:
        read.append(key)
        return get(key)

    monkeypatch.setattr(store, "get", note)
    prepare(photos, "simulated://home", "preprocess.max_reject_share=0.2")
    index = [key for key in read if f"{first.name}/index/train-" in key]
    assert len(index) == 1


def test_sets_that_cannot_share_a_shard_are_not_searched(photos: Path, store: Objects) -> None:
    prepare(photos, "simulated://home")
    store.requests.clear()
    second = prepare(photos, "simulated://home", "preprocess.degradation.blur=1")
    assert store.requests.count("copy") == 0
    assert second.manifest.totals.rejected == 0
