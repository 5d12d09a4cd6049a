"""Listings of object stores in parallel, with a store in this process, and the table that keeps them."""

import pickle
from pathlib import Path

import fsspec
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulated import Objects, photo_keys, serve
from pipeline.data import sources, walks
from pipeline.data.listing import Listing
from pipeline.data.locations import BuiltinLocation, FileLocation, TarLocation, ZipLocation
from pipeline.data.source_images import SourceImage, SourceImages
from pipeline.settings import UserError
from tests.archives import png, write_archive


def list_source(source: str) -> Listing:
    return sources.list_source(source, cache="/none")


def urls(listing: Listing) -> list[str]:
    return [image.location.url for image in listing.images if isinstance(image.location, FileLocation)]


@pytest.mark.parametrize("folders", [[1], [3], [7, 40], [600], [2, 3, 4, 5]], ids=str)
def test_a_parallel_listing_finds_what_a_serial_one_finds(store: Objects, folders: list[int]) -> None:
    store.keys = photo_keys(3000, folders)
    listed = list_source("simulated://photos")
    found = fsspec.filesystem("simulated").find("photos")
    assert urls(listed) == sorted(f"simulated://{name}" for name in found)
    assert [image.name for image in listed.images] == sorted(key.removeprefix("photos/") for key in store.keys)
    assert list_source("simulated://photos") == listed


@given(
    keys=st.lists(
        st.lists(st.sampled_from(["a", "b", "ab", "", ".c", "@eaDir", "a.png"]), min_size=1, max_size=4).map(
            lambda parts: "/".join(["top", *parts, "x.png"])
        ),
        min_size=1,
        unique=True,
    )
)
def test_any_keys_are_listed_or_left_out_by_name(keys: list[str]) -> None:
    """Keys of an object store need not be paths: folders without a name, and files that are folders."""
    serve(Objects(keys=sorted([*keys, "top/"])))
    listed = list_source("simulated://top")
    hidden = {key for key in keys if any(part in (".c", "@eaDir") for part in key.split("/"))}
    assert urls(listed) == sorted(f"simulated://{key}" for key in set(keys) - hidden)
    assert all(any(key.startswith(f"top/{entry.name}/") for entry in listed.left_out) for key in hidden)


def test_a_pattern_lists_no_deeper_than_it_reaches(store: Objects) -> None:
    for key in ("top/a/1.png", "top/b/2.png", "top/b/deep/3.png", "top/4.png"):
        store.put(key, png())
    assert urls(list_source("simulated://top/*/*.png")) == ["simulated://top/a/1.png", "simulated://top/b/2.png"]
    assert len(urls(list_source("simulated://top/**/*.png"))) == 4
    with pytest.raises(UserError, match="does not exist"):
        list_source("simulated://none")


def test_folders_are_listed_at_the_same_time_within_a_limit(store: Objects) -> None:
    store.keys, store.latency = photo_keys(4000, [100]), 0.01
    list_source("simulated://photos")
    assert walks.THREADS / 2 < store.most_busy <= walks.THREADS


def test_a_folder_that_holds_most_of_the_files_is_divided(store: Objects) -> None:
    """The first of 200 folders holds 100 folders with nearly all files."""
    few = [f"photos/z{number:03}/1.png" for number in range(200)]
    many = [f"photos/a/{number:02}/{file:03}.png" for number in range(100) for file in range(150)]
    store.keys, store.latency = sorted(few + many), 0.005
    assert len(list_source("simulated://photos").images) == 15_200
    assert len(store.requests) > 100, "the large folder was listed by one request after another"


@pytest.mark.parametrize("name", ["{:05}", "{}", "{:x}", "z{:04}"])
def test_folders_with_few_files_take_few_requests(store: Objects, name: str) -> None:
    folders = [name.format(number) for number in range(3000)]
    store.keys = sorted(f"photos/{folder}/{file}.png" for folder in folders for file in range(4))
    assert urls(list_source("simulated://photos")) == [f"simulated://{key}" for key in store.keys]
    assert len(store.requests) < 300


def test_a_store_that_asks_to_slow_down_is_listed_whole(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda **_: tenacity.wait_none())
    store.keys, store.fail_every = photo_keys(2000, [40]), 5
    assert len(list_source("simulated://photos").images) == 2000


def test_several_sources_are_listed_in_their_order(store: Objects, tmp_path: Path) -> None:
    """The first source takes longest."""
    store.keys, store.latency = photo_keys(300, [30]), 0.005
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000").mkdir()
        (tmp_path / name / "000" / "00000000.png").write_bytes(png())
    wanted = ["simulated://photos", str(tmp_path / "two"), str(tmp_path / "one"), "builtin"]
    listings = sources.list_sources(wanted, "/none")
    assert listings == [list_source(source) for source in wanted]
    names = {image.name: image.location for image in sources.merge(listings)}
    assert list(names) == sorted(names)
    assert len(names) == 311
    assert str(names["000/00000000.png"]).startswith("simulated:")
    assert str(names["1/000/00000000.png"]).endswith("two/000/00000000.png")
    assert str(names["2/000/00000000.png"]).endswith("one/000/00000000.png")
    with pytest.raises(UserError, match=f"source {tmp_path}/none does not exist"):
        sources.list_sources(["simulated://photos", f"{tmp_path}/none", f"{tmp_path}/never"], "/none")


def test_texts_beside_images_are_counted_and_not_kept(store: Objects) -> None:
    store.keys = sorted(f"photos/{number}.{ending}" for number in range(500) for ending in ("png", "json"))
    listed = list_source("simulated://photos")
    assert listed.summary() == "source simulated://photos: 500 images; left out: 500 files of other types (.json 500)"
    assert len(listed.left_out) == 1


ENDINGS = ["zip", "tar", "tar.gz"]


@pytest.mark.parametrize("source", ["archives", "archives/*.t*", "archives/*"])
def test_a_folder_or_pattern_of_archives_stands_for_their_members(store: Objects, tmp_path: Path, source: str) -> None:
    expected: dict[str, bytes] = {}
    for number, ending in enumerate(ENDINGS):
        name = f"{number}.{ending}"
        content = {"a.png": png(number), "set/b.png": png(number + 10), "notes.txt": b""}
        store.put(f"archives/{name}", Path(write_archive(tmp_path / name, content)).read_bytes())
        if not source.endswith("t*") or ending != "zip":
            expected |= {f"{name}/{member}": content[member] for member in ("a.png", "set/b.png")}
    listed = list_source(f"simulated://{source}")
    assert {image.name: sources.read_bytes(image.location) for image in listed.images} == expected
    assert [image.name for image in listed.images] == sorted(expected)
    assert "of other types (.txt " in listed.summary()


def test_a_pattern_of_archives_of_one_kind(store: Objects, tmp_path: Path) -> None:
    for number in range(40):
        name = f"{number:02}.tar"
        store.put(f"archives/{name}", Path(write_archive(tmp_path / name, {"a.png": png(number)})).read_bytes())
    listed = list_source("simulated://archives/[01]*.tar")
    assert [image.name for image in listed.images] == [f"{number:02}.tar/a.png" for number in range(20)]
    store.put("archives/17.tar", b"no archive" * 100)
    with pytest.raises(UserError, match=r"source simulated://archives/17.tar cannot be read: .*a whole tar archive"):
        list_source("simulated://archives/*.tar")


def test_archives_beside_images_are_left_out_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    write_archive(tmp_path / "b.zip", {"b.png": png()})
    assert list_source(str(tmp_path)).summary().endswith("1 image; left out: 1 file of another type (.zip 1)")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_member_takes_one_request(store: Objects, tmp_path: Path, ending: str) -> None:
    members = {f"{number}.png": png(number) for number in range(5)}
    store.put(f"a.{ending}", Path(write_archive(tmp_path / f"a.{ending}", members)).read_bytes())
    images = pickle.loads(pickle.dumps(list_source(f"simulated://a.{ending}").images))
    store.requests.clear()
    assert {image.name: sources.read_bytes(image.location) for image in images} == members
    assert store.requests == ["get"] * 5


_text = st.text(min_size=1, max_size=8)
_count = st.integers(0, 2**40)
_location = st.one_of(
    st.builds(FileLocation, _text),
    st.builds(BuiltinLocation, _text),
    st.builds(ZipLocation, _text, _text, _count, _count, _count, st.integers(0, 2**32 - 1), st.integers(0, 99)),
    st.builds(TarLocation, _text, _text, _count, _count, st.booleans()),
)
_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_image = st.builds(SourceImage, _names, _location, _names, _count)


@given(images=st.lists(_image | _names.map(lambda name: SourceImage(name, FileLocation(f"/a/{name}"), "", 1))))
def test_a_table_of_images_gives_back_what_it_was_made_of(images: list[SourceImage]) -> None:
    table = SourceImages.of(images)
    assert list(table) == images
    assert [table[number] for number in range(-len(images), len(images))] == images + images
    assert list(table[1:4]) == images[1:4]
    assert list(table[::-2]) == images[::-2]
    assert list(table.sorted()) == sorted(images, key=lambda image: image.name)
    assert list(pickle.loads(pickle.dumps(table.take([*range(len(images))][::2])))) == images[::2]
    assert table == images
    assert table == SourceImages.of(iter(images))


@given(names=st.lists(st.lists(st.sampled_from(["a", "b", "1/a", "0/1/a", "2/a"]), max_size=4), max_size=4))
def test_merged_names_are_unique_and_follow_the_numbers_of_the_sources(names: list[list[str]]) -> None:
    listings = [[SourceImage(name, FileLocation(f"/{name}"), "", 0) for name in listing] for listing in names]
    expected: dict[str, SourceImage] = {}  # as it was defined before there were tables
    for number, listing in enumerate(listings):
        for image in listing:
            name = image.name
            while name in expected:
                name = f"{number}/{name}"
            expected[name] = image
    merged = sources.merge([Listing("", listing, []) for listing in listings])
    assert [image.name for image in merged] == sorted(expected)
    assert [image.location for image in merged] == [expected[name].location for name in sorted(expected)]


def test_an_image_takes_little_memory(store: Objects) -> None:
    store.keys = photo_keys(20_000, [10])
    images = list_source("simulated://photos").images
    assert isinstance(images, SourceImages)
    text = sum(len(image.name) + len(image.version) for image in images)
    assert (images.table.nbytes - text) / len(images) < 45
