"""Keep to one network: a name such as models:/NAME@ALIAS may lead to another one while the server runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline import storage
from pipeline.networks.sources import ModelSource, find_model
from pipeline.settings import UserError


@dataclass(frozen=True)
class ServedModel:
    """A model as it was when the server started."""

    source: ModelSource
    sha256: str
    """Checksum of the weights in hexadecimal; "" for bicubic interpolation."""

    @property
    def name(self) -> str:
        """The model as the user named it, without secrets."""
        return storage.redact(self.source.text)

    def find_here(self) -> ModelSource:
        """Return where this machine has the model, because another node may have no such file, or a cache of its own.

        Raises:
            UserError: if there is no such model.
        """
        is_here = not self.source.weights or storage.exists(self.source.weights)
        return self.source if is_here else find_model(self.source.text)

    def check(self, source: ModelSource) -> None:
        """Check that a model is still the same.

        Raises:
            UserError: if its weights are others, or cannot be read.
        """
        if checksum(source) != self.sha256:
            raise UserError(
                f"the weights of {self.name} have changed since the server started, or differ between nodes: expected "
                f"the SHA-256 {self.sha256[:12]}…; start the server again to serve the new ones"
            )


def checksum(source: ModelSource) -> str:
    """Return the SHA-256 of a model's weights in hexadecimal; "" for bicubic interpolation.

    Raises:
        UserError: if they cannot be read.
    """
    if not source.weights:
        return ""
    try:
        content = storage.read(source.weights)
    except (OSError, ValueError) as error:
        raise _unreadable(source, storage.one_line(error, 200)) from None
    if content is None:
        raise _unreadable(source, "there is no such file")
    return hashlib.sha256(content).hexdigest()


def _unreadable(source: ModelSource, reason: str) -> UserError:
    return UserError(
        f"cannot read the weights {storage.redact(source.weights)}: {storage.redact(reason)}; expected an existing file"
    )
