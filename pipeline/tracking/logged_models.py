"""Trained networks as models that `mlflow.pyfunc.load_model` and `mlflow models serve` open.

A model consists of code (`model_code.py` and `sr_model`), the weights as a .safetensors file, and a signature. Nothing
in it is pickled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sr_model
from pipeline.settings import Config, architecture

NAME = "model"
"""Name of a run's model, so that `runs:/ID/model` leads to it."""

WEIGHTS = "model.safetensors"
"""File of the weights in a model."""

REQUIREMENTS = ("mlflow>=3.16.1,<4", "torch>=2.10,<2.15", "numpy>=2", "pydantic>=2.12", "safetensors>=0.5")
"""Packages that a model needs, which are given because MLflow would run the model for seconds to infer them."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, for MLflow."""

    weights: bytes
    """Content of a .safetensors file."""
    scale: int
    architecture: str
    """Title of the network, such as "SRResNet"."""
    training: str
    """Name of the training."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores that are known when the model is made, such as {"val/psnr_y": 28.4}."""


def describe_model(config: Config, training: str, weights: bytes, scores: Mapping[str, float]) -> TrainedModel:
    """Describe the network that a configuration trained; see `TrainedModel`."""
    return TrainedModel(weights, config.scale, architecture(config.model).title, training, dict(scores))


def find_model_id(client: Any, run_id: str) -> str | None:
    """Return the id of a run's model, or None if it has none or one that did not arrive completely."""
    found = _find(client, run_id)
    return str(found.model_id) if found and str(found.status) == "READY" else None


def send_model(client: Any, run_id: str, model: TrainedModel) -> None:
    """Log a model for a run, unless the run has one; a model that did not arrive completely is sent again."""
    from mlflow.entities import LoggedModelOutput

    found = _find(client, run_id)
    if found and str(found.status) == "READY":
        return
    run = client.get_run(run_id)
    tags = {"scale": str(model.scale), "architecture": model.architecture, "training": model.training}
    logged = found or client.create_logged_model(
        run.info.experiment_id, NAME, run_id, tags=tags, model_type="super-resolution"
    )
    with tempfile.TemporaryDirectory(prefix="sr-model-") as folder:
        path = _save(Path(folder), model, run_id, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(path))
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.finalize_logged_model(logged.model_id, "READY")  # last, because it makes the model count


def _find(client: Any, run_id: str) -> Any:
    """Return the model of a run, complete or not; None if there is none."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{NAME}'")
    return found[0] if found else None


def _save(folder: Path, model: TrainedModel, run_id: str, model_id: str) -> Path:
    """Write a model into a folder, and return its path."""
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    weights, code = folder / WEIGHTS, folder / "sr_model"
    weights.write_bytes(model.weights)
    package = Path(sr_model.__file__).parent
    for file in package.rglob("*.py"):
        copy = code / file.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    main = Path(shutil.copy(Path(__file__).with_name("model_code.py"), folder))
    described: dict[str, Any] = {
        "scale": model.scale,
        "architecture": model.architecture,
        "training": model.training,
        "scores": dict(model.scores),
    }
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    made = Model(run_id=run_id, model_id=model_id, model_uuid=model_id, metadata=described)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(main),
        artifacts={"weights": str(weights)},
        code_paths=[str(code)],
        signature=ModelSignature(images, images),
        input_example=np.full((1, 4, 4, 3), 128, np.uint8),
        pip_requirements=list(REQUIREMENTS),
        mlflow_model=made,
    )
    # MLflow notes where the files came from, but does not read it; those places are gone.
    flavor = made.flavors["python_function"]
    flavor["model_code_path"] = main.name
    flavor["artifacts"]["weights"]["uri"] = WEIGHTS
    made.save(str(folder / "model" / "MLmodel"))
    return folder / "model"
