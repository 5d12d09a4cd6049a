"""Files at any local path or fsspec URL, JSON documents, and downloads."""

from pipeline.storage.documents import (
    DELETE_AND_RERUN,
    DamagedFileError,
    parse_document,
    read_document,
    read_expendable,
    report_once,
    write_document,
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
    sizes,
    sweep,
    write,
)
from pipeline.storage.locations import is_url, locate, real_name
from pipeline.storage.locks import HeldError, hold
from pipeline.storage.private import private_folder
from pipeline.storage.redaction import redact
from pipeline.storage.retries import is_local, with_retries
from pipeline.storage.texts import fingerprint, one_line, plain_name, printable, unicode_name

__all__ = [
    "DELETE_AND_RERUN",
    "DamagedFileError",
    "HeldError",
    "copy",
    "create",
    "exists",
    "fingerprint",
    "flush",
    "hold",
    "is_local",
    "is_url",
    "local_copy",
    "locate",
    "names",
    "one_line",
    "parse_document",
    "plain_name",
    "printable",
    "private_folder",
    "put",
    "read",
    "read_document",
    "read_expendable",
    "real_name",
    "redact",
    "remove",
    "report_once",
    "sha256",
    "size",
    "sizes",
    "sweep",
    "unicode_name",
    "with_retries",
    "write",
    "write_document",
]
