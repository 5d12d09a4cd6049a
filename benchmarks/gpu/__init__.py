"""Measure the pipeline on one GPU, without Ray and MLflow; `python -m benchmarks.gpu --help` says more."""
