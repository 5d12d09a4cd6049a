"""The discriminators, one file each. To add one, write its file, and add its settings and an entry to `DISCRIMINATORS`.

This module imports no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from sr_model.deferred import deferred
from sr_model.discriminators.discriminator import DiscriminatorKind
from sr_model.discriminators.settings import DiscriminatorSettings, PaperSettings, PatchSettings

_ALL = (
    DiscriminatorKind(
        "patch",
        PatchSettings,
        deferred("sr_model.discriminators.patch:build"),
        stride=lambda settings: 2**settings.layers,
    ),
    DiscriminatorKind("paper", PaperSettings, deferred("sr_model.discriminators.paper:build"), stride=lambda _: 16),
)

DISCRIMINATORS: dict[str, DiscriminatorKind] = {kind.name: kind for kind in _ALL}
"""All discriminators by name; the first one is the default."""

__all__ = ["DISCRIMINATORS", "DiscriminatorKind", "DiscriminatorSettings"]
