"""The metrics of the pipeline as Prometheus reads them from a node."""

import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline.cluster import metrics
from pipeline.tracking import JournalRecord
from pipeline.training.figures import show_figures

MEANS = {
    "train/objective": 0.25, "train/steps_total": 100.0, "train/patches_per_s": 12.5, "train/data_wait_share": 0.125,
    "train/skipped": 2.0,
}  # fmt: skip


def served() -> dict[tuple[str, str], float]:
    """Return the values of the pipeline's metrics by name and label, as the node of this process serves them."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        (sample.name, sample.labels.get("training") or sample.labels["stage"]): sample.value
        for sample in samples
        if sample.name.startswith("ray_sr_")
    }


@pytest.mark.usefixtures("ray_session")
def test_a_node_serves_all_metrics() -> None:
    metrics.count_images("a stage", 5, 2)
    metrics.count_images("a stage", 3, 0)
    records = [
        JournalRecord("train", 10, 0, MEANS),
        JournalRecord("validation", 10, 0, {"val/psnr_y": 31.5}),
        JournalRecord("train", 20, 0, MEANS),
    ]
    show_figures("a training", records, backlog=7)
    metrics.observe_checkpoint("a training", 0.3)
    ends = time.monotonic() + 30  # Ray collects them every ten seconds
    names = {name for metric in metrics.METRICS for name in metric.served}
    while names - {name for name, _ in served()} and time.monotonic() < ends:
        time.sleep(1)
    values = served()
    assert values["ray_sr_images_total", "a stage"] == 8
    assert values["ray_sr_rejected_images_total", "a stage"] == 2
    assert {name: values[name, "a training"] for name in names if "images" not in name} == {
        "ray_sr_training_step": 20,
        "ray_sr_training_planned_steps": 100,
        "ray_sr_training_loss": 0.25,
        "ray_sr_training_psnr_db": 31.5,
        "ray_sr_training_patches_per_second": 12.5,
        "ray_sr_training_data_wait_share": 0.125,
        "ray_sr_training_skipped_steps": 2,
        "ray_sr_mlflow_backlog_records": 7,
        "ray_sr_checkpoint_seconds_bucket": 1,
        "ray_sr_checkpoint_seconds_sum": pytest.approx(0.3, abs=0.1),  # Ray keeps the class, from 0.2 to 0.5
        "ray_sr_checkpoint_seconds_count": 1,
    }


def test_without_ray_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked: list[metrics.Metric] = []
    monkeypatch.setattr(metrics, "_instrument", asked.append)
    metrics.count_images("nobody counts", 1, 1)
    assert asked == []
