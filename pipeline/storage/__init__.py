"""Files at any local path or fsspec URL, JSON documents, and downloads."""

from pipeline.storage.documents import (
    DamagedFileError,
    parse_document,
    read_document,
    read_json,
    write_document,
    write_json,
)
from pipeline.storage.files import (
    copy,
    create,
    exists,
    flush,
    local_copy,
    names,
    put,
    read,
    remove,
    sha256,
    size,
    sweep,
    write,
)
from pipeline.storage.retries import with_retries
from pipeline.storage.texts import fingerprint, one_line, plain_name

__all__ = [
    "DamagedFileError",
    "copy",
    "create",
    "exists",
    "fingerprint",
    "flush",
    "local_copy",
    "names",
    "one_line",
    "parse_document",
    "plain_name",
    "put",
    "read",
    "read_document",
    "read_json",
    "remove",
    "sha256",
    "size",
    "sweep",
    "with_retries",
    "write",
    "write_document",
    "write_json",
]
