"""Run the checks: `python -m tests.toys PATCH_SET FOLDER OPTIONS`."""

from tests.toys.checks import main

main()
