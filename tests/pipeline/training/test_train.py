"""Real Ray Train with two workers; what is killed is really killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import safetensors.torch
import torch

from pipeline import train
from pipeline.data import preparation
from pipeline.evaluation import scoring
from pipeline.networks import upscaling
from pipeline.networks.weights import build_network
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.tracking import Best
from pipeline.training import driver, runs
from pipeline.training.runs import Trained
from tests.conftest import ROOT, SMALL, read_json, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")
Small = Callable[..., list[str]]

LONGER = ["train.length=240 steps", "train.checkpoint_every=20", "train.validate_every=120", "model.batch_norm=true"]


def run(argv: list[str]) -> tuple[Config, Trained]:
    config = parse(argv, "train", "")
    patch_set, _ = preparation.prepare(config)
    return config, driver.train(config, patch_set)


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = safetensors.torch.load_file(trained.weights)
    return loaded


def mlflow_run(config: Config, trained: Trained) -> mlflow.entities.Run:
    run_id = read_json(f"{trained.folder}/tracking.json")["runs"][""]
    return mlflow.MlflowClient(config.tracking_uri).get_run(run_id)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[Path], Path], ray_session: None
) -> tuple[list[str], Config, Trained]:
    """A training of two workers that nothing disturbed, and its options."""
    folder = tmp_path_factory.mktemp("straight")
    make_home(folder / "home")
    write_photos(folder / "photos")
    options = [f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL, *LONGER, "cluster.workers=2"]
    options += [
        "tracking.system_metrics=false",
        "evaluate.while_training=true",
        f'evaluate.benchmarks={{"shown": "{folder / "photos"}"}}',
    ]
    return options, *run(options)


def test_a_training_leaves_weights_journal_and_a_finished_mlflow_run(
    straight: tuple[list[str], Config, Trained],
) -> None:
    options, config, trained = straight
    steps = list(range(2, 241, 2))
    assert trained.result.steps == 240
    assert trained.result.workers == 2
    history = trained.history()
    assert [r.step for r in history if r.kind == "train"] == steps
    assert [r.step for r in history if r.kind == "validation"] == [0, 120, 240]
    tracked = mlflow_run(config, trained)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["train.global_batch"] == "6"
    assert not [name for name in tracked.data.metrics if name.startswith("system/")]
    assert tracked.data.tags["patch_set"] == tracked.inputs.dataset_inputs[0].dataset.digest
    client = mlflow.MlflowClient(config.tracking_uri)
    for key in ("train/objective", "train/mse", "train/lr", "train/gradient_norm", "train/patches_per_s"):
        assert [m.step for m in client.get_metric_history(tracked.info.run_id, key)] == steps, key
    assert [m.step for m in client.get_metric_history(tracked.info.run_id, "val/psnr_y")] == [0, 120, 240]
    files = {f.path for folder in ("", "images") for f in client.list_artifacts(tracked.info.run_id, folder)}
    assert "config.yaml" in files
    (model,) = client.search_logged_models([tracked.info.experiment_id])
    assert (model.source_run_id, str(model.status)) == (tracked.info.run_id, "READY")
    assert (Path(model.artifact_location.removeprefix("file://")) / "MLmodel").exists()
    assert sum(f.startswith("images/bicubic_sr_hr~0_coffee0.png+step+") and f.endswith(".png") for f in files) == 3

    _, again = run([*options, "cluster.workers=1", "train.checkpoint_every=3"])
    assert again.found
    assert again.name == trained.name


def test_validation_is_the_mean_over_images_however_many_workers_share_them(
    straight: tuple[list[str], Config, Trained],
) -> None:
    _, config, trained = straight
    patch_set, _ = preparation.prepare(config)
    net, scores = build_network(config.scale, config.model, config.train.seed).eval(), []
    for i in range(patch_set.held_out):
        image = patch_set.read_holdout(i)
        sr = upscaling.upscale_image(net, image.lr)
        scores.append(scoring.score_image(sr, image.hr, config.scale).psnr_y)
    assert len(scores) == 2
    (start,) = [r.metrics for r in trained.history() if (r.kind, r.step) == ("validation", 0)]
    assert start["val/psnr_y"] == pytest.approx(sum(scores) / 2, abs=1e-3)
    assert start["bench/shown/psnr_y"] > 20


def test_the_best_weights_are_kept(straight: tuple[list[str], Config, Trained]) -> None:
    _, _, trained = straight
    validations = {r.step: r.metrics["val/psnr_y"] for r in trained.history() if r.kind == "validation"}
    del validations[0]
    best = max(validations, key=lambda step: validations[step])
    assert trained.result.best == Best(best, validations[best])
    kept = safetensors.torch.load_file(f"{trained.folder}/best.safetensors")
    assert kept.keys() == weights(trained).keys()
    if best == 240:
        assert all(torch.equal(value, kept[name]) for name, value in weights(trained).items())


@pytest.mark.long
def test_a_dry_run_prints_the_plan_and_trains_nothing(
    straight: tuple[list[str], Config, Trained], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, config, trained = straight
    options = [*options, "train.seed=5", "train.global_batch=7", "train.micro_batch=2"]
    monkeypatch.setattr(sys, "argv", ["train", *options, "--dry-run"])
    train.main()
    lines = capsys.readouterr().out.splitlines()
    printed = {line[:14].strip(): line[14:] for line in lines}
    parameters = sum(value.numel() for name, value in weights(trained).items() if "running" not in name)
    assert f"{parameters - 3:,} parameters" in printed["network"]  # but for BatchNorm's three counters
    assert printed["length"].startswith("240 steps of global batch 7")
    assert printed["workers"].startswith("2 on CPU")
    assert printed["micro-batch"] == "2, accumulated 2 times by each worker"
    assert printed["BatchNorm"] == "statistics span a worker's micro-batch of 2"
    assert re.fullmatch(r"about [\d,]+ MB a worker", printed["memory"])
    assert re.match(r"\d+\.\d\d s, \d+\.\d patches/s", printed["a step"])
    assert not Path(printed["training"]).exists()
    assert len(list(Path(config.outputs, "trainings").iterdir())) == 1


def test_the_name_tells_apart_what_shapes_the_weights(straight: tuple[list[str], Config, Trained]) -> None:
    options, config, _ = straight
    patch_set, _ = preparation.prepare(config)

    def name(*more: str) -> str:
        return runs.training_name(parse([*options, *more], "train", ""), patch_set)

    assert name() == name("cluster.workers=1", "train.checkpoint_every=7", "train.log_every=1")
    different = [
        name(),
        name("train.seed=1"),
        name("train.length=9 steps"),
        name("data.window=9"),
        name("model.blocks=2"),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_with_a_worker_killed_it_ends_as_never_killed(
    straight: tuple[list[str], Config, Trained], tmp_path: Path
) -> None:
    options, _, undisturbed = straight
    killed_home = [*options, f"home={tmp_path / 'killed'}"]
    folder = folder_of(killed_home)
    killer = subprocess.Popen([sys.executable, "-c", KILL_A_WORKER, str(folder), str(os.getpid())])
    config, killed = run(killed_home)
    assert killer.wait(10) == 0, "no worker was killed: the training was over too soon"
    assert_same(undisturbed, killed)
    client, run_id = mlflow.MlflowClient(config.tracking_uri), mlflow_run(config, killed).info.run_id
    steps = [m.step for m in client.get_metric_history(run_id, "train/objective")]
    assert steps == list(range(2, 241, 2))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_with_the_driver_killed_and_run_again_it_ends_as_never_killed(
    straight: tuple[list[str], Config, Trained], tmp_path: Path
) -> None:
    options, _, undisturbed = straight
    options = [*options, f"home={tmp_path / 'killed'}"]
    folder = folder_of(options)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.train", *options], cwd=ROOT, start_new_session=True
    ) as driver:
        wait_for(lambda: any(folder.glob("checkpoints/*/state.json")))
        os.kill(driver.pid, signal.SIGKILL)
    time.sleep(2)
    assert not (folder / "result.json").exists()
    config, killed = run(options)
    assert_same(undisturbed, killed)
    assert mlflow_run(config, killed).info.status == "FINISHED"


def assert_same(a: Trained, b: Trained) -> None:
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    for key in ("val/psnr_y", "val/ssim_y"):
        assert a.result.metrics[key] == b.result.metrics[key]
    assert timeless(a) == timeless(b)


def timeless(trained: Trained) -> list[tuple[str, int, dict[str, float]]]:
    """All that was recorded but for where and how fast it was computed; sessions are those of each run."""
    kept = ("train/objective", "train/mse", "train/gradient_norm", "train/lr", "train/skipped", "val/")
    return [
        (r.kind, r.step, {key: value for key, value in r.metrics.items() if key.startswith(kept)})
        for r in trained.history()
        if r.kind != "session"
    ]


def folder_of(options: list[str]) -> Path:
    """Where the training will lie; makes the patch set."""
    config = parse(options, "train", "")
    patch_set, _ = preparation.prepare(config)
    return Path(config.outputs, "trainings", runs.training_name(config, patch_set))


def objectives(trained: Trained, up_to: int = 500) -> list[tuple[int, float]]:
    """Step and objective of the records."""
    records = [record for record in trained.history() if record.kind == "train" and record.step <= up_to]
    return [(record.step, record.metrics["train/objective"]) for record in records]


KILL_A_WORKER = """
import os, pathlib, psutil, signal, sys, time
folder, driver = pathlib.Path(sys.argv[1]), psutil.Process(int(sys.argv[2]))
while not list(folder.glob("checkpoints/*/state.json")):
    time.sleep(0.02)
workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
workers = [p for p in workers if p.pid != os.getpid() and driver in p.parents()]
os.kill(workers[0].pid, signal.SIGKILL)
sys.exit(bool((folder / "result.json").exists()))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_interrupted_it_is_marked_killed_and_goes_on_with_another_number_of_workers(
    small: Small, tmp_path: Path
) -> None:
    options = small(*LONGER, "model.batch_norm=false", "train.length=1900 steps", "cluster.workers=2")
    config = parse(options, "train", "")
    folder = folder_of(options)
    command = [sys.executable, "-m", "pipeline.train", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as driver:
        wait_for(lambda: any(folder.glob("checkpoints/*/state.json")))
        os.kill(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "interrupted: rerun the same command to resume" in errors
    assert "Traceback" not in errors
    run_id = read_json(f"{folder}/tracking.json")["runs"][""]
    assert mlflow.MlflowClient(config.tracking_uri).get_run(run_id).info.status == "KILLED"
    assert not (folder / "result.json").exists()

    config, resumed = run([*options, "cluster.workers=1"])
    assert mlflow_run(config, resumed).info.run_id == run_id
    assert mlflow_run(config, resumed).info.status == "FINISHED"
    assert resumed.result.workers == 1
    images = mlflow.MlflowClient(config.tracking_uri).list_artifacts(run_id, "images")
    shown = [image.path.split("+timestamp")[0] for image in images if image.path.endswith(".png")]
    assert len(shown) == len(set(shown))
    _, straight = run([*options, "cluster.workers=1", f"home={tmp_path / 'straight'}"])
    for resumed_values, straight_values in zip(objectives(resumed), objectives(straight), strict=True):
        assert resumed_values == pytest.approx(straight_values, rel=0.02)  # later, rounding has grown
    assert resumed.result.metrics["val/psnr_y"] == pytest.approx(straight.result.metrics["val/psnr_y"], abs=0.2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.lanes=500", "data.lanes is 500, but the patch set has"),
        ("train.init_from=/none.safetensors", "train.init_from is /none.safetensors: cannot read the weights"),
        ("cluster.workers=64", "cluster.workers is 64, with 1 CPU each, but the cluster has room for 2"),
        pytest.param(
            "train.lr=1e30",
            r"training diverged: 3 steps in a row up to step \d were not finite \((mse|gradient)\)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(
    straight: tuple[list[str], Config, Trained], option: str, message: str
) -> None:
    options, _, _ = straight
    with pytest.raises(UserError, match=message):
        run([*options, "cluster.workers=1", "cluster.max_failures=0", "train.max_skipped=3", "train.seed=9", option])


@pytest.mark.long
def test_minutes_become_steps_once_and_a_lost_result_is_made_again(small: Small) -> None:
    _, trained = run(small("cluster.workers=1", "train.length=0.2 minutes"))
    plan = read_json(f"{trained.folder}/plan.json")
    assert trained.result.steps == plan["steps"] > 5
    for file in ("result.json", "model.safetensors"):
        Path(trained.folder, file).unlink()
    _, again = run(small("cluster.workers=1", "train.length=0.2 minutes"))
    assert again.result.steps == plan["steps"]
    assert again.result.metrics["val/psnr_y"] == trained.result.metrics["val/psnr_y"]
