"""The reasons for which an image cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RejectionKind(StrEnum):
    """Kind of reason, as summaries count it."""

    NO_IMAGE = "not an image"
    """The content has none of the known formats."""
    DAMAGED = "damaged"
    """The file cannot be decoded, or cannot be extracted from its archive."""
    UNREADABLE = "unreadable"
    """The storage did not deliver the file, or there was not enough memory; a later run may be able to read it."""
    UNSUPPORTED = "unsupported pixel type"
    """The file is intact, but has a property that is not read, such as floating-point samples."""
    TOO_LARGE = "too large"
    """The image exceeds the largest number of pixels, or the file a limit of the decoders."""
    TOO_SMALL = "too small"
    DUPLICATE = "duplicate"
    """Another image of the patch set has the same content."""
    MISMATCHED = "mismatched pair"
    """An HR and an LR image do not belong together."""


@dataclass(frozen=True)
class Rejection:
    """The reason for which one image cannot be used; its text is the detail."""

    kind: RejectionKind
    detail: str
    """Completes a sentence that begins with the image's name, such as "is no image of a known format"."""

    def __str__(self) -> str:
        return self.detail


class RejectedImageError(Exception):
    """An image cannot be used; the text is the detail of the rejection."""

    def __init__(self, kind: RejectionKind, detail: str) -> None:
        super().__init__(kind, detail)
        self.rejection = Rejection(kind, detail)

    def __str__(self) -> str:
        return self.rejection.detail
