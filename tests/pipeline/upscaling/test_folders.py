"""Folders, archives and addresses on the web: what is enlarged, where it goes, and what a rerun skips."""

import functools
import http.server
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline import cluster, upscale
from pipeline.settings import UserError
from pipeline.upscaling.journal import Journal
from tests.conftest import random_image

BICUBIC = ("--model", "bicubic")


def run(*argv: object) -> None:
    upscale.main.__wrapped__([str(arg) for arg in argv])  # type: ignore[attr-defined]


def make(file: Path, seed: int = 0, side: int = 12) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(side, side + 1, seed)).save(file)


def below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


@pytest.mark.usefixtures("ray_session")
def test_a_folder_keeps_its_structure_and_a_rerun_makes_what_is_missing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "photos" / "large"
    for number, name in enumerate(("a.png", "sub/b.jpg", "sub/deep/c.tif", "d.gif")):
        make(photos / name, number)
    (photos / "bad.png").write_bytes(b"no image")
    (photos / "notes.txt").touch()
    with pytest.raises(SystemExit) as stopped:
        run(photos, out, *BICUBIC, "--suffix", "_x4")
    said = capfd.readouterr()
    assert stopped.value.code == 1
    assert "5 images; left out: 1 file of another type (.txt 1)" in said.out
    assert f"{photos}/bad.png is no image of a known format" in said.err
    assert said.out.endswith(f"{out}: 4 images upscaled, 1 failed\n")
    assert "5 of 5 images in" in said.out
    assert "MP/s, 1 failed" in said.out
    made = {"a_x4.png", "sub/b_x4.jpg", "sub/deep/c_x4.tif", "d_x4.gif"}
    assert below(out) == made | {".upscaled.jsonl"}
    assert {size(out / name) for name in made} == {(52, 48)}

    (photos / "bad.png").unlink()
    before = {name: (out / name).stat().st_mtime_ns for name in made}
    run(photos, out, *BICUBIC, "--suffix", "_x4")
    assert "4 of 4 images done by an earlier command\n" in (told := capfd.readouterr().out)
    assert told.endswith(f"{out}: 0 images upscaled, 4 done earlier\n")
    assert before == {name: (out / name).stat().st_mtime_ns for name in made}

    # A changed image, a lost result and a cut-off result are made again; a damaged journal costs a line of it.
    make(photos / "a.png", 9)
    (out / "sub/b_x4.jpg").unlink()
    (out / "d_x4.gif").write_bytes(b"cut")
    with (out / ".upscaled.jsonl").open("a") as journal:
        journal.write("[half a line")
    run(photos, out, *BICUBIC, "--suffix", "_x4")
    assert capfd.readouterr().out.endswith(f"{out}: 3 images upscaled, 1 done earlier\n")
    run(photos, out, *BICUBIC, "--suffix", "_x4")
    assert capfd.readouterr().out.endswith(f"{out}: 0 images upscaled, 4 done earlier\n")
    assert size(out / "d_x4.gif") == (52, 48)

    # Other options make everything again.
    run(photos, out, *BICUBIC, "--suffix", "_x4", "--outscale", "2")
    assert capfd.readouterr().out.endswith(f"{out}: 4 images upscaled\n")
    assert {size(out / name) for name in made} == {(26, 24)}


def test_a_single_image_goes_to_a_folder_and_is_skipped_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a.png")
    for where in ("new", "ended.v2/"):
        run(tmp_path / "a.png", f"{tmp_path}/{where}", *BICUBIC)
        assert size(tmp_path / where / "a.png") == (52, 48)
        assert capfd.readouterr().out == f"{tmp_path / where}/a.png: 52x48\n"
    run(tmp_path / "a.png", tmp_path / "new", *BICUBIC)
    assert capfd.readouterr().out == "1 of 1 image done by an earlier command\n"
    run(tmp_path / "a.png", tmp_path / "new", *BICUBIC, "--format", "jpg", "--quality", "50")
    assert below(tmp_path / "new") == {"a.png", "a.jpg", ".upscaled.jsonl"}
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"a\.png is no image of a known format"):
        run(tmp_path / "a.png", tmp_path / "new", *BICUBIC)


def test_results_beside_their_images_are_not_enlarged_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a.png")
    for _ in range(2):
        run(tmp_path, tmp_path, *BICUBIC, "--suffix", "_x4")
        assert below(tmp_path) == {"a.png", "a_x4.png", ".upscaled.jsonl"}
    assert capfd.readouterr().out.endswith("1 of 1 image done by an earlier command\n")


def test_a_command_that_ended_before_it_noted_a_result_is_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    make(tmp_path / "a.png")
    with monkeypatch.context() as ended:
        ended.setattr(Journal, "add", end)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tmp_path, *BICUBIC, "--suffix", "_x4")
    for told in (f"{tmp_path}/a_x4.png: 52x48\n", "1 of 1 image done by an earlier command\n"):
        assert below(tmp_path) == {"a.png", "a_x4.png", ".upscaled.jsonl"}
        capfd.readouterr()
        run(tmp_path, tmp_path, *BICUBIC, "--suffix", "_x4")
        assert told in capfd.readouterr().out


def test_results_in_the_folder_of_the_images_are_known_by_the_journal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a.jpg")
    for _ in range(2):
        run(tmp_path, tmp_path, *BICUBIC, "--format", "png")
        assert below(tmp_path) == {"a.jpg", "a.png", ".upscaled.jsonl"}
    assert capfd.readouterr().out.endswith("1 of 1 image done by an earlier command\n")

    # The result of a lost image stays as it is, and an image that no command has made is not taken for a result.
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="holds only results of earlier commands, expected other images"):
        run(tmp_path, tmp_path, *BICUBIC, "--suffix", "_x4")
    make(tmp_path / "b.png")
    make(tmp_path / "b_x4.png", 1)
    content = (tmp_path / "b_x4.png").read_bytes()
    with pytest.raises(UserError, match=r"b_x4\.png is an input image, expected another folder"):
        run(tmp_path, tmp_path, *BICUBIC, "--suffix", "_x4")
    assert (tmp_path / "b_x4.png").read_bytes() == content


def test_no_path_to_an_input_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    photos = tmp_path / "photos"
    make(photos / "a.png")
    content = (photos / "a.png").read_bytes()
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "other.png").symlink_to(photos / "a.png")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/same/a.png", content)
    monkeypatch.chdir(photos)
    cases = [
        (".", "../photos"),
        (photos, tmp_path / "link"),
        (photos, f"file://{photos}"),
        (f"file://{photos}", f"{tmp_path}/other/../photos/"),
        ("a.png", "../photos/"),
        ("a.png", f"file://{photos}/a.png"),
        (f"file://{photos}/a.png", "../photos/a.png"),
        (photos / "a.png", tmp_path / "other.png"),
        ("memory://same/a.png", "memory://same/a.png"),
        ("memory://same/a.png", "memory:///same/a.png"),
        ("memory://same", "memory:///same/"),
    ]
    for source, out in cases:
        with pytest.raises(UserError, match=r"is (an|the) input image, expected another"):
            run(source, out, *BICUBIC)
    assert (photos / "a.png").read_bytes() == memory.cat_file("/same/a.png") == content
    assert below(photos) == {"a.png"}

    # The results in a folder inside of the input are none of its images, however the folder is named.
    for out in (photos / "large", tmp_path / "link/large", f"file://{photos}/large"):
        run(photos, out, *BICUBIC)
        assert below(photos) == {"a.png", "large/a.png", "large/.upscaled.jsonl"}


def test_a_higher_limit_makes_only_what_was_too_large(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "in/a.png")
    run(tmp_path / "in", tmp_path / "out", *BICUBIC, "--max-megapixels", "0.1")
    make(tmp_path / "in/large.png", side=80)
    with pytest.raises(UserError, match=r"large\.png 81x80 is more than 6250 pixels"):
        run(tmp_path / "in/large.png", tmp_path / "out", *BICUBIC, "--max-megapixels", "0.1")
    capfd.readouterr()
    run(tmp_path / "in", tmp_path / "out", *BICUBIC)
    assert capfd.readouterr().out.startswith("1 of 2 images done by an earlier command\n")
    assert below(tmp_path / "out") == {"a.png", "large.png", ".upscaled.jsonl"}


@pytest.fixture
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
def test_a_few_images_need_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(cluster, "connect")
    make(tmp_path / "in/a.png")
    make(tmp_path / "in/b.png")
    (tmp_path / "in/bad.png").touch()
    with pytest.raises(SystemExit):
        run(tmp_path / "in", tmp_path / "out", *BICUBIC, "--device", "cpu")
    assert "2 images upscaled, 1 failed" in capfd.readouterr().out
    assert below(tmp_path / "out") == {"a.png", "b.png", ".upscaled.jsonl"}


def test_two_images_that_would_become_one_file_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "one/a.png")
    make(tmp_path / "two/a.png")
    with pytest.raises(UserError, match=r"one/a\.png and .*two/a\.png would both become .*out/a\.png: expected images"):
        run(tmp_path / "one/a.png", tmp_path / "two/a.png", tmp_path / "out", *BICUBIC)


def test_members_of_an_archive_stay_below_the_output(tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "../../sub/evil.png")
    run(tmp_path / "images.zip", tmp_path / "out/here", *BICUBIC)
    assert below(tmp_path) == {"a.png", "images.zip", "out/here/sub/evil.png", "out/here/.upscaled.jsonl"}


@pytest.mark.usefixtures("ray_session")
def test_several_inputs_get_folders_of_their_own(tmp_path: Path) -> None:
    make(tmp_path / "one/a.png")
    make(tmp_path / "two/sub/a.png", 1)
    make(tmp_path / "b.png", 2)
    with zipfile.ZipFile(tmp_path / "three.zip", "w") as archive:
        archive.write(tmp_path / "b.png", "c.png")
    inputs = [tmp_path / "one", tmp_path / "two", tmp_path / "three.zip", tmp_path / "b.png"]
    run(*inputs, tmp_path / "out", *BICUBIC)
    assert below(tmp_path / "out") == {"one/a.png", "two/sub/a.png", "three/c.png", "b.png", ".upscaled.jsonl"}


def test_a_pattern_keeps_the_folders_below_it(tmp_path: Path) -> None:
    make(tmp_path / "photos/one/a.png")
    (tmp_path / "photos/one/b.txt").touch()
    run(f"{tmp_path}/photos/*/a.pn?", tmp_path / "out", *BICUBIC)
    assert below(tmp_path / "out") == {"a.png", ".upscaled.jsonl"}


def test_an_object_store_holds_results_and_their_journal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    make(tmp_path / "a.png")
    memory.put_file(str(tmp_path / "a.png"), "/bucket/in/a.png")
    for _ in range(2):
        run("memory://bucket/in/a.png", "memory://bucket/out/", *BICUBIC)
    assert capfd.readouterr().out == ("memory://bucket/out/a.png: 52x48\n1 of 1 image done by an earlier command\n")
    assert sorted(memory.find("/bucket/out")) == ["/bucket/out/.upscaled.jsonl", "/bucket/out/a.png"]
    (line,) = memory.cat_file("/bucket/out/.upscaled.jsonl").splitlines()
    assert json.loads(line)[0] == "a.png"


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """Serve a folder on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    folder = tmp_path / "www"
    make(folder / "my photo.png")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_image_on_the_web_is_enlarged_anew_when_it_changes(
    tmp_path: Path, website: str, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"{website}/my%20photo.png?size=full"
    out = tmp_path / "out"
    run(address, out, *BICUBIC)
    run(address, out, *BICUBIC)
    said = capfd.readouterr().out
    assert f"{out}/my photo.png: 52x48" in said
    assert said.endswith("1 of 1 image done by an earlier command\n")
    make(tmp_path / "www/my photo.png", 5, 20)
    run(address, out, *BICUBIC)
    assert size(out / "my photo.png") == (84, 80)
    with pytest.raises(OSError, match="answers 404"):
        run(f"{website}/none.png", out, *BICUBIC)
