"""Mutated images, archives with hostile names and damaged journals: results are in the output folder or nowhere."""

import io
import json
import random
import zipfile
from pathlib import Path

import pytest

from pipeline.data.locations import FileLocation
from pipeline.data.rejection import RejectedImageError
from pipeline.networks.upscalers import BicubicUpscaler
from pipeline.settings import UserError
from pipeline.upscaling.files import upscale_file
from pipeline.upscaling.formats import FORMATS
from pipeline.upscaling.images import decode_image
from pipeline.upscaling.journal import NAME, Journal
from pipeline.upscaling.options import Enlargement
from pipeline.upscaling.plan import Naming, make_plan
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.fuzz.test_images import ALL_SEEDS, RGB, make
from tests.pipeline.data.formats.encoders import saved

HOW = Enlargement(max_megapixels=0.8)


@pytest.mark.parametrize("count", [40, pytest.param(1400, marks=whole_campaign)])
def test_mutated_images_are_enlarged_or_refused(tmp_path: Path, count: int) -> None:
    makers = [make(kind) for kind in ALL_SEEDS]
    source, out = tmp_path / "image", tmp_path / "out"
    out.mkdir()

    def make_any(random_: random.Random) -> tuple[bytes, str]:
        return random_.choice(makers)(random_), random_.choice(list(FORMATS))

    def use(chosen: tuple[bytes, str]) -> None:
        content, suffix = chosen
        for left in out.iterdir():  # of an input with a fault
            left.unlink()
        source.write_bytes(content)
        target = out / f"enlarged{suffix}"
        try:
            written = upscale_file(BicubicUpscaler(2), FileLocation(str(source)), str(target), suffix, HOW)
        except (RejectedImageError, UserError):
            assert list(out.iterdir()) == [], "a refused image leaves no file"
            raise
        assert list(out.iterdir()) == [target]
        # Pillow and most other programs read no TIFF file with grey and opacity of 16 bits each.
        assert decode_image(target.read_bytes(), 10**6).size == (written.width, written.height)
        target.unlink()

    Campaign("enlarged images", make_any, use, (RejectedImageError, UserError), tmp_path).run(count)


NAMES = (
    "../out.png", "../../out.png", "/out.png", "//etc/out.png", "a/../../../out.png", "a/./b.png", "..\\..\\out.png",
    "C:\\out.png", "~/out.png", "~root/out.png", "$HOME/out.png", "s3://bucket/out.png", "file:///tmp/out.png",
    "memory://out.png", "zip://a.png::b.zip", "simplecache::a.png", "a\nb.png", "a\0b.png", "\u202egnp.exe.png", ".png",
    "..png", "a*.png", "a[0].png", "{a}.png", "CON.png", "x" * 300 + ".png", "é.PNG", "e\u0301.PNG", "a.png/b.png",
    "-rf.png", " .png", "a/b/c/d.png",
)  # fmt: skip
"""Names of members that lead elsewhere, or that a file system or a shell takes for something else."""


@pytest.mark.parametrize("count", [20, pytest.param(600, marks=whole_campaign)])
def test_no_name_in_an_archive_leads_out_of_the_output_folder(tmp_path: Path, count: int) -> None:
    image = saved(RGB.resize((3, 2)))
    archive, out, cache, scratch = (tmp_path / name for name in ("images.zip", "out", "cache", "scratch"))

    def make_names(random_: random.Random) -> list[str]:
        names = [random_.choice(NAMES) for _ in range(random_.choice((1, 2, 5)))]
        if random_.random() < 0.5:
            text = mutate_bytes(random_, [name.encode() for name in NAMES]).decode(errors="replace")
            names.append(f"{text}.png")
        return names

    def use(names: list[str]) -> None:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as made:
            for name in dict.fromkeys(names):
                made.writestr(zipfile.ZipInfo(name), image)
        archive.write_bytes(sink.getvalue())
        plan = make_plan([str(archive)], f"{out}/", Naming(), str(cache), str(scratch))
        for job in plan.jobs:
            try:
                upscale_file(BicubicUpscaler(2), job.image.location, job.target, job.suffix, HOW)
            except OSError:  # a name that is too long, or a file in the place of a folder
                continue
            assert out.resolve() in Path(job.target).resolve().parents

    Campaign("names in archives", make_names, use, (UserError, RejectedImageError), tmp_path).run(count)
    assert {file.name for file in tmp_path.iterdir()} <= {"images.zip", "out", "cache", "scratch"}


@pytest.mark.parametrize("count", [20, pytest.param(700, marks=whole_campaign)])
def test_mutated_journals_of_output_folders(tmp_path: Path, count: int) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    lines = [json.dumps([name, "identity", 5]).encode() for name in ("a.png", "b/c.png", "é.png")]

    def make_journal(random_: random.Random) -> bytes:
        changed = [*lines, mutate_json(random_, lines)]
        random_.shuffle(changed)
        content = b"\n".join(changed) + b"\n"
        return mutate_bytes(random_, [content]) if random_.random() < 0.4 else content

    def use(content: bytes) -> None:
        (tmp_path / NAME).write_bytes(content)
        journal = Journal(str(tmp_path))
        assert journal.results() <= {"a.png", NAME}
        journal.add("a.png", "other", 5)
        journal.close()
        assert Journal(str(tmp_path)).is_done("a.png", "other")

    Campaign("upscaling journals", make_journal, use, (), tmp_path).run(count)
