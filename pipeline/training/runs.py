"""A training by its name: what shapes it, and what it left."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.settings import Config, UserError
from pipeline.storage import fingerprint
from pipeline.tracking import JournalReader, JournalRecord

ALGORITHM = 2
"""Version of what the same configuration trains to; part of a training's name."""


_NOT_SHAPING = {
    "data": {"hold", "hold_mb", "scratch"},
    "train": {"validate_every", "checkpoint_every", "log_every", "keep", "memory_mb", "recompute", "max_skipped"},
}


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    name: str
    folder: str
    result: dict[str, Any]
    """Steps, seconds of the last session, workers, device, held-out metrics at the end."""
    found: bool
    """Whether it had been finished before."""
    tracked: list[str]
    """Ids of the MLflow runs below which MLflow has all of it; "" for none above."""

    @property
    def weights(self) -> str:
        """The moving average's weights, .safetensors."""
        return f"{self.folder}/model.safetensors"

    @property
    def seconds(self) -> float:
        """Time of all sessions, from the workers' start to the last record; steps that were made again count twice."""
        times = sorted((int(record.time), record.kind == "session") for record in self.history())
        return sum((b - a) / 1000 for (a, _), (b, begins) in itertools.pairwise(times) if not begins)

    def history(self) -> list[JournalRecord]:
        """The journal's records in order of steps."""
        return history(self.folder)


def training_name(config: Config, patch_set: PatchSet) -> str:
    """Name of a training by all that shapes its weights; how it is run (workers, cadence) does not."""
    norm = "bn" if config.model.batch_norm else "nobn"
    mark = fingerprint(identity(config, patch_set.name))
    return f"{config.name}-x{config.scale}-{norm}-{'+'.join(config.train.loss)}-{mark}"


def identity(config: Config, patch_set: str) -> dict[str, Any]:
    """What shapes a training's weights on a patch set of this name, files by their content.

    Raises:
        UserError: if a file isn't there.
    """
    shaped = shaping(config, patch_set)
    if "perceptual" in config.train.loss:
        shaped["train"]["perceptual"]["weights"] = features.identity(config.train.perceptual)
    if config.train.init_from:
        weights = storage.read(config.train.init_from)
        if weights is None:
            raise UserError(f"train.init_from is {config.train.init_from}, expected an existing .safetensors file")
        shaped["train"]["init_from"] = hashlib.sha256(weights).hexdigest()
    return shaped


def shaping(config: Config, patch_set: str) -> dict[str, Any]:
    """What shapes a training's weights on a patch set of this name, files that it reads by their names."""
    settings: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "patch_set": patch_set,
        "data": config.data.model_dump(mode="json", exclude=_NOT_SHAPING["data"]),
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=_NOT_SHAPING["train"]),
    }
    if "perceptual" not in config.train.loss:
        del settings["train"]["perceptual"]
    return settings


def is_same(known: dict[str, Any], known_config: Config, config: Config, patch_set: str) -> bool:
    """Whether a training that was made elsewhere is the one that a configuration describes.

    Settings that there were not yet have their defaults. Files are compared by content, and taken for the same where
    the configuration's aren't at hand.

    Args:
        known: the other's `identity`.
        known_config: its configuration, whose files may be elsewhere.
        config: the configuration.
        patch_set: name of its patch set.
    """
    theirs, mine = shaping(known_config, known["patch_set"]), shaping(config, patch_set)
    theirs["algorithm"] = known["algorithm"]
    try:
        contents = known["train"], identity(config, patch_set)["train"]
    except UserError:  # nobody can tell: both have some file, or both none
        contents = {}, {}
    for settings, content in zip((theirs["train"], mine["train"]), contents, strict=True):
        settings["init_from"] = content.get("init_from") if content else settings["init_from"] is not None
        if "perceptual" in settings:
            settings["perceptual"]["weights"] = content["perceptual"]["weights"] if content else ""
    return theirs == mine


def history(folder: str) -> list[JournalRecord]:
    """The records of a training, finished or not, in order of steps."""
    return sorted(JournalReader(f"{folder}/journal").new(), key=lambda record: int(record.step))


def find(config: Config, patch_set: PatchSet) -> Trained | None:
    """The finished training that the configuration describes, if there is one."""
    return find_at(f"{config.outputs}/trainings/{training_name(config, patch_set)}")


def find_at(folder: str) -> Trained | None:
    """The finished training in a folder, if there is one."""
    result = storage.read_json(f"{folder}/result.json")
    if not result:
        return None
    tracked = storage.read_json(f"{folder}/tracked.json") or []
    return Trained(folder.rpartition("/")[2], folder, result, found=True, tracked=tracked)
