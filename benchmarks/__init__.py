"""Benchmarks: each module measures one claim. Run `python -m benchmarks.NAME` in the root of the checkout."""

import pipeline  # noqa: F401 - sets Ray's environment defaults before a benchmark imports Ray
