"""Rules of Prometheus and the dashboard of Grafana: their expressions, and the metrics that they read."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from pipeline.cluster.metrics import METRICS
from tests.conftest import ROOT

FOLDER = ROOT / "infra" / "monitoring"
PROMETHEUS: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {f"alert {rule['alert']}": rule["expr"] for rule in RULES} | {
    f"panel {panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
}
each_expression = pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)

RARE = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_memory_manager_worker_eviction_total"}
"""Metrics that Ray reports only where there is a GPU, or after it killed a process."""
OWN = {name for metric in METRICS for name in metric.served}
"""Metrics of the pipeline."""
MEASURED_IN_CPP = {"ray_running_jobs"}
"""Metrics that no Python file of Ray names."""


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression."""
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "1m"))
    return set(re.findall(r"\b(?:ray_\w+|up)(?=\{)", str(parsed)))


@cache
def sources_of_ray() -> str:
    """Return the sources of Ray that name metrics: what its Python parts measure, and its own dashboards."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    places = ["dashboard/modules/reporter", "dashboard/modules/metrics/dashboards", "train/v2/_internal/metrics"]
    files = [file for place in places for file in sorted((folder / place).rglob("*.py"))]
    files += [folder / "data/_internal/stats.py", folder / "data/_internal/execution/interfaces/op_runtime_metrics.py"]
    return "\n".join(file.read_text() for file in files)


@each_expression
def test_an_expression_is_valid_and_its_metrics_are_known_to_the_installed_ray(expression: str) -> None:
    names = metrics_of(expression)
    assert names
    assert {name for name in names if name.startswith("ray_sr_")} <= OWN
    for name in names - MEASURED_IN_CPP - OWN - {"up"}:
        bare = name.removeprefix("ray_").removeprefix("data_")  # Ray adds its own prefix, and Ray Data another one
        assert re.search(rf"\b(ray_|data_)?{bare}\b", sources_of_ray()), name


@each_expression
def test_prometheus_keeps_what_an_expression_reads(expression: str) -> None:
    dropped = [rule for job in PROMETHEUS["scrape_configs"] for rule in job["metric_relabel_configs"]]
    patterns = [rule["regex"] for rule in dropped if rule["action"] == "drop"]
    assert patterns
    assert not any(re.fullmatch(pattern, name) for pattern in patterns for name in metrics_of(expression))


def test_each_metric_of_the_pipeline_is_shown_and_documented() -> None:
    shown = set().union(*map(metrics_of, EXPRESSIONS.values()))
    page = (ROOT / "docs/guides/operations.md").read_text()
    rows = dict(re.findall(r"^\| `(ray_sr_\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {
        metric.served[0].removesuffix("_bucket"): f"{metric.kind} | `{metric.label}` | {metric.description}"
        for metric in METRICS
    }
    assert all(set(metric.served) & shown for metric in METRICS)


def test_ray_is_found_through_its_head_with_the_token() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    assert job["job_name"] == "ray"
    assert discovery["url"] == "http://ray-head:8265/api/prometheus/sd"
    assert discovery["authorization"] == {"credentials_file": "/run/secrets/ray_token"}
    assert PROMETHEUS["rule_files"] == ["rules.yml"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_happened_and_the_docs_say_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    page = (ROOT / "docs/guides/operations.md").read_text()
    assert f"| `{rule['alert']}` |" in page


def test_the_docs_describe_no_other_alerts() -> None:
    page = (ROOT / "docs/guides/operations.md").read_text()
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", page, re.MULTILINE)) == {rule["alert"] for rule in RULES}


def test_the_dashboard_reads_the_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((FOLDER / "datasource.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((FOLDER / "dashboards.yml").read_text())["providers"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    assert all(part["datasource"] == wanted for panel in PANELS for part in [panel, *panel["targets"]])
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def test_panels_have_titles_descriptions_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_promtool_accepts_rules_and_configuration_and_the_alerts_fire() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    for arguments in (
        ["check", "rules", str(FOLDER / "rules.yml")],
        ["check", "config", "--syntax-only", str(FOLDER / "prometheus.yml")],
        ["test", "rules", str(ROOT / "tests" / "infra" / "rules_test.yml")],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


SCRIPT = """
import sys, threading, time, urllib.request
import ray, ray.data
from ray.train import ScalingConfig, RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
ray.init(num_cpus=2, object_store_memory=10**8, _metrics_export_port=int(sys.argv[1]), _temp_dir=sys.argv[2])
for _ in ray.data.range(40, override_num_blocks=4).map(lambda row: row, num_cpus=1).iter_rows():
    pass
def train():
    time.sleep(20)
run = RunConfig(name="example", storage_path=sys.argv[2] + "/runs")
trainer = DataParallelTrainer(train, scaling_config=ScalingConfig(num_workers=1), run_config=run)
training = threading.Thread(target=trainer.fit)
training.start()
while training.is_alive():
    time.sleep(1)
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=20) as answer:
        print(answer.read().decode())
"""


@pytest.fixture
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run tasks and a training, and return all that the metrics of the node say."""
    from infra.stack import free_port

    folder = tmp_path_factory.mktemp("r")  # short, because sockets are below it
    variables = {"RAY_TRAIN_METRICS_ENABLED": "1", "RAY_metrics_report_interval_ms": "2000"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(free_port()), str(folder)],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ray_exports_the_metrics_that_panels_and_rules_read(exported: str) -> None:
    found = set(re.findall(r"^(ray_\w+)", exported, re.MULTILINE))
    wanted = {name for expression in EXPRESSIONS.values() for name in metrics_of(expression)} - {"up"}
    assert wanted - OWN - RARE - found == set()
    assert 'ray_train_run_name="example"' in exported
