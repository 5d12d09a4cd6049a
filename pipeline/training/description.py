"""Describe a training in MLflow: tags, parameters and the patch set."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel

from pipeline.data.patchset import PatchSet
from pipeline.settings import Config, Tune, architecture
from pipeline.storage import redact
from pipeline.tracking import TrackedRun

_ALWAYS = ("scale", "train.length", "train.global_batch", "train.lr")
"""Parameters of every training."""
_SECTIONS = ("preprocess.degradation.", "data.", "model.", "train.")
"""Sections whose settings are parameters where they differ from the defaults; the patch set stands for the others."""
_TECHNICAL = frozenset(
    [f"data.{key}" for key in ("lanes", "window", "hold", "hold_mb", "scratch")]
    + [f"train.{key}" for key in ("micro_batch", "memory_mb", "recompute", "precision", "channels_last", "compile")]
    + [f"train.{key}" for key in ("max_skipped", "validate_every", "validate_s", "checkpoint_every", "checkpoint_s")]
    + [f"train.{key}" for key in ("keep_checkpoints", "log_every")]
    + ["train.method", "train.perceptual.weights"]  # a tag, and a place
    + ["train.perceptual.pooling", "train.perceptual.shift"]
)
"""Settings that say how a training runs rather than what it learns, and details for which there is no room."""


def run_tags(config: Config, patch_set: str, cell: str = "") -> dict[str, str]:
    """Return the tags of a training's MLflow run.

    Args:
        config: the training's configuration.
        patch_set: name of its patch set.
        cell: label of a grid's cell.
    """
    return {
        "stage": "train",
        "scale": str(config.scale),
        "network": config.model.name,
        "variant": config.model.label,
        "method": config.train.method,
        "loss": "+".join(config.train.loss),
        "patch_set": patch_set,
        **({"cell": cell} if cell else {}),
    }


def run_parameters(config: Config, cell: str = "") -> dict[str, Any]:
    """Return the parameters of a training's MLflow run, by dotted keys.

    They are few, because MLflow's UI writes all of them above each image and hides images that find no room below:
    scale, length, batch and learning rate, the settings that differ from the defaults and shape what is learned, and
    the axes of a grid. The artifact config.yaml has all settings.

    Args:
        config: the training's configuration.
        cell: label of a grid's cell; "" for a single training.
    """
    values = _flat(config)
    defaults = _flat(Config(model=architecture(config.model).settings()))  # type: ignore[call-arg]
    unused = tuple(f"train.{section}." for section in config.train.unused_sections())
    different = [key for key, value in values.items() if key.startswith(_SECTIONS) and value != defaults.get(key)]
    shaping = [key for key in different if key not in _TECHNICAL and not key.startswith(unused)]
    tune = config.tune
    axes = [*tune.grid, *tune.sample] if cell or tune.grid != Tune().grid else []
    return {key: _shown(values[key]) for key in dict.fromkeys([*_ALWAYS, *axes, *shaping]) if key in values}


def log_patch_set(run: TrackedRun, config: Config, patch_set: PatchSet) -> None:
    """Log the patch set as the dataset of an MLflow run."""
    names = [PurePosixPath(redact(source).split("?")[0]).name or redact(source) for source in config.source]
    profile = {"images": patch_set.manifest.totals.images, "tiles": patch_set.tiles}
    run.log_dataset(",".join(names), patch_set.name, patch_set.url, profile)


def _shown(value: Any) -> Any:
    """Return a mapping in the form of the command line, such as "mse=1,tv=0.001", and any other value unchanged.

    The path of a model is shown as the name of its folder, such as "longer".
    """
    if isinstance(value, str) and value.endswith("/model.safetensors"):
        return PurePosixPath(value).parent.name
    if not isinstance(value, dict):
        return value
    return ",".join(f"{key}={part:g}" if isinstance(part, float) else f"{key}={part}" for key, part in value.items())


def _flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return all settings of a section by their dotted keys."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value})
    return flat
