"""The error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or circumstance that the user can mend; its text is one sentence: what, where, what was expected."""
