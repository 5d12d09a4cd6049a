"""Faults for processes that have this folder on their PYTHONPATH, including Ray's workers.

FAULTY_DISK=BYTES makes faulty:// a disk of that size. If a file does not fit, the disk keeps the part that did.
FAULTY_PERMISSION=1 denies all writes to faulty://. FAULTY_FILE_SIZE=BYTES limits the size of files that workers write.
"""

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Any

if "FAULTY_DISK" in os.environ or "FAULTY_PERMISSION" in os.environ:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc]
        protocol = "faulty"

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

        def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
            if "FAULTY_PERMISSION" in os.environ:
                raise PermissionError(errno.EACCES, "Permission denied", rpath)
            target, content = Path(rpath), Path(lpath).read_bytes()
            target.parent.mkdir(parents=True, exist_ok=True)
            used = sum(file.stat().st_size for file in target.parent.iterdir())
            free = max(int(os.environ["FAULTY_DISK"]) - used, 0)
            target.write_bytes(content[:free])
            if len(content) > free:
                raise OSError(errno.ENOSPC, "No space left on device", rpath)

    fsspec.register_implementation("faulty", FaultyFileSystem)

if "FAULTY_FILE_SIZE" in os.environ and any("default_worker" in arg for arg in getattr(sys, "orig_argv", [])):
    limit = int(os.environ["FAULTY_FILE_SIZE"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
