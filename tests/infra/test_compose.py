"""The stack of `infra/compose.yaml`: its files against the schema, and what the schema does not say."""

import base64
import configparser
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import yaml

from infra.compose_secrets import create_secrets
from infra.stack import free_port
from tests.conftest import ROOT
from tests.infra.dockerfile import read_stages
from tests.infra.engine import PULLED, Engine, engine_socket

INFRA = ROOT / "infra"
OTHER = Path(__file__).parent / "without_registry"
"""The replacements of images that cannot be pulled."""
STACK: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())
"""From github.com/compose-spec/compose-spec, schema/compose-spec.json at commit 170098ba (2026-06-23), Apache-2.0."""

BUILT = {name for name, service in SERVICES.items() if "build" in service}
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def source_of(package: str, file: str) -> str:
    """Return the text of a file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / file).read_text()


@pytest.mark.parametrize("stack", [STACK, GPU], ids=["compose", "gpu"])
def test_the_files_follow_the_schema(stack: dict[str, Any]) -> None:
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert list(validator.iter_errors(stack)) == []
    misspelled = {**stack, "services": {"one": {"image": "x", "read_onyl": True}}}
    assert list(validator.iter_errors(misspelled)), "the schema accepts every key"


@each_service
def test_ports_are_published_on_the_loopback_interface_alone(service: dict[str, Any]) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))
    assert service.get("network_mode") is None


@each_service
def test_a_container_has_few_rights(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    assert "docker.sock" not in json.dumps(service)


@each_service
def test_a_server_restarts_and_says_if_it_is_healthy(service: dict[str, Any]) -> None:
    assert service["restart"] == "unless-stopped"
    if "build" in service:  # the image has the check
        stages = read_stages()
        url = service.get("environment", {}).get("SR_HEALTH_URL") or " ".join(
            stages[service["build"]["target"]].arguments("ENV")
        )
        assert "http://127.0.0.1:" in url
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


@each_service
def test_images_have_a_version_or_are_built_here(service: dict[str, Any]) -> None:
    if "build" in service:
        build = service["build"]
        assert (INFRA / build["context"] / build["dockerfile"]).exists()
        assert build["target"] in read_stages()
    else:
        assert re.search(r":v?\d[\w.-]+$", service["image"]), service["image"]


@each_service
def test_what_a_service_uses_exists(service: dict[str, Any]) -> None:
    for secret in service.get("secrets", []):
        name = secret if isinstance(secret, str) else secret["source"]
        assert name in STACK["secrets"]
    for config in service.get("configs", []):
        assert (INFRA / STACK["configs"][config["source"]]["file"]).exists()
    for volume in service.get("volumes", []):
        if isinstance(volume, dict) and "source" in volume:
            assert volume["source"] in STACK["volumes"]
    assert set(service["networks"]) <= STACK["networks"].keys()
    for other, condition in service.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert other in SERVICES


@each_service
def test_no_secret_stands_in_the_file(service: dict[str, Any]) -> None:
    for name, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY|AUTH_CONFIG", name):
            assert value.startswith("/run/secrets/"), name
    assert not re.search(r"://[^/\s]+:[^/\s]+@", json.dumps(service))


def test_everything_that_an_image_writes_to_is_mounted() -> None:
    for name in BUILT:
        places = [volume["target"] for volume in SERVICES[name]["volumes"] if isinstance(volume, dict)]
        places += SERVICES[name].get("tmpfs", [])
        assert {"/tmp", "/data" if name == "s3" else "/home/sr"} <= set(places), name


def test_only_mlflow_reaches_the_database() -> None:
    assert STACK["networks"]["database"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert [name for name, one in SERVICES.items() if "database" in one["networks"]] == ["postgres", "mlflow"]


def test_prometheus_and_grafana_start_only_with_their_profile() -> None:
    assert {name: one["profiles"] for name, one in SERVICES.items() if "profiles" in one} == {
        "prometheus": ["monitoring"], "grafana": ["monitoring"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_nodes_of_ray_have_a_token_enough_shared_memory_and_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "ray_token" in service["secrets"]
    options = dict(part.removeprefix("--").partition("=")[::2] for part in service["command"] if part.startswith("--"))
    assert int(service["shm_size"].removesuffix("gb")) * 2**30 > 1.5 * int(options["object-store-memory"])
    known = source_of("ray", "scripts/scripts.py")
    assert all(f'"--{option}"' in known for option in options), options
    drain = re.search(r'"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", (\d+)', source_of("ray", "_private/ray_constants.py"))
    assert drain is not None
    assert int(service["stop_grace_period"].removesuffix("s")) > int(drain[1])


def test_options_of_mlflow_and_seaweedfs_exist() -> None:
    known = source_of("mlflow", "cli/__init__.py") + source_of("mlflow", "utils/cli_args.py")
    options = [part.partition("=")[0] for part in SERVICES["mlflow"]["command"] if part.startswith("--")]
    assert [option for option in options if f'"{option}"' not in known] == []
    weed = Path(sysconfig.get_path("scripts"), "weed")
    if weed.exists():
        printed = subprocess.run([weed, "mini", "-h"], capture_output=True, text=True, check=False)
        for option in SERVICES["s3"]["command"][2:]:
            assert re.search(rf"^  {option.partition('=')[0]}\b", printed.stdout + printed.stderr, re.MULTILINE), option


def test_clients_and_servers_agree_on_addresses() -> None:
    ray, mlflow, s3 = (SERVICES[name] for name in ("ray-head", "mlflow", "s3"))
    assert ray["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert {"mlflow:5000", "localhost:5000"} <= set(mlflow["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    assert ray["environment"]["AWS_ENDPOINT_URL"] == mlflow["environment"]["MLFLOW_S3_ENDPOINT_URL"] == "http://s3:8333"
    bucket = next(option.partition("=")[2] for option in s3["command"] if option.startswith("-bucket"))
    assert ray["environment"]["SR_HOME"].startswith(f"s3://{bucket}/")
    assert f"--artifacts-destination=s3://{bucket}/mlflow" in mlflow["command"]
    assert "--address=ray-head:6379" in SERVICES["ray-worker"]["command"]


def test_the_gpu_file_gives_all_gpus_to_one_worker() -> None:
    worker, head = GPU["services"]["ray-worker"], GPU["services"]["ray-head"]
    assert GPU["services"].keys() == {"ray-head", "ray-worker"}
    assert worker["deploy"]["replicas"] == 1
    assert worker["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert worker["image"] == head["image"] != SERVICES["ray-worker"]["image"]
    assert worker["build"]["args"]["DEVICE"] == "cuda"


def test_secrets_are_made_once_for_all_services_and_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    created = create_secrets(folder)
    assert set(created) == set(STACK["secrets"]) == {file.name for file in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    first = {file.name: file.read_text() for file in folder.iterdir()}
    assert create_secrets(folder) == []
    assert {file.name: file.read_text() for file in folder.iterdir()} == first
    passwords = [text for text in first.values() if re.fullmatch("[0-9a-f]{64}", text)]
    assert len(set(passwords)) == len(first) - 2
    users = configparser.ConfigParser()
    users.read(folder / "mlflow_auth")
    assert users["mlflow"]["admin_password"] == first["mlflow_password"]
    assert users["mlflow"]["database_uri"] == f"{first['mlflow_database']}_auth"
    assert f":{first['postgres_password']}@postgres:5432/mlflow" in first["mlflow_database"]


def test_a_lost_secret_is_made_again_alone(tmp_path: Path) -> None:
    create_secrets(tmp_path)
    (tmp_path / "grafana_password").unlink()
    assert create_secrets(tmp_path) == ["grafana_password"]


def compose() -> list[str] | None:
    """Return the command of Docker Compose, or None if it is not installed."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    return None


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=["cpu", "gpu"])
def test_docker_compose_accepts_the_files(files: list[str]) -> None:
    command = compose()
    if command is None:
        pytest.skip("Docker Compose is not installed")
    options = [part for file in files for part in ("--file", str(INFRA / file))]
    done = subprocess.run(
        [*command, *options, "--profile", "monitoring", "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() == SERVICES.keys()


@pytest.fixture
def protected_mlflow(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Start MLflow as the stack does, but with SQLite; return its address and the administrator's password."""
    folder = tmp_path / "secrets"
    create_secrets(folder)
    users, place = (folder / "mlflow_auth").read_text(), tmp_path / "users.ini"
    place.write_text(re.sub(r"database_uri = .*", f"database_uri = sqlite:///{tmp_path}/users.db", users))
    variables = tmp_path / "variables"
    variables.mkdir()
    (variables / "MLFLOW_BACKEND_STORE_URI").write_text(f"sqlite:///{tmp_path}/runs.db")
    (variables / "MLFLOW_FLASK_SERVER_SECRET_KEY").write_text((folder / "mlflow_sessions").read_text())
    port = free_port()
    environment = {
        **os.environ, **SERVICES["mlflow"]["environment"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SECRETS_FOLDER": str(variables),
        "MLFLOW_AUTH_CONFIG_PATH": str(place), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
    }  # fmt: skip
    changed = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": str(tmp_path / "artifacts")}
    command = [
        f"{option}={changed.get(option, value)}" if value else option
        for option, _, value in (part.partition("=") for part in SERVICES["mlflow"]["command"])
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [INFRA / "images" / "with-secrets", *command], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            time.sleep(0.5)
        yield url, (folder / "mlflow_password").read_text()
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_mlflow_asks_for_the_password_and_a_known_name(protected_mlflow: tuple[str, str]) -> None:
    url, password = protected_mlflow

    def ask(user: str, host: str = "") -> int:
        request = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default")
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        if host:
            request.add_header("Host", host)
        try:
            return int(urllib.request.urlopen(request, timeout=60).status)
        except urllib.error.HTTPError as error:
            return error.code

    assert ask(f"admin:{password}") == 200
    assert ask("") == 401
    assert ask("admin:password1234") == 401
    assert ask(f"admin:{password}", "evil.example") == 403


def in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_stack_starts_and_finishes_a_job(engine: Engine, build_arguments: dict[str, str], tmp_path: Path) -> None:
    command = compose()
    if command is None:
        pytest.skip("Docker Compose is not installed")
    if any(map(in_use, (5000, 8265, 8333))):
        pytest.skip("a port of the stack is in use")
    create_secrets(INFRA / "secrets")
    stack = [*command, "--project-name", "sr-test", "--file", str(INFRA / "compose.yaml")]
    for target, image in (("pipeline", "sr-pipeline:cpu"), ("mlflow", "sr-mlflow"), ("s3", "sr-s3")):
        engine.build(target, image, build_arguments)
    with engine_socket(engine, "sr-test", tmp_path) as environment:
        if build_arguments["BASE"] != PULLED:
            stack += ["--file", str(OTHER / "compose.yaml")]
            postgres = ["--file", str(OTHER / "postgres.Dockerfile"), "--tag", "localhost/sr-test-postgres"]
            arguments = [f"--build-arg=BASE={build_arguments['BASE']}", *engine.options]
            assert engine.run("build", *postgres, *arguments, str(OTHER)).returncode == 0

        def run(*arguments: str, check: bool = True) -> str:
            done = subprocess.run([*stack, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=check)
            return done.stdout

        try:
            run("up", "--no-build", "--detach", "--wait", "--wait-timeout", "900")
            job = ["ray", "job", "submit", "--", "sr-run", "--config", "/opt/sr/configs/demo.yaml"]
            printed = run("exec", "-T", "ray-head", *job, "--train.length", "30 steps")
            assert "report: s3://super-resolution/runs/workflows/" in printed
            assert ask_mlflow() == {"FINISHED"}
            print(run("ps"))
        finally:
            run("logs", "--no-color", "--tail", "30", check=False)
            run("down", "--volumes", check=False)


def ask_mlflow() -> set[str]:
    """Return the states of the runs in the stack's MLflow."""
    password = (INFRA / "secrets" / "mlflow_password").read_text()
    found = requests.post(
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/search",
        json={"experiment_ids": ["1"], "max_results": 100},
        auth=("admin", password),
        timeout=60,
    )
    assert found.status_code == 200, found.text
    return {run["info"]["status"] for run in found.json()["runs"]}
