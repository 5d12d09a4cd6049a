"""How busy this machine is, measured by MLflow."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.tracking.mlflow_store import without_info_logs


def system_metrics() -> Callable[[], dict[str, float]]:
    """Return a function that measures processor, memory, disk, network and GPUs of this machine, by MLflow's names."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    with without_info_logs():
        monitor = SystemMetricsMonitor(run_id="")

    def measure() -> dict[str, float]:
        monitor.collect_metrics()
        values = {f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        return values

    return measure
