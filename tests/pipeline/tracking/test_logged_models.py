"""The models that trainings log: MLflow loads and serves them, and the pipeline finds their weights by name."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline import tracking
from pipeline.networks import bundled
from pipeline.networks.sources import find_model
from pipeline.networks.upscaling import upscale_image
from pipeline.networks.weights import load_network
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.tracking import ModelVersion, TrackedRun, Tracker, artifacts, describe_model, fetch_weights, model_code
from pipeline.tracking.logged_models import REQUIREMENTS
from tests.conftest import ROOT, random_image
from tests.services import Services, free_port

NAME = "network"
WEIGHTS = Path(bundled.weights(bundled.DEFAULT))


@dataclass(frozen=True)
class Logged:
    """A home whose MLflow has one training below a workflow, with a registered model."""

    config: Config
    run: TrackedRun
    parent: TrackedRun


def log(config: Config, folder: Path) -> Logged:
    tracker = Tracker(config)
    with (
        tracker.run(str(folder / "workflow"), "parent", {}) as parent,
        tracker.run(str(folder / "training"), "child", {}, parent.id) as run,
    ):
        model = describe_model(config, "a-training", WEIGHTS.read_bytes(), {"val/psnr_y": 28.1})
        for _ in range(2):  # the second time changes nothing
            assert run.log_model(model)
        assert run.log_scores({"held-out/psnr_y": 28.2})
        version = ModelVersion(NAME, run, "a training", 4, "images", {"held-out/psnr_y": 28.2})
        assert tracking.register_version(tracker, version, "best-psnr", "held-out/psnr_y")
    return Logged(config, run, parent)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Logged:
    home = tmp_path_factory.mktemp("logged")
    shutil.copy(empty_database, home / "mlflow.db")
    return log(parse([f"home={home}", f"cache={home / 'cache'}"], "run", ""), home)


@pytest.fixture
def global_uri(logged: Logged) -> Iterator[None]:
    """Let MLflow itself find the store, as in a program of a user."""
    mlflow.set_tracking_uri(logged.config.tracking_uri)
    yield
    mlflow.set_tracking_uri(None)


def test_mlflow_loads_a_registered_model_and_refuses_other_input(logged: Logged, global_uri: None) -> None:
    images = np.stack([random_image(21, 17, seed) for seed in range(2)])
    net = load_network(str(WEIGHTS))
    for uri in (f"models:/{NAME}@best-psnr", f"runs:/{logged.run.id}/model"):
        model = mlflow.pyfunc.load_model(uri)
        enlarged = model.predict(images)
        assert (enlarged.shape, enlarged.dtype) == ((2, 84, 68, 3), np.uint8)
        for image, result in zip(images, enlarged, strict=True):
            assert np.abs(upscale_image(net, image).astype(int) - result).max() <= 1
    facts = {"scale": 4, "architecture": "SRResNet", "training": "a-training", "scores": {"val/psnr_y": 28.1}}
    assert model.metadata.metadata == facts
    assert model.input_example.dtype == np.uint8
    for other in (images.astype(np.float32) / 255, images[0], images[..., :1]):
        with pytest.raises(mlflow.exceptions.MlflowException, match="schema"):
            model.predict(other)


def test_a_model_has_no_pickle_and_names_no_place(logged: Logged) -> None:
    (folder,) = Path(logged.config.outputs).glob("mlartifacts/models/*/artifacts")
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert {name.rpartition(".")[2] for name in names} <= {
        "MLmodel", "yaml", "txt", "json", "py", "safetensors", "registered_model_meta"
    }  # fmt: skip
    assert (folder / "artifacts/model.safetensors").read_bytes() == WEIGHTS.read_bytes()
    for file in (folder / "MLmodel", folder / "conda.yaml", folder / "requirements.txt"):
        assert "/tmp" not in file.read_text()
        assert str(ROOT) not in file.read_text()


def test_a_model_requires_what_its_code_imports_in_the_versions_of_the_pipeline() -> None:
    imported: set[str] = set()
    files = [Path(model_code.__file__), *(ROOT / "sr_model/networks").glob("*.py")]
    for file in files:  # which grows by the modules of sr_model that these import
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                name = str(node.module) if isinstance(node, ast.ImportFrom) else node.names[0].name
                imported.add(name.partition(".")[0])
                module = (ROOT / name.replace(".", "/")).with_suffix(".py")
                files += [module] if name.startswith("sr_model") and module.exists() and module not in files else []
    required = {text.partition(">")[0]: text for text in REQUIREMENTS}
    assert imported - sys.stdlib_module_names - {"sr_model"} == set(required)
    ranges = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, text in required.items():
        (own,) = (entry for entry in ranges if entry.startswith(f"{name}>"))
        assert text.startswith(own)


def test_a_version_links_to_its_run_and_the_model_has_its_scores(logged: Logged) -> None:
    client = mlflow.MlflowClient(logged.config.tracking_uri)
    version = client.get_model_version_by_alias(NAME, "best-psnr")
    assert version.description.splitlines() == [
        f"a training ([run](#/experiments/1/runs/{logged.run.id}))", "", "- held-out/psnr_y: 28.2"
    ]  # fmt: skip
    (model,) = client.search_logged_models(["1"])
    assert (model.source_run_id, str(model.status), model.tags["training"]) == (logged.run.id, "READY", "a-training")
    assert [(metric.key, metric.value) for metric in model.metrics] == [("held-out/psnr_y", 28.2)]
    outputs = client.get_run(logged.run.id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]


def test_a_model_that_did_not_arrive_completely_is_sent_again(home: Path) -> None:
    config = parse([f"home={home}", f"cache={home / 'cache'}"], "run", "")
    tracker = Tracker(config)
    client = mlflow.MlflowClient(tracker.uri)
    with tracker.run(str(home / "work"), "name", {}) as run:
        begun = client.create_logged_model(tracker.experiment_id, "model", run.id)
        with pytest.raises(UserError, match=r"has no single \.safetensors file"):
            fetch_weights(config, f"runs:/{run.id}")
        assert run.log_model(describe_model(config, "a-training", WEIGHTS.read_bytes(), {}))
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert (model.model_id, str(model.status)) == (begun.model_id, "READY")
    assert Path(fetch_weights(config, f"runs:/{run.id}")).read_bytes() == WEIGHTS.read_bytes()


def test_every_name_of_a_model_leads_to_its_weights(logged: Logged) -> None:
    (model,) = mlflow.MlflowClient(logged.config.tracking_uri).search_logged_models(["1"])
    run = f"runs:/{logged.run.id}"
    names = [
        f"models:/{NAME}/1", f"models:/{NAME}@best-psnr", f"models:/{model.model_id}", run, f"{run}/model",
        f"{run}/model/artifacts/model.safetensors", f"runs:/{logged.parent.id}",
    ]  # fmt: skip
    found = {fetch_weights(logged.config, name) for name in names}
    assert [Path(file).read_bytes() for file in found] == [WEIGHTS.read_bytes()]


def test_weights_are_fetched_once(logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_CACHE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged.config.tracking_uri)
    first = find_model(f"models:/{NAME}@best-psnr")
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert first.weights == str(file)
    assert load_network(first.weights).scale == 4
    written = file.stat().st_mtime_ns
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert find_model(f"models:/{NAME}/1", parse([f"tracking.uri={logged.config.tracking_uri}"], "run", "")) == (
        dataclasses.replace(first, text=f"models:/{NAME}/1")
    )
    assert file.stat().st_mtime_ns == written
    named = find_model(f"models:/{NAME}/1", logged.config)
    assert Path(named.weights).is_relative_to(logged.config.cache or "")


def test_a_file_of_a_run_that_changed_is_fetched_again(logged: Logged, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(logged.config.tracking_uri)
    file = tmp_path / "net.safetensors"
    for content in (b"first weights", b"other weights"):  # of the same size
        file.write_bytes(content)
        client.log_artifact(logged.run.id, str(file))
        found = fetch_weights(logged.config, f"runs:/{logged.run.id}/net.safetensors")
        assert Path(found).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"models:/{NAME}", "cannot be read, expected models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID or runs:/ID/"),
        ("models:/other/1", "not found; expected a model of this pipeline; MLFLOW_TRACKING_URI names another server"),
        (f"models:/{NAME}/2", "not found"),
        (f"models:/{NAME}@best", "alias best not found"),
        ("runs:/abc", "not found"),
        ("runs:/RUN/model/code", r"has no single .safetensors file \(none\): expected a network of this pipeline"),
        ("runs:/RUN/../x", "outside the artifact directory"),
    ],
)
def test_an_unknown_name_is_one_sentence(logged: Logged, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        fetch_weights(logged.config, name.replace("RUN", logged.run.id))
    assert "\n" not in str(raised.value)


def test_a_model_of_another_kind_and_one_that_is_too_large_are_refused(
    logged: Logged, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse([f"home={home}"], "run", "")
    client = mlflow.MlflowClient(config.tracking_uri)
    other = client.create_logged_model("0", "other")
    (home / "other").mkdir()
    (home / "other/MLmodel").write_text("flavors: {}")
    client.log_model_artifacts(other.model_id, str(home / "other"))
    with pytest.raises(UserError, match=r"has no single .safetensors file \(none\)"):
        fetch_weights(config, f"models:/{other.model_id}")
    monkeypatch.setattr(artifacts, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match=r"models:/network/1 has 3,098,\d+ bytes of weights, expected at most 1,000"):
        fetch_weights(logged.config, f"models:/{NAME}/1")


def test_no_server_is_one_sentence_within_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="there is no database"):
        fetch_weights(parse([f"home={tmp_path}"], "run", ""), "models:/x/1")
    with pytest.raises(UserError, match="nothing listens at this port"):
        find_model("models:/x/1", parse([f"home={tmp_path}", "tracking.uri=http://127.0.0.1:9"], "run", ""))
    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_mlflow_serves_a_model(logged: Logged) -> None:
    port = free_port()
    program = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", f"models:/{NAME}@best-psnr"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": logged.config.tracking_uri}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = subprocess.Popen(
        [*program, "--env-manager", "local", "--port", str(port)],
        env={**environment, "PATH": path},
        cwd=logged.config.outputs,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        image = random_image(9, 7)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": [image.tolist()]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            (enlarged,) = json.loads(response.read())["predictions"]
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    expected = upscale_image(load_network(str(WEIGHTS)), image)
    assert np.abs(np.array(enlarged) - expected.astype(int)).max() <= 1


@pytest.mark.long
@pytest.mark.timeout(600)
def test_models_with_postgresql_and_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = Services(tmp_path / "services")
    services.start()
    try:
        for key, value in services.exports.items():
            monkeypatch.setenv(key, value)
        config = parse([f"home={tmp_path}", f"cache={tmp_path / 'cache'}"], "run", "")
        logged = log(config, tmp_path)
        for name in (f"models:/{NAME}@best-psnr", f"runs:/{logged.run.id}", f"runs:/{logged.parent.id}"):
            assert Path(fetch_weights(config, name)).read_bytes() == WEIGHTS.read_bytes()
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@best-psnr")
        assert model.predict(random_image(8, 9)[None]).shape == (1, 32, 36, 3)
    finally:
        services.stop()
