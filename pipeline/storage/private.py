"""Folders of this user in the system's temporary folder, where every other user can write, too."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def private_folder(name: str) -> Path:
    """Create or find a folder that only this user can write to. It keeps its name, so processes share it.

    Another user may have prepared a folder or a link of this name, so it is used only if it is a real folder of this
    user that nobody else can write to.

    Args:
        name: the user's number is added to it.

    Raises:
        OSError: if there is something else in its place, or it cannot be created. The text is one sentence.
    """
    folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        if not private:
            raise PermissionError(
                f"{folder} is not a folder of your own that nobody else can write to: remove it, or set TMPDIR to "
                "another temporary folder"
            ) from None
    return folder
