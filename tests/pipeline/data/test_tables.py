"""Tables of URLs as sources: Parquet, CSV and S3 Inventories."""

import functools
import gzip
import http.server
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.simulated import Objects
from pipeline.data import sources
from pipeline.data.listing import Listing
from pipeline.data.locations import FileLocation, identity
from pipeline.data.source_images import SourceImage
from pipeline.settings import UserError
from tests.archives import png

ETAG = "0123456789abcdef0123456789abcdef"


def list_source(source: str | Path) -> Listing:
    return sources.list_source(str(source), cache="/none")


def summary(source: str | Path) -> list[tuple[str, str, str, int]]:
    return [(image.name, str(image.location), image.version, image.bytes) for image in list_source(source).images]


def test_a_parquet_file_of_urls_is_a_source(tmp_path: Path, store: Objects) -> None:
    store.put("bucket/deep/b.png", png(1))
    (tmp_path / "a.png").write_bytes(png(2))
    urls = ["simulated://bucket/deep/b.png", str(tmp_path / "a.png")]
    table = pa.table({"url": urls, "bytes": [len(png(1)), None], "etag": ["one", "two"], "other": [1, 2]})
    pq.write_table(table, tmp_path / "list.parquet")
    images = list_source(tmp_path / "list.parquet").images
    assert [(image.name, image.bytes, image.version) for image in images] == [
        ("bucket/deep/b.png", len(png(1)), f"{len(png(1))} one"),
        (f"{tmp_path}/a.png"[1:], 0, "0 two"),
    ]
    assert [sources.read_bytes(image.location) for image in images] == [png(1), png(2)]
    store.put("tables/list.parquet", (tmp_path / "list.parquet").read_bytes())
    assert list_source("simulated://tables/list.parquet").images == images


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_csv_file_of_urls_is_a_source(tmp_path: Path, ending: str) -> None:
    text = (
        "\ufeffName, URL ,Size,Version,comment\r\n"
        'first.png,s3://bucket/1.png,10,v1,"a, b"\r\n'
        "é/second.png,https://example.org/a%20b/2?width=3,20,v2,\r\n"
        ",s3://bucket/x/y.png,,,\r\n"
    )
    file = tmp_path / f"list.{ending}"
    file.write_bytes(gzip.compress(text.encode()) if ending == "csv.gz" else text.encode())
    first, second, third = summary(file)
    assert first[:2] == ("bucket/x/y.png", "s3://bucket/x/y.png")
    assert second == ("first.png", "s3://bucket/1.png", "10 v1", 10)
    assert third == ("é/second.png", "https://example.org/a%20b/2?width=3", "20 v2", 20)
    assert first[3] == 0


def test_an_image_without_a_version_changes_with_the_table(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("url\n/a.png\n")
    before = summary(file)
    assert summary(file) == before
    file.write_text("url\n/a.png\n/b.png\n")
    assert summary(file)[0] != before[0]


def test_the_url_names_an_image_without_its_secrets(tmp_path: Path) -> None:
    rows = [
        "https://user:hunter2@example.org/photos/a%20b.png?X-Amz-Signature=hunter2",
        "sftp://user:hunter2@example.org/c.png",
        "s3://bucket/d.png",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["url", *rows]))
    images = list_source(tmp_path / "list.csv").images
    assert [image.name for image in images] == ["bucket/d.png", "example.org/c.png", "example.org/photos/a b.png"]
    assert {image.location.url for image in images if isinstance(image.location, FileLocation)} == set(rows)
    assert not any("hunter2" in "".join(identity(image.location)) + image.version for image in images)


def test_repeated_names_are_told_apart_by_their_urls(tmp_path: Path) -> None:
    rows = [f"https://example.org/image.png?id={number}" for number in (1, 2, 3, 1)]
    (tmp_path / "list.csv").write_text("\n".join(["url", *rows]))
    listed = list_source(tmp_path / "list.csv")
    names = [image.name for image in listed.images]
    assert len(set(names)) == 3
    assert all(name.startswith("example.org/image") and name.endswith(".png") for name in names)
    assert "1 that cannot be used (example.org/image.png is listed twice)" in listed.summary()


def inventory(*rows: str) -> str:
    return "".join(",".join(f'"{value}"' for value in row.split()) + "\n" for row in rows)


def test_an_s3_inventory_in_csv_has_no_header(tmp_path: Path) -> None:
    text = inventory(
        f"my.bucket photos/a+b%C3%A9.png 10 2026-01-01T00:00:00.000Z {ETAG} STANDARD",
        f"my.bucket photos/.hidden/c.png 20 2026-01-01T00:00:00.000Z {ETAG} STANDARD",
        f"my.bucket photos/notes.txt 30 2026-01-01T00:00:00.000Z {ETAG}-2 STANDARD",
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.csv.gz").write_bytes(gzip.compress(text.encode()))
    location = "s3://my.bucket/photos/a bé.png"
    expected = ("photos/a bé.png", location, f'10 "{ETAG}"', 10)  # as s3fs lists it
    assert summary(tmp_path / "data/1.csv.gz") == [expected]
    left_out = "1 file of another type (.txt 1), 1 hidden or system file or folder (photos/.hidden)"
    assert list_source(tmp_path / "data/1.csv.gz").summary().endswith(f"1 image; left out: {left_out}")
    (tmp_path / "data/2.csv.gz").write_bytes(gzip.compress(text.replace("a+b", "0").encode()))
    assert [name for name, *_ in summary(tmp_path / "data/*.csv.gz")] == ["photos/0é.png", "photos/a bé.png"]


def test_old_versions_and_deleted_files_of_an_inventory_are_no_images(tmp_path: Path) -> None:
    text = inventory(
        f"bucket a.png v3 true false 10 2026-01-01T00:00:00.000Z {ETAG}",
        f"bucket a.png v2 false false 9 2026-01-01T00:00:00.000Z {ETAG}",
        "bucket b.png v1 true true NOTHING 2026-01-01T00:00:00.000Z NOTHING",
    ).replace("NOTHING", "")
    (tmp_path / "list.csv").write_text(text)
    expected = [("a.png", "s3://bucket/a.png", f'10 "{ETAG}"', 10)]
    assert summary(tmp_path / "list.csv") == expected
    columns = {
        "bucket": ["bucket"] * 3,
        "key": ["a.png", "a.png", "b.png"],
        "is_latest": [True, False, True],
        "is_delete_marker": [False, False, True],
        "size": [10, 9, None],
        "e_tag": [ETAG, ETAG, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert summary(tmp_path / "list.parquet") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, expected a column url"),
        ("path,size\n/a.png,1\n", "has the columns path, size, expected a column url, and if possible bytes"),
        ("url\n", "has no row, expected a column url"),
        ("url,name\n", "has no row, expected a column url"),
        ("url,bytes,url\n/a.png,1,/b.png\n", "has several columns 'url', expected one"),
        ("url\n" + "x" * 2_000_000, "cannot be read: field larger than field limit"),
        ("url\n/a.png\nb.png\n", r"has 'b.png' in row 2, expected a URL or an absolute path"),
        ('url,name\n"",a\n', r"has '' in row 1, expected a URL or an absolute path"),
        ("url,bytes\n/a.png,ten\n", r"has 'ten' bytes in row 1, expected their number"),
        ("url,bytes\n/a.png,1\n/b.png\n", "cannot be read: .*, expected a table of URLs"),
        ("url\n/caf\udce9.png\n", "cannot be read: .*, expected a table of URLs"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as refused:
        list_source(tmp_path / "list.csv")
    assert str(refused.value).startswith(f"source {tmp_path}/list.csv ")
    assert "\n" not in str(refused.value)


def test_a_damaged_or_missing_table_is_one_sentence(tmp_path: Path) -> None:
    for name in ("list.parquet", "list.csv.gz"):
        with pytest.raises(UserError, match=f"source .*{name} does not exist, expected a table of URLs"):
            list_source(tmp_path / name)
        (tmp_path / name).write_bytes(b"PAR1 no table")
        with pytest.raises(UserError, match=f"source .*{name} cannot be read: .*, expected a table of URLs"):
            list_source(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no image, .*"):
        sources.list_images([f"{tmp_path}/none*.csv"], "/none")


def test_numbers_of_bytes_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    for size in (float("inf"), [1]):
        pq.write_table(pa.table({"url": ["/a.png"], "bytes": [size]}), tmp_path / "list.parquet")
        with pytest.raises(UserError, match=r"bytes in row 1, expected their number"):
            list_source(tmp_path / "list.parquet")


def test_keys_of_a_csv_file_with_a_header_are_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("bucket,key\nphotos,a+b%20.png\n")
    assert [image.name for image in list_source(tmp_path / "list.csv").images] == ["a+b%20.png"]


def test_a_table_from_the_web_names_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url\nhttps://example.org/a.png\n/etc/image.png\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"names '/etc/image.png' in row 2, expected one of http://, https://"):
            list_source(f"http://127.0.0.1:{server.server_address[1]}/list.csv")
        server.shutdown()


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a.png is no regular file"):
        sources.read_bytes(FileLocation(str(tmp_path / "a.png")))


def test_a_folder_whose_name_ends_like_a_tables_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").mkdir()
    (tmp_path / "set.parquet/a.png").write_bytes(png())
    assert [image.name for image in list_source(tmp_path / "set.parquet").images] == ["a.png"]


def test_tables_can_be_merged_with_other_sources(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png())
    (tmp_path / "list.csv").write_text(f"url,name\n{tmp_path}/photos/a.png,a.png\n")
    images = sources.list_images([str(tmp_path / "photos"), str(tmp_path / "list.csv")], "/none")
    assert [image.name for image in images] == ["1/a.png", "a.png"]
    assert isinstance(images[0], SourceImage)
