"""Find the sets of images that a person names: by place, or by a name that is looked up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.archives import is_archive
from pipeline.data.benchmark_sets import is_published, plain_set_name
from pipeline.settings import UserError
from pipeline.settings.evaluation import is_set_name
from pipeline.settings.fields import absolute_source
from pipeline.storage import printable

BUILTIN = "builtin"


def find_sets(texts: Sequence[str], known: Mapping[str, str], folder: str | None) -> tuple[dict[str, str], list[str]]:
    """Find the places of sets.

    A text is NAME=PLACE, a name, or a place. A name is looked up among the known sets, then in the folder, as the name
    of a folder or archive there. Lower and upper case are the same, and so are BSD100, B100 and BSDS100. Without texts,
    all known sets and all sets in the folder are meant.

    Args:
        texts: what the person named.
        known: places of configured sets by name.
        folder: path or URL of a folder that holds sets, or None.

    Returns:
        Absolute places by name, and a sentence for each published set that is not at hand.

    Raises:
        UserError: if a text names no set, two of them get one name, or there is no set at all.
    """
    there = _list_folder(folder)
    if not texts:
        found = {**there, **known}
        if not found:
            raise UserError(
                "there is no set of images to score: expected --sets NAME=FOLDER, such as --sets Set5=data/Set5, or "
                "the setting evaluate.benchmarks"
            )
        return found, []
    found, skipped = {}, []
    for text in texts:
        place = _find(text, known, there)
        if place is None:
            where = f" in {folder}" if folder else ""
            skipped.append(
                f"the published set {text} is skipped, because it is not at hand{where}; --sets {text}=FOLDER says "
                "where it is"
            )
            continue
        name, location = place
        if found.get(name, location) != location:
            raise UserError(f"two sets have the name {name}: expected NAME=PLACE with another name for one of them")
        found[name] = location
    return found, skipped


def _list_folder(folder: str | None) -> dict[str, str]:
    """Return the folders and archives in a folder of sets by name."""
    if folder is None:
        return {}
    entries = [name for name in storage.names(folder) if not name.startswith((".", "_"))]
    if not entries:
        raise UserError(
            f"the folder of sets {printable(folder)} is empty or does not exist: expected folders of images"
        )
    found = {}
    for entry in entries:
        name = entry.partition(".")[0] if is_archive(entry) else entry
        if is_set_name(name) and (is_archive(entry) or "." not in entry):
            found[name] = absolute_source(f"{folder.rstrip('/')}/{entry}")
    return found


def _find(text: str, known: Mapping[str, str], there: Mapping[str, str]) -> tuple[str, str] | None:
    """Return name and place of one set, or None if it is a published set that is not at hand."""
    name, equals, place = text.partition("=")
    if equals and is_set_name(name) and not os.path.lexists(text):
        if not place:
            raise UserError(f"--sets {text} has no place, expected NAME=PLACE")
        return name, absolute_source(place)
    for sets in (known, there):
        for candidate, location in sets.items():
            if plain_set_name(candidate) == plain_set_name(text):
                return candidate, location
    if text == BUILTIN or storage.is_url(text) or os.path.lexists(os.path.expanduser(text)):  # noqa: PTH111
        return _name_of(text), absolute_source(text)
    if is_published(text):
        return None
    raise UserError(
        f"--sets names {printable(text)}, which is neither a configured set nor a published one nor a folder: expected "
        "NAME=FOLDER, such as Set5=data/Set5"
    )


def _name_of(place: str) -> str:
    """Return the name of a set from the last part of its place."""
    name = PurePosixPath(place.rstrip("/")).name
    name = storage.plain_name(name.partition(".")[0] if is_archive(name) else name)
    if not is_set_name(name):
        raise UserError(f"--sets {printable(place)} has no name, expected NAME=PLACE")
    return name
