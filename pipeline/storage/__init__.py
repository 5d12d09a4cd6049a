"""Files at any path or fsspec URL, and downloads."""

from pipeline.storage.documents import DamagedFileError, parse_document, read_document, write_document
from pipeline.storage.files import (
    copy,
    create,
    exists,
    flush,
    local_copy,
    names,
    patiently,
    put,
    read,
    read_json,
    remove,
    sha256,
    size,
    sweep,
    write,
    write_json,
)
from pipeline.storage.names import fingerprint, one_line, plain_name

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
    "patiently",
    "plain_name",
    "put",
    "read",
    "read_document",
    "read_json",
    "remove",
    "sha256",
    "size",
    "sweep",
    "write",
    "write_document",
    "write_json",
]
