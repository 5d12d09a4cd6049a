"""Run the command `export` in this process."""

import sys

import pytest

from pipeline import export


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", *map(str, arguments)])
        export.main()
