"""Ask Ray Serve how many replicas run, without waiting for long or asking often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_FRESH_S = 1.0
"""Seconds for which an answer is used again."""
_PATIENCE_S = 5.0
"""Seconds after which Ray Serve counts as unable to answer."""


class ReplicaCount:
    """The number of replicas that run.

    Args:
        look: returns it; may block and raise anything.
        patience_s: seconds to wait for it.
    """

    def __init__(self, look: Callable[[], int], patience_s: float = _PATIENCE_S) -> None:
        self._look = look
        self._patience_s = patience_s
        self._looking: asyncio.Future[int] | None = None
        self._begun = 0.0

    async def read(self) -> int:
        """Return the number; 0 if it cannot be found out. Calls at the same time share one look."""
        if self._looking is None or (self._looking.done() and time.monotonic() > self._begun + _FRESH_S):
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._look))
            self._begun = time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(self._looking), self._patience_s)
        except Exception:  # Ray raises exceptions of many classes
            return 0
