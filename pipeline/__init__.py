"""Super-resolution pipeline: from photographs to a patch set, a trained network and its scores.

The modules of this package are its commands. Ray and MLflow read environment variables when they are imported, so the
defaults below are set before any module of the pipeline imports either of them.
"""

import os

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Settings of glibc for the processes that this one starts, among them Ray's workers on this machine. By default, glibc
returns memory to the system after each step of a training and each image, and gets it back page by page."""

_DEFAULTS = ALLOCATOR | {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage report leaves the machine unasked
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the same values
    "RAY_AIR_NEW_OUTPUT": "0",  # the pipeline prints a table of its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the grid reports each failure in a sentence
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a validation score is not in every report
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # fail within seconds instead of four minutes: the journal keeps all
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would show the server's password
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model needs no uv.lock of the folder in which the command runs
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
