"""The error that a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A problem that the user can fix. Its text is one sentence: what is wrong, where, and what was expected."""
