"""MLflow in infra/kubernetes, and the Secrets that its manifests refer to."""

import configparser
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import pytest
import requests

from infra.stack import free_port
from tests.infra.manifests import OVERLAYS, environment, find, pods, rendered, schema_errors, secrets_of


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_answers_the_host_that_the_nodes_use_and_asks_for_a_password(overlay: str) -> None:
    documents = rendered(overlay)
    (server,) = pods(documents)["mlflow"]["spec"]["containers"]
    variables = {v["name"]: v.get("value") for v in server["env"]}
    host = environment(documents)["MLFLOW_TRACKING_URI"].partition("://")[2]
    allowed = variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert any(fnmatch(host, pattern) for pattern in allowed)
    assert "*" not in "".join(allowed)
    assert "basic-auth" in server["args"]
    assert variables["MLFLOW_AUTH_CONFIG_PATH"] == "/etc/mlflow/auth.ini"
    assert find(documents, "Deployment", "mlflow")["spec"]["strategy"] == {"type": "Recreate"}
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 120
    assert find(documents, "ConfigMap", "mlflow-environment")["data"]["MLFLOW_ARTIFACTS_DESTINATION"][:5] == "s3://"


@pytest.mark.long
def test_mlflow_starts_as_its_manifest_says(tmp_path: Path) -> None:
    pod = pods(rendered("dev"))["mlflow"]["spec"]
    (step,), (server,) = pod["initContainers"], pod["containers"]
    made = {secret["metadata"]["name"]: secret["stringData"] for secret in secrets_of("random")}["mlflow-server"]
    made = {key: value.replace("/data/", f"{tmp_path}/") for key, value in made.items()}
    (tmp_path / "auth.ini").write_text(made.pop("auth.ini"))
    port = str(free_port())
    given = {v["name"]: v["value"].replace("5000", port) for v in server["env"] if "value" in v}
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), **made, **given}
    environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as in infra/Dockerfile
    environ["MLFLOW_ARTIFACTS_DESTINATION"] = str(tmp_path / "artifacts")
    subprocess.run(step["command"], env=environ, check=True, timeout=120, capture_output=True)
    assert (tmp_path / "mlflow.db").stat().st_size > 0
    argv = [port if word == "5000" else word.replace("0.0.0.0", "127.0.0.1") for word in server["args"]]
    url = f"http://127.0.0.1:{port}"
    experiments = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    account = (made["MLFLOW_AUTH_ADMIN_USERNAME"], made["MLFLOW_AUTH_ADMIN_PASSWORD"])
    with (tmp_path / "log").open("w") as log, subprocess.Popen(argv, env=environ, stdout=log, stderr=log) as process:
        try:
            for _ in range(180):
                with suppress(requests.ConnectionError):
                    if requests.get(f"{url}/health", headers={"Host": "10.0.0.7:5000"}, timeout=5).ok:
                        break
                time.sleep(1)
            assert requests.get(experiments, timeout=30).status_code == 401
            assert requests.get(experiments, auth=account, timeout=30).status_code == 200
            for host, status in ((f"mlflow:{port}", 200), ("elsewhere.example.com", 403)):
                answer = requests.get(experiments, auth=account, headers={"Host": host}, timeout=30)
                assert answer.status_code == status, host
        finally:
            process.terminate()
            process.wait(30)


def test_secrets_are_random_and_fit_together() -> None:
    first, second = secrets_of("random"), secrets_of("random")
    assert not any(schema_errors(secret) for secret in first)
    of = {secret["metadata"]["name"]: secret["stringData"] for secret in first}
    assert set(of) == {"ray-token", "mlflow-server", "mlflow-client", "store"}
    assert of["mlflow-server"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == of["mlflow-client"]["MLFLOW_TRACKING_PASSWORD"]
    assert len(of["ray-token"]["auth_token"]) == 64
    random = [value for values in of.values() for key, value in values.items() if re.search("token|PASS|SECRET", key)]
    assert not [value for value in random if value in json.dumps(second)]
    assert of["mlflow-server"]["auth.ini"].endswith("database_uri = sqlite:////data/mlflow_auth.db\n")


def test_secrets_hold_the_database_and_keys_of_the_environment() -> None:
    uri = "postgresql+psycopg2://mlflow:a%40b@host.db.example.com:5432/mlflow"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    of = {
        secret["metadata"]["name"]: secret["stringData"]
        for secret in secrets_of("environment", MLFLOW_BACKEND_STORE_URI=f"{uri}?sslmode=require", **keys)
    }
    assert of["store"] == keys
    assert of["mlflow-server"]["MLFLOW_BACKEND_STORE_URI"] == f"{uri}?sslmode=require"
    settings = configparser.ConfigParser()  # as MLflow reads them
    settings.read_string(of["mlflow-server"]["auth.ini"])
    assert settings["mlflow"]["database_uri"] == f"{uri}_auth?sslmode=require"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        secrets_of("environment")
    assert failure.value.returncode == 2
    assert "AWS_ACCESS_KEY_ID is not set" in failure.value.stderr
    assert "store" not in [secret["metadata"]["name"] for secret in secrets_of("none")]
