"""The first two seconds of a command: what cannot work is said before anything heavy is imported or started."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipeline.settings import Config, UserError, resolve
from pipeline.settings.places import ray_address
from pipeline.settings.prerequisites import check_prerequisites
from tests.conftest import ROOT

HEAVY = ("torch", "ray", "mlflow", "pyarrow", "matplotlib", "skimage")
"""Packages that take a second or more to import."""

PROBE = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout

commands, watched = map(json.loads, sys.argv[1:])
for module, argv in commands:
    sys.argv = [module, *argv]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            importlib.import_module(module).main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
    heavy = [name for name in watched if name in sys.modules]
    print(json.dumps([code, said.getvalue(), heavy]))
"""


def start(
    *commands: tuple[str, list[str]], watched: Sequence[str] = HEAVY, **environment: str
) -> list[tuple[int, str, list[str]]]:
    """Start commands one after the other in one new process.

    Returns:
        For each of them: its exit code, what it printed, and the watched packages that were imported so far.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands), json.dumps(watched)],
        capture_output=True, text=True, cwd=ROOT, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_mistake_is_reported_before_heavy_imports(tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    image.touch()
    (tmp_path / "file").touch()
    home, nothing = f"--home={tmp_path / 'home'}", str(tmp_path / "nothing")
    expected: list[tuple[str, list[str], str]] = [
        *((f"pipeline.{name}", ["--no.such", "1"], "unknown key no.such")
          for name in ("run", "preprocess", "train", "evaluate", "tune")),
        *((f"pipeline.{name}", [f"--source={nothing}", home], f"source {nothing} does not exist")
          for name in ("run", "preprocess", "train", "evaluate", "tune")),
        ("pipeline.run", ["--train.method=other", home], "train.method is 'other', expected one of supervised"),
        ("pipeline.run", [f"--evaluate.benchmarks=Set5={nothing}", home], f"evaluate.benchmarks.Set5 is {nothing}"),
        ("pipeline.run", [f"--train.init_from={nothing}", home], f"train.init_from is {nothing}, which does not exist"),
        ("pipeline.evaluate", [f"--evaluate.squeezenet={nothing}", home], f"evaluate.squeezenet is {nothing}, which"),
        ("pipeline.run", [f"--home={tmp_path}/file/home"], "cannot write to the home"),
        ("pipeline.evaluate", [home], "no finished training srresnet-x4-bn-mse, which the configuration describes"),
        ("pipeline.tune", [home, '--tune.grid={"train.lrr": [1]}'], "unknown key train.lrr, did you mean train.lr?"),
        ("pipeline.tune", [home, '--tune.grid={"train.lr": [-1]}'], "train.lr is -1, expected a number above 0"),
        ("pipeline.upscale", [], "the following arguments are required: IN"),
        ("pipeline.upscale", [str(image)], "the output is missing, expected IN... OUT, or IN... -o OUT"),
        ("pipeline.upscale", [nothing, "out.png"], f"{nothing} does not exist, expected a folder, archive, file or"),
        ("pipeline.upscale", [str(image), "out.txt"], "out.txt is not the name of an image"),
        ("pipeline.upscale", [str(image), "out.png", "--model", "x"], "there is no model x: expected"),
        ("pipeline.upscale", [str(image), "out.png", "--model", "x.safetensors"], "cannot read the weights x"),
        ("pipeline.upscale", [str(image), "out.png", "--max-megapixels", "many"], "'many' is not a number above 0"),
        ("pipeline.export", ["srresnet-x4", "out.onnx"], "the following arguments are required: --format"),
        ("pipeline.export", ["srresnet-x4", "out.pth", "--format=rcan"], "out.pth does not end in .safetensors"),
        ("pipeline.export", ["x.onnx", "out.onnx", "--format=onnx"], "cannot read the weights x.onnx"),
        ("pipeline.interpolate", ["x.safetensors", "y", "--alpha=1", "-o=z"], "cannot read the weights x.safetensors"),
        ("pipeline.patchset", ["show", nothing], f"{nothing} is no folder, expected the patch set"),
        ("pipeline.patchset", ["shew", nothing], "invalid choice: 'shew'"),
        ("pipeline.patchset", ["show", nothing, "--pairs", "0"], "'0' is not a number from 1 to 1000"),
        ("pipeline.publish", ["docs", f"--records={nothing}"], f"{nothing} holds no record"),
        ("pipeline.__main__", ["run", "--name", "a b"], "expected python -m pipeline.run --name 'a b'"),
        ("pipeline.__main__", ["fly"], "there is no command fly, expected one of run, "),
    ]  # fmt: skip
    outcomes = start(*((module, argv) for module, argv, _ in expected))
    for (module, argv, message), (code, said, heavy) in zip(expected, outcomes, strict=True):
        assert (code, heavy) == (2, []), (module, argv, said)
        assert said.startswith("error: ")
        assert message in said
        assert said.count("\n") == 1, said


def test_help_imports_nothing_heavy() -> None:
    names = ["run", "preprocess", "train", "evaluate", "tune", "upscale", "export", "patchset", "publish"]
    for name, (code, said, heavy) in zip(
        names, start(*((f"pipeline.{name}", ["--help"]) for name in names)), strict=True
    ):
        assert (code, heavy) == (0, [])
        assert said.startswith(f"usage: python -m pipeline.{name}")


def test_upscaling_an_image_imports_only_what_it_needs(tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    Image.new("RGB", (8, 6), "teal").save(image)
    unneeded = ("ray", "mlflow", "scipy", "skimage", "sklearn", "pyarrow", "pandas", "matplotlib", "requests", "onnx")
    ((code, said, heavy),) = start(("pipeline.upscale", [str(image), str(tmp_path / "out.png")]), watched=unneeded)
    assert (code, heavy) == (0, []), said
    assert said == f"{tmp_path / 'out.png'}: 32x24\n"


def test_the_package_lists_its_commands() -> None:
    ((code, said, heavy),) = start(("pipeline.__main__", []))
    assert (code, heavy) == (0, [])
    modules = {file.stem for file in (ROOT / "pipeline").glob("*.py")} - {"__init__", "__main__", "api"}
    assert {line.split()[2] for line in said.splitlines() if line.startswith("  python -m")} == {
        f"pipeline.{module}" for module in modules
    }


def test_the_address_of_a_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is http://10.0.0.1:8265, .* expected 10.0.0.1:6379, .*unset RAY"):
        check_prerequisites(resolve(Config()))
    assert ray_address(Config(cluster={"address": "10.0.0.1:6379"})) == "10.0.0.1:6379"
    with pytest.raises(UserError, match=r"cluster.address is https://h, .* expected h:6379"):
        ray_address(Config(cluster={"address": "https://h"}))
    for local in ("local", ""):
        monkeypatch.setenv("RAY_ADDRESS", local)
        assert ray_address(Config()) is None


def test_only_files_that_the_command_reads_are_required(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    config = resolve(
        Config(
            home=str(tmp_path),
            train={"init_from": nothing, "perceptual": {"weights": nothing}, "loss": {"mse": 1, "perceptual": 1}},
            evaluate={"squeezenet": nothing, "benchmarks": {"Set5": nothing}},
        )
    )
    check_prerequisites(config)
    with pytest.raises(UserError, match=r"train.init_from is"):
        check_prerequisites(config, trains=True)
    with pytest.raises(UserError, match=r"evaluate.benchmarks.Set5 is"):
        check_prerequisites(config, scores=True)


def test_patterns_urls_and_datasets_are_left_to_the_listing(tmp_path: Path) -> None:
    sources = ["builtin", "div2k/train", "s3://bucket/images", f"{tmp_path}/*.png", str(tmp_path)]
    check_prerequisites(resolve(Config(source=sources, home="s3://bucket/home")))
