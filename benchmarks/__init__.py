"""Benchmarks: each module measures one claim. Run `python -m benchmarks.NAME` in the root of the checkout."""
