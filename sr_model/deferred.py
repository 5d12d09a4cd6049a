"""Functions that are imported when they are first called."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any


def deferred(path: str) -> Callable[..., Any]:
    """Return a function that imports another function when it is called, and calls it.

    The registries name their files in this way: torch takes seconds to import, and a command checks its settings, which
    the registries hold, before it imports torch.

    Args:
        path: module and name, such as "sr_model.networks.srresnet:build".
    """

    def call(*arguments: Any) -> Any:
        return pkgutil.resolve_name(path)(*arguments)

    call.__qualname__ = path
    return call
