"""Match the images that another tool has enlarged with the images of a set, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.data.benchmark_sets import plain_set_name
from pipeline.data.listing import Listing
from pipeline.data.source_images import SourceImage
from pipeline.evaluation.measuring import EnlargedFile, ScoredImage
from pipeline.settings import UserError
from pipeline.storage import printable

_NAMED = 5
"""Names that a sentence lists."""
_NO_RESULT = re.compile(r".*[_\-. ](lr|hr|gt|bic|bicubic|input|target)")
"""How the names of files end that are no results, as in baby_x4_LR or baby_HR, in lower case."""
_USUAL = re.compile(r"[_\-. ]?(x\d+)?([_\-. ](sr|out|x\d+|rlt|result))*")
"""Endings that tools usually append to an image's name: nothing, x4, _SR, _x4, _out, _x4_SR."""


@dataclass(frozen=True)
class Matched:
    """The images of all sets with the results that belong to them."""

    images: list[ScoredImage]
    problems: list[str]
    """A sentence for each image without a result."""
    unused: list[str]
    """Files that belong to no image."""


def match_results(label: str, listing: Listing, images: Sequence[ScoredImage], degraded: str = "") -> Matched:
    """Add the results of a tool to the images that they belong to.

    A file belongs to the image with the longest name that its own name begins with: `baby_x4_SR.png` to `baby`. If some
    folder among the results is named after the set, such as `Set5` or `results-Set5`, the set's results are in it.

    Args:
        label: name under which the results are scored.
        listing: the files of the tool.
        images: the images of all sets.
        degraded: what the names of sets end with because their images are degraded; folders may lack it.

    Raises:
        UserError: if no file belongs to an image.
    """
    sets: dict[str, list[ScoredImage]] = {}
    for image in images:
        sets.setdefault(image.set, []).append(image)
    by_set = _divide(listing.images, list(sets), degraded)
    matched, problems, used = {}, [], set()
    for name, members in sets.items():
        found = _match(by_set[name], members)
        used |= {file.name for files in found.values() for file in files}
        missing = []
        for image in members:
            files = _best(image, found.get(image.index, []))
            if len(files) == 1:
                matched[name, image.index] = EnlargedFile(files[0].location, files[0].version)
            elif files:
                names = printable(", ".join(file.name for file in files[:_NAMED]))
                problems.append(f"{label}: {image.name} of {name} has {len(files)} files ({names}), expected one")
            else:
                missing.append(image)
        if len(missing) == len(members):
            problems.append(f"{label}: no file belongs to an image of {name}")
        else:
            problems += [f"{label}: no file belongs to {image.name} of {name}" for image in missing]
    if not matched:
        example = PurePosixPath(images[0].name).name
        raise UserError(
            f"no image file of {printable(listing.source)} has the name of an image to score, such as {example}.png, "
            f"{example}_x4.png, {example}_SR.png or {example}_out.png"
        )
    looked_at = {file.name: file for files in by_set.values() for file in files}
    unused = sorted(name for name in looked_at.keys() - used if not _NO_RESULT.fullmatch(_key(name)))
    return Matched([_with_file(image, label, matched) for image in images], problems, unused)


def _with_file(image: ScoredImage, label: str, matched: Mapping[tuple[str, int], EnlargedFile]) -> ScoredImage:
    file = matched.get((image.set, image.index))
    return replace(image, files={**image.files, label: file}) if file else image


def _divide(files: Sequence[SourceImage], sets: Sequence[str], degraded: str) -> dict[str, list[SourceImage]]:
    """Return the files that may be results for each set."""
    named = {file.name: _sets_of(file, sets, degraded) for file in files}
    divided = {}
    for name in sets:
        own = [file for file in files if name in named[file.name]]
        divided[name] = own or [file for file in files if not named[file.name]]
    return divided


def _sets_of(file: SourceImage, sets: Sequence[str], degraded: str) -> set[str]:
    """Return the sets that the folders of a file name."""
    words = set()
    for folder in PurePosixPath(file.name).parts[:-1]:
        words |= {plain_set_name(word) for word in (folder, *re.split(r"[_\-. ]", folder))}
    names = {name: {plain_set_name(name), plain_set_name(name.removesuffix(degraded))} for name in sets}
    return {name for name in sets if names[name] & words}


def _match(files: Sequence[SourceImage], images: Sequence[ScoredImage]) -> dict[int, list[SourceImage]]:
    """Return the results of each image, by its position: the files whose longest matching name is that of the image."""
    names = sorted(((_key(image.name), image.index) for image in images), key=lambda entry: -len(entry[0]))
    found: dict[int, list[SourceImage]] = {}
    for file in files:
        stem = _key(file.name)
        for name, index in names:
            rest = stem.removeprefix(name)
            if stem.startswith(name) and re.match(r"$|[_\-. ]|x\d", rest):
                if not _NO_RESULT.fullmatch(rest):
                    found.setdefault(index, []).append(file)
                break
    return found


def _best(image: ScoredImage, files: Sequence[SourceImage]) -> Sequence[SourceImage]:
    """Return the files with the image's own name, else those with a usual one, else all."""
    name = _key(image.name)
    own = [file for file in files if _key(file.name) == name]
    usual = [file for file in files if _USUAL.fullmatch(_key(file.name).removeprefix(name))]
    return own or usual or files


def _key(name: str) -> str:
    """Return a file's name without folder, extension and case."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
    return (path.stem if known else path.name).casefold()
