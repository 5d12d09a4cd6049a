"""List the image pairs of a benchmark set, such as Set5, in the layouts in which such sets are published."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pipeline import storage
from pipeline.data.archives import is_archive
from pipeline.data.left_out import count, describe_left_out
from pipeline.data.locations import Location
from pipeline.data.sources import list_source
from pipeline.settings import UserError
from pipeline.storage import printable

_HR_FOLDER = re.compile(r"(.*[^a-z])?hr([ _-]?x?\d+)?|gt(mod\d+)?|ground[ _-]?truth")
_LR_FOLDER = re.compile(
    r"(.*[^a-z])?lr([ _-]?(bic|bicubic|bilinear|nearest|lanczos|unknown|mild|difficult|wild))?([ _-]?x?\d+)?"
)
"""Lower-case names of folders of HR and of LR images."""
_SCALE = re.compile(
    r"(?:^|[^a-z]|bic|bicubic|[lh]r)x(?P<x>[2-68]|16)$|^(?P<first>[2-68]|16)x$|srf_?(?P<srf>[2-68]|16)$"
)
"""The scale in a folder's name in lower case, such as X4, LRbicx4, LR_x4, 4x or image_SRF_4."""
_NAMED = 5
"""Images that an error message names."""
_PAIR_FILE = re.compile(r"(?P<stem>.+)_SRF_(?P<scale>\d+)_(?P<role>\w+)|(?P<plain>.+)_(?P<plain_role>HR|LR)")
_SETS = frozenset(
    {
        "set5", "set14", "b100", "bsd100", "bsds100", "bsd68", "cbsd68", "urban100", "manga109", "general100", "t91",
        "kodak24", "mcmaster", "historical", "sunhays80", "div2k", "div2k100", "flickr2k", "pirm", "lsdir", "realsr",
    }
)  # fmt: skip
"""Names of published benchmark sets, in lower case."""

_ALIASES = {"b100": "bsd100", "bsds100": "bsd100", "div2k100": "div2k"}


def plain_set_name(name: str) -> str:
    """Return a set's name in lower case without signs, one name for each published set: "BSDS100" becomes "bsd100"."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    return _ALIASES.get(plain, plain)


def is_published(name: str) -> bool:
    """Tell whether a name is that of a published benchmark set."""
    return plain_set_name(name) in {plain_set_name(known) for known in _SETS}


@dataclass(frozen=True)
class BenchmarkImage:
    """A ground-truth image and, if the set includes one, its published LR file."""

    name: str
    hr: Location
    """The place of the ground truth."""
    lr: Location | None
    """The place of the LR file; None if the LR image is computed from the ground truth."""
    version: str
    """It changes when the content of one of the files changes."""


@dataclass(frozen=True)
class BenchmarkSet:
    """The images of a benchmark set, and what else its source holds."""

    name: str
    images: list[BenchmarkImage]
    left_out: str
    """Description of the unused files; empty if all are used."""

    def summary(self) -> str:
        """Return one line that says how many images there are, where LR images come from, and what is left out."""
        lr = "LR files of the set" if self.images and self.images[0].lr else "LR images made here"
        left_out = self.left_out and f"; left out: {self.left_out}"
        return f"benchmark {self.name}: {count(len(self.images), 'image')}, {lr}{left_out}"


def list_images(name: str, source: str, scale: int, cache: str) -> list[BenchmarkImage]:
    """List the images of a benchmark set; arguments and errors are those of `list_set`."""
    return list_set(name, source, scale, cache).images


def list_set(name: str, source: str, scale: int, cache: str) -> BenchmarkSet:
    """List a benchmark set that has one of these layouts; upper and lower case are the same.

    - `HR/`, `HR/x4/`, `GT/` or `GTmod12/` beside `LR/`, `LR/x4/`, `LR_bicubic/X4/`, `LRbicx4/` or `X4/`; an LR file has
      its HR file's name, perhaps with `x4` appended.
    - `image_SRF_4/*_HR.png` beside `*_LR.png`, or such files without a folder.
    - HR images alone; their LR images are computed.

    An image is named by its file's name without extension, or by its path if two files have the same name.

    Args:
        name: the set's name, for messages.
        source: a source as in `sources.list_images`.
        scale: upscaling factor, which selects the LR files.
        cache: folder or URL that keeps downloads.

    Raises:
        UserError: if the source does not exist, holds no ground truth, holds several sets, or lacks the LR file of some
            HR image.
        OSError: if a download fails.
    """
    listing = list_source(source, cache)
    where = f"benchmark {name}: {storage.redact(printable(source))}"
    if not is_archive(source) and _is_lr_folder(source):
        raise UserError(f"{where} is a folder of LR images, expected HR images or a folder with both")
    files = [_File.of(image.name) for image in listing.images]
    truths, lr_files = _divide(files, scale)
    if not truths:
        found = "LR images alone" if lr_files else f"no HR image for a scale of {scale}" if files else "no image"
        raise UserError(f"{where} holds {found}, expected HR images, or HR/ and LR*/")
    _check_one_set(where, truths)
    partners = _pair(where, truths, lr_files, scale)
    images = {image.name: image for image in listing.images}

    def entry(name: str, hr: _File) -> BenchmarkImage:
        truth = images[hr.path]
        if hr not in partners:
            return BenchmarkImage(name, truth.location, None, truth.version)
        lr = images[partners[hr].path]
        return BenchmarkImage(name, truth.location, lr.location, f"{truth.version} {lr.version}")

    unused = Counter(file.what(scale) for file in files if file not in {*truths, *partners.values()})
    left_out = [f"{number} {what.format(s='' if number == 1 else 's')}" for what, number in unused.items()]
    if others := describe_left_out(listing.left_out):
        left_out.append(others)
    entries = [entry(name, hr) for name, hr in zip(_names(truths), truths, strict=True)]
    return BenchmarkSet(name, entries, ", ".join(left_out))


Role = Literal["HR", "LR", "result"]


@dataclass(frozen=True)
class _File:
    """An image file of a set, and what its path says about it."""

    path: str
    """Path within the source."""
    set: str
    """The folder that contains the folders of HR and LR images."""
    folder: str
    """Its folder without the parts that say role and scale; the two files of a pair have the same."""
    stem: str
    """Its name without extension and without what says role and scale."""
    role: Role | None
    """Ground truth, LR image, or the result of another method; None if the path does not say."""
    scale: int | None
    """The scale that the path says."""

    @classmethod
    def of(cls, name: str) -> _File:
        """Read what a path says."""
        *folders, file = PurePosixPath(name).parts
        role: Role | None = None
        scale: int | None = None
        in_set: list[str] = []
        kept: list[str] = []
        for part in folders:
            part_role, part_scale = _role_of(part), _scale_of(part)
            scale = part_scale or scale
            if part_role:
                role, in_set = part_role, list(kept)
            elif not part_scale:
                kept.append(part)
        stem = PurePosixPath(file).stem
        if pair := _PAIR_FILE.fullmatch(stem):
            kind = pair["role"] or pair["plain_role"]
            role = "HR" if kind == "HR" else "LR" if kind == "LR" else "result"
            scale = int(pair["scale"]) if pair["scale"] else scale
            stem, in_set = pair["stem"] or pair["plain"], kept
        return cls(name, "/".join(in_set), "/".join(kept), stem, role, scale)

    def what(self, scale: int) -> str:
        """Return the kind of file that it is, if it is not used at a scale; {s} stands for the plural."""
        if self.scale not in (None, scale):
            return f"image{{s}} of scale {self.scale}"
        kinds = {
            "HR": "HR image{s}",
            "LR": "LR image{s}",
            "result": "result{s} of other methods",
            None: "other image{s}",
        }
        return kinds[self.role]


def _role_of(folder: str) -> Role | None:
    """Return the role that a folder's name says; None if it says none or both."""
    hr = folder.endswith("HR") or bool(_HR_FOLDER.fullmatch(folder.lower()))
    lr = folder.endswith("LR") or bool(_LR_FOLDER.fullmatch(folder.lower()))
    return None if hr == lr else "HR" if hr else "LR"


def _is_lr_folder(source: str) -> bool:
    """Tell whether a source is a folder such as LRbicx4 or LR_bicubic/X4."""
    parts = list(PurePosixPath(source).parts)
    while len(parts) > 1 and _scale_of(parts[-1]) and not _role_of(parts[-1]):
        parts.pop()
    return _role_of(parts[-1]) == "LR"


def _scale_of(folder: str) -> int | None:
    """Return the scale that a folder's name says."""
    found = _SCALE.search(folder.lower())
    return int(found["x"] or found["first"] or found["srf"]) if found else None


def _divide(files: Sequence[_File], scale: int) -> tuple[list[_File], list[_File]]:
    """Return the ground truth and the files that could be its LR images."""
    fitting = [file for file in files if file.scale in (None, scale)]
    truths = [file for file in fitting if file.role == "HR"]
    if truths:
        truths = sorted(_with_scale(truths), key=lambda file: file.stem)
    else:
        truths = [file for file in fitting if file.role is None and file.scale is None]
    return truths, _with_scale(
        [file for file in fitting if file.role == "LR" or (file.role is None and file.scale is not None)]
    )


def _with_scale(files: list[_File]) -> list[_File]:
    """Return those files whose path says the scale, or all if there is none."""
    return [file for file in files if file.scale] or files


def _check_one_set(where: str, truths: Sequence[_File]) -> None:
    """Refuse a folder that holds several sets, because a mean over them is no published score."""
    if any(file.role for file in truths):
        sets = {file.set for file in truths}
        several = len(sets) > 1
    else:
        folders = {PurePosixPath(file.folder).parts for file in truths}
        while all(folders) and len({folder[0] for folder in folders}) == 1:  # a folder around all images
            folders = {folder[1:] for folder in folders}
        sets = {folder[0] if folder else "" for folder in folders}
        several = len(sets) > 1 and any(is_published(name) for name in sets)
    if several:
        names = ", ".join(printable(name) or "the folder itself" for name in sorted(sets)[:_NAMED])
        raise UserError(f"{where} holds several sets ({names}), expected one of them")


def _pair(where: str, truths: Sequence[_File], lr_files: Sequence[_File], scale: int) -> dict[_File, _File]:
    """Return the LR file of each ground-truth image, or nothing if the set has no LR files.

    The scale at the end of an LR file's name, such as `x4`, belongs to the name if the HR files' names have it, too.
    """
    if not lr_files:
        return {}
    by_key: dict[tuple[str, str], _File] = {}
    for file in truths:
        if twin := by_key.get((file.folder, file.stem)):
            paths = printable(f"{twin.path} and {file.path}")
            raise UserError(f"{where} holds {paths}, expected one HR image for each LR image")
        by_key[file.folder, file.stem] = file

    def bare(file: _File) -> str:
        return re.sub(rf"[_-]?x{scale}$", "", file.stem, flags=re.IGNORECASE)

    def as_needed(file: _File) -> str:
        return file.stem if (file.folder, file.stem) in by_key else bare(file)

    found: dict[_File, list[_File]] = {}
    for stem_of in (lambda file: file.stem, bare, as_needed):
        found = {}
        for file in lr_files:
            if hr := by_key.get((file.folder, stem_of(file))):
                found.setdefault(hr, []).append(file)
        if len(found) == len(truths):
            break
    missing = [file.stem for file in truths if file not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UserError(f"{where} has no LR file for {printable(', '.join(missing[:_NAMED]))}{more}")
    return {hr: _only(where, candidates) for hr, candidates in found.items()}


def _only(where: str, candidates: Sequence[_File]) -> _File:
    """Return the LR file among several for one image: the only one, or the only one that bicubic reduction made."""
    bicubic = [file for file in candidates if "bic" in str(PurePosixPath(file.path).parent).lower()]
    chosen = bicubic if len(candidates) > 1 and bicubic else candidates
    if len(chosen) > 1:
        paths = printable(" and ".join(file.path for file in chosen[:2]))
        raise UserError(f"{where} has {paths} for one HR image, expected one LR file")
    return chosen[0]


def _names(truths: Sequence[_File]) -> list[str]:
    """Return the shortest names by which the images differ: stems, paths without extension, or whole paths."""
    forms: tuple[Callable[[_File], str], ...] = (
        lambda file: file.stem,
        lambda file: f"{file.folder}/{file.stem}".lstrip("/"),
        lambda file: file.path,
    )
    candidates = ([form(file) for file in truths] for form in forms)
    return next((names for names in candidates if len(set(names)) == len(names)), [file.path for file in truths])
