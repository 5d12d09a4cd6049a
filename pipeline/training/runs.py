"""Trainings by name: what shapes the weights of one, and what a finished one left in its folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from pipeline import storage, tracking
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.settings import Config, Data, Train, UserError
from pipeline.settings.fields import MethodSettings
from pipeline.settings.methods import DEFAULT_METHOD
from pipeline.storage import fingerprint
from pipeline.tracking import JournalReader, JournalRecord, TrainingResult
from pipeline.training.initial import identify_initial
from pipeline.training.schedule import learning_rate
from sr_model.networks import DEFAULT

ALGORITHM = 2
"""Version of the training algorithm. A change that gives other weights for the same configuration increases it."""

STOPPED = "stopped"
"""Name of the files with weights and result of a training that ended early, at the end of its time."""

Identity = dict[str, JsonValue]
"""All that shapes the weights of a training: algorithm, patch set, and the sections data, model and train."""

_NOT_SHAPING = {
    "data": {"hold", "hold_mb", "scratch"},
    "train": {
        "validate_every",
        "validate_s",
        "checkpoint_every",
        "checkpoint_s",
        "log_every",
        "keep_checkpoints",
        "memory_mb",
        "recompute",
        "max_skipped",
    },
}
"""Settings that change how a training runs, but not its weights."""

_SCHEDULE = ("length", "warmup", "stable", "schedule", "lr_final")
"""Settings of the learning rate's course over the length."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    name: str
    folder: str
    """Path or URL."""
    result: TrainingResult
    found: bool
    """True if it was finished before this command."""
    tracked: list[str]
    """Ids of the parent runs below which MLflow has all of the training; "" stands for no parent."""

    @property
    def weights(self) -> str:
        """Path or URL of the weights of the moving average, a .safetensors file."""
        return f"{self.folder}/model.safetensors"

    @property
    def seconds(self) -> float:
        """Seconds of all sessions; see `seconds`."""
        return seconds(self.history())

    def history(self) -> list[JournalRecord]:
        """The journal's records in order of steps."""
        return read_history(self.folder)


def training_name(config: Config, patch_set: PatchSet) -> str:
    """Name a training by all that shapes its weights, which leaves out workers and cadence.

    Raises:
        UserError: if a file that shapes the weights does not exist.
    """
    return _name_training(config, patch_set.name)


def _name_training(config: Config, patch_set: str) -> str:
    return f"{config.training_label}-{fingerprint(identify(config, patch_set))}"


def training_folder(config: Config, patch_set: PatchSet) -> str:
    """Path or URL of the training that a configuration describes, finished or not."""
    return f"{config.outputs}/trainings/{training_name(config, patch_set)}"


def identify(config: Config, patch_set: str) -> Identity:
    """All that shapes a training's weights, with files by their content.

    Args:
        config: the pipeline's configuration.
        patch_set: name of the patch set.

    Raises:
        UserError: if a file does not exist.
    """
    shaping = shaping_settings(config, patch_set)
    train: Any = shaping["train"]
    for name, needed in config.train.pretrained().items():
        train[name]["weights"] = features.identify(needed)
    if start := identify_initial(config):
        train["init_from"] = start
    return shaping


def shaping_settings(config: Config, patch_set: str) -> Identity:
    """All that shapes a training's weights, with files by their names.

    The names of the default network, method and sample order are left out.

    Args:
        config: the pipeline's configuration.
        patch_set: name of the patch set.
    """
    default_method = ["method"] if config.train.method == DEFAULT_METHOD else []
    left_out: Any = {}
    for key in (*_NOT_SHAPING["train"], *default_method, *config.train.unused_sections()):
        section, _, inner = key.partition(".")
        if inner:
            left_out.setdefault(section, set()).add(inner)
        else:
            left_out[section] = True
    default_order = {"order"} if config.data.order == Data().order else set()
    default_network = {"name"} if config.model.name == DEFAULT else set()
    return {
        "algorithm": ALGORITHM,
        "patch_set": patch_set,
        "data": config.data.model_dump(mode="json", exclude=_NOT_SHAPING["data"] | default_order),
        "model": config.model.model_dump(mode="json", exclude=default_network),
        "train": config.train.model_dump(mode="json", exclude=left_out),
    }


def describes_same(known: Identity, known_config: Config, config: Config, patch_set: str) -> bool:
    """Tell whether a recorded training is the one that a configuration describes.

    Settings that did not exist when it was recorded have their defaults. Files are compared by content; if the
    configuration's files do not exist here, it is enough that both name a file.

    Args:
        known: identity of the recorded training.
        known_config: its configuration.
        config: the configuration to compare with.
        patch_set: name of that configuration's patch set.
    """
    theirs = {
        **shaping_settings(known_config, str(known["patch_set"])),
        "algorithm": known["algorithm"],
    }
    own = shaping_settings(config, patch_set)
    try:
        contents: tuple[Any, Any] = known["train"], identify(config, patch_set)["train"]
    except UserError:
        contents = {}, {}
    trains: tuple[Any, Any] = theirs["train"], own["train"]
    for train, content, its_config in zip(trains, contents, (known_config, config), strict=True):
        train["init_from"] = content.get("init_from") if content else train["init_from"] is not None
        for name in its_config.train.pretrained():
            train[name]["weights"] = dict(content.get(name) or {}).get("weights") if content else ""
    return theirs == own


def continues(known: Identity, known_config: Config, done: int, config: Config, patch_set: str) -> bool:
    """Tell whether the training that a configuration describes begins with the first steps of a recorded one.

    It may be the same training, or one of another length: learning rate and terms of all steps so far have to be the
    same, and all that does not belong to the schedule.

    Args:
        known: identity of the recorded training.
        known_config: its configuration.
        done: number of its finished steps.
        config: the configuration to compare with.
        patch_set: name of that configuration's patch set.
    """
    if describes_same(known, known_config, config, patch_set):
        return True
    lengths = [_given_steps(settings.train) for settings in (known_config, config)]
    if None in lengths or type(config.train.method_settings()) is not MethodSettings:
        return False  # a method's own settings may have shares of the length, too
    schedule = {name: getattr(config.train, name) for name in _SCHEDULE}
    aligned = known_config.model_copy(update={"train": known_config.train.model_copy(update=schedule)})
    if not describes_same(known, aligned, config, patch_set):
        return False
    before, after = (
        (settings.train, steps or 0) for settings, steps in zip((known_config, config), lengths, strict=True)
    )
    return done <= after[1] and all(_course(step, *before) == _course(step, *after) for step in range(done))


def _given_steps(train: Train) -> int | None:
    """Return the length in steps; None if it is given in another unit."""
    amount, unit = train.length.split()
    return max(int(float(amount)), 1) if unit == "steps" else None


def _course(step: int, train: Train, steps: int) -> tuple[float, list[bool]]:
    """Return what depends on the length in a step: the learning rate, and which terms take part."""
    return learning_rate(step, steps, train), [step >= round(start * steps) for start in train.term_starts().values()]


def read_history(folder: str) -> list[JournalRecord]:
    """The records of a training, finished or not, in order of steps."""
    return sorted(JournalReader(f"{folder}/journal").new(), key=lambda record: record.step)


def seconds(history: Sequence[JournalRecord]) -> float:
    """Seconds of all sessions, from the workers' start to the last record; repeated steps count twice."""
    times = sorted((record.time, record.kind == "session") for record in history)
    return sum((b - a) / 1000 for (a, _), (b, begins) in itertools.pairwise(times) if not begins)


def last_day(history: Sequence[JournalRecord]) -> str:
    """Date of the last record, ISO 8601 in UTC; "" without records."""
    times = [record.time / 1000 for record in history]
    return datetime.fromtimestamp(max(times), UTC).date().isoformat() if times else ""


def find_training(config: Config, patch_set: PatchSet) -> Trained | None:
    """The finished training that a configuration describes; None if there is none."""
    return find_training_on(config, patch_set.name)


def find_training_on(config: Config, patch_set: str) -> Trained | None:
    """The finished training that a configuration describes, on the patch set of a name; None if there is none."""
    return open_training(f"{config.outputs}/trainings/{_name_training(config, patch_set)}")


def open_training(folder: str) -> Trained | None:
    """The finished training in a folder; None if there is none.

    Raises:
        DamagedFileError: if its result is damaged, or its weights are missing.
    """
    remedy = "delete it and rerun the command, which resumes from the newest checkpoint"
    result = storage.read_document(f"{folder}/result.json", TrainingResult, remedy)
    if result is None:
        return None
    if not storage.exists(f"{folder}/model.safetensors"):
        raise missing_weights(folder)
    tracked = tracking.parents_of_tracked(folder)
    return Trained(folder.rpartition("/")[2], folder, result, found=True, tracked=tracked)


def missing_weights(folder: str) -> storage.DamagedFileError:
    """Return the error for a finished training without weights."""
    return storage.DamagedFileError(
        f"{folder}/model.safetensors is missing, although the training finished: delete {folder}/result.json and rerun "
        "the command, which resumes from the newest checkpoint"
    )
