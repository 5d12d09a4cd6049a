"""The notebook for Colab and Kaggle: it is clean, its commands are right, and it runs from end to end."""

import ast
import base64
import io
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

from pipeline.settings.command_line import parse
from tests.conftest import ROOT
from tests.pipeline.test_start import start

FILE = ROOT / "notebooks" / "train.ipynb"
CONFIGS = ["configs/demo.yaml", "configs/t4.yaml", "configs/t4x2.yaml"]
"""Configurations that the notebook chooses from."""


def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def code(cell: Any) -> str:
    """Return the Python code that IPython makes of a cell with commands and magics."""
    return TransformerManager().transform_cell(cell.source)


def parameters() -> dict[str, str]:
    """Return the constants of the cell that users may change."""
    (cell,) = (cell for cell in notebook().cells if "parameters" in cell.metadata.get("tags", ()))
    return {line.targets[0].id: line.value.value for line in ast.parse(cell.source).body}


def commands(config: str) -> list[list[str]]:
    """Return the arguments of all commands of the pipeline in cells and texts, with the notebook's values put in."""
    values = {**parameters(), "CONFIG": config, "HOME": "/home of outputs", "weights": "/w.safetensors"}
    found = []
    for cell in notebook().cells:
        for line in re.findall(r"!python -m (pipeline\.[^`\n]+)", cell.source):
            found.append(shlex.split(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], line)))
    return found


def test_the_notebook_is_valid_and_holds_no_outputs() -> None:
    nbformat.validate(notebook())
    for cell in notebook().cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert notebook().metadata.kernelspec.name == "python3"


def test_every_code_cell_compiles() -> None:
    for cell in notebook().cells:
        if cell.cell_type == "code":
            compile(code(cell), cell.id, "exec")


@pytest.mark.parametrize("config", CONFIGS)
def test_commands_have_valid_settings(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    trained = [argv for module, *argv in commands(config) if module == "pipeline.run" and "--help" not in argv]
    assert trained
    for argv in trained:
        settings = parse(argv, "run", "")
        assert settings.home == "/home of outputs"
        assert settings.cluster.stop_after == parameters()["STOP_AFTER"]


def test_commands_without_settings_have_valid_arguments() -> None:
    others = [(module, argv) for module, *argv in commands(CONFIGS[0]) if module != "pipeline.run" or "--help" in argv]
    assert {module for module, _ in others} == {"pipeline.run", "pipeline.upscale"}
    for (module, _), (code, said, _) in zip(others, start(*others), strict=True):
        assert "does not exist" in said if module == "pipeline.upscale" else code == 0, said


def test_options_that_the_text_suggests_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = "\n".join(cell.source for cell in notebook().cells)
    suggested = re.findall(r'OPTIONS = "(--[^"]+)"|such as "(--[^"]+)"', text)
    assert suggested
    for options in suggested:
        parse(["--config", "configs/t4.yaml", *shlex.split("".join(options))], "run", "")


def test_links_of_the_notebook_lead_to_files() -> None:
    for cell in notebook().cells:
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            assert (FILE.parent / target.partition("#")[0]).exists(), target


def test_packages_are_installed_without_a_change_of_torch() -> None:
    """The notebook names the range of versions that installing accepts, and asks for no version itself."""
    (least, limit) = re.findall(r'"torch>=2\.(\d+),<2\.(\d+)"', (ROOT / "pyproject.toml").read_text())[0]
    text = "\n".join(cell.source for cell in notebook().cells)
    assert f"the versions 2.{least} to 2.{int(limit) - 1}" in text.replace("\n", " ")
    (install,) = (cell.source for cell in notebook().cells if "install" in cell.metadata.get("tags", ()))
    assert install == "%pip install --quiet --editable ."


def test_badges_open_the_notebook_of_the_repository() -> None:
    """A fork sets REPOSITORY in the notebook; this test then says where the badges of the README have to lead."""
    repository = parameters()["REPOSITORY"].removesuffix(".git").rstrip("/")
    page = f"{repository}/blob/main/notebooks/train.ipynb"
    expected = {"Colab": "notebooks/train.ipynb", "Kaggle": "notebooks/train.ipynb"}
    if repository:
        colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
        expected = {"Colab": colab, "Kaggle": f"https://kaggle.com/kernels/welcome?src={page}"}
    readme = (ROOT / "README.md").read_text()
    assert dict(re.findall(r"\[!\[Open in (\w+)\]\([^)]+\)\]\(([^)]+)\)", readme)) == expected
    assert "REPOSITORY" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", ["t4", "t4x2", "8xh100"])
def test_configurations_for_cards_state_their_arithmetic_and_need_a_gpu(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert yaml.safe_load(text)["cluster"]["gpu"] is True
    steps, batch = (int(re.findall(rf"{key}: (\d+)", text)[0]) for key in ("length", "global_batch"))
    assert f"{steps:,} steps" in text
    assert f"{batch} patches" in text
    millions = re.findall(r"(\d+(?:\.\d)?) million patches", text)
    assert all(float(count) == pytest.approx(steps * batch / 1e6, rel=0.02) for count in millions)


@pytest.mark.long
def test_the_notebook_runs_from_end_to_end_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on the CPU with small settings; a second run of all cells reuses the finished work."""
    monkeypatch.setenv("SR_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = (
        "--train.length '8 steps' --train.validate_every 4 --train.log_every 2 --model.channels 8 --model.blocks 1 "
        "--train.precision fp32 --evaluate.images 1"
    )
    first, second = execute(options), execute(options)
    assert "report: " in printed(first["train"])
    assert "training, evaluation and report reused" in printed(second["train"])
    for cell in (first["curves"], first["picture"]):
        (figure,) = (output for output in cell.outputs if output.output_type == "display_data")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))).convert("L"))
        assert pixels.shape[1] > 800
        assert pixels.std() > 10  # something is drawn
    assert Image.open(tmp_path / "sr.png").size == (600, 400)
    assert "srcdoc=" in first["report"].outputs[0].data["text/html"]


def execute(options: str) -> dict[str, Any]:
    """Run all cells but the installation with these options, and return the cells by their ids."""
    executed = notebook()
    for cell in executed.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = cell.source.replace('OPTIONS = ""', f"OPTIONS = {options!r}")
            assert repr(options) in cell.source
    place = {"metadata": {"path": str(FILE.parent)}}
    NotebookClient(executed, timeout=500, resources=place, skip_cells_with_tag="install").execute()
    return {cell.id: cell for cell in executed.cells}


def printed(cell: Any) -> str:
    """Return what a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")
