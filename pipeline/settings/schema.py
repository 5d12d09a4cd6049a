"""Every setting of the pipeline, typed, documented and validated in one place.

`configs/*.yaml` are instances of `Config`; `pipeline.commandline` reads them, and options that override them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipeline.settings.data import Data, Preprocess
from pipeline.settings.environment import Cluster, Tracking
from pipeline.settings.errors import UserError
from pipeline.settings.evaluation import Evaluate
from pipeline.settings.fields import absolute_path, absolute_source
from pipeline.settings.grid import Tune
from pipeline.settings.network import Model
from pipeline.settings.training import Train


class Config(BaseSettings):
    """Settings of the super-resolution pipeline."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_kebab_case=False,
        cli_parse_none_str="null",
    )

    name: str = Field("srresnet", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the workflow, the start of its folder's name."""
    home: str | None = None
    """Folder or URL of all outputs; $SR_HOME, else runs/ here, or sr-runs in the home folder in a submitted job."""
    cache: str | None = None
    """Folder or URL that downloads are kept in; $SR_CACHE, else ~/.cache/sr-pipeline."""
    source: list[str] = ["builtin"]
    """Images: "builtin" (photographs that installed packages ship), "div2k" (downloaded; or one part, div2k/train,
    div2k/valid), folders, files, glob patterns, zip and tar archives; local paths or URLs; several with commas."""
    scale: Literal[2, 3, 4, 8] = 4
    """Upscaling factor."""
    preprocess: Preprocess = Preprocess()
    """From images to a patch set."""
    data: Data = Data()
    """From a patch set to training samples: the sample order, together with train.seed."""
    model: Model = Model()
    """The network."""
    train: Train = Train()
    """The training run."""
    evaluate: Evaluate = Evaluate()
    """Measuring a trained network."""
    tune: Tune = Tune()
    """The grid of `python -m pipeline.tune`."""
    tracking: Tracking = Tracking()
    """MLflow."""
    cluster: Cluster = Cluster()
    """Where the work runs."""

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_path(value)

    @field_validator("scale", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """The command line gives text, which a choice of numbers doesn't take for one."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _absolute_sources(cls, value: list[str]) -> list[str]:
        return [absolute_source(source) for source in value]

    @model_validator(mode="after")
    def _geometry(self) -> Config:
        if not self.source:
            raise ValueError("source is empty, expected at least one folder, file or URL")
        sides = {
            "data.crop": self.data.crop,
            "preprocess.tile": self.preprocess.tile,
            "preprocess.stride": self.preprocess.stride or self.scale,
        }
        for key, side in sides.items():
            if side % self.scale:
                raise ValueError(f"{key} is {side}, expected a multiple of the scale {self.scale}")
        group = self.preprocess.row_group * self.preprocess.tile**2 * 3
        if group >= 2**31:
            raise ValueError(f"preprocess.row_group x tile x tile x 3 is {group} bytes, expected less than 2^31")
        if self.data.crop > self.preprocess.tile:
            raise ValueError(
                f"data.crop is {self.data.crop}, expected no more than preprocess.tile, {self.preprocess.tile}"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """No environment variables: $HOME would become `home`."""
        return (init_settings,)

    @property
    def downloads(self) -> str:
        """Absolute path or URL of the folder that downloads are kept in."""
        cache = self.cache or os.environ.get("SR_CACHE") or "~/.cache/sr-pipeline"
        return absolute_path(cache)

    @property
    def outputs(self) -> str:
        """Absolute path or URL of the home of all outputs; call before Ray changes the working directory."""
        home = self.home or os.environ.get("SR_HOME") or ("~/sr-runs" if _in_job() else "runs")
        return absolute_path(home)

    @property
    def new_records(self) -> str | None:
        """Path or URL of the folder that records of finished cells are put into."""
        if self.tune.records and _in_job() and "://" not in self.tune.records:
            return f"{self.outputs}/records"  # what Ray uploaded is deleted with the job
        return self.tune.records

    def to_yaml(self) -> str:
        """All settings as YAML, without the passwords that a URL may hold."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return re.sub(r"(?<=://)[^/@\s]+@", "", text)

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking server or database."""
        uri = self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri and uri.startswith("sqlite:///"):
            return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
        if uri:
            return uri
        if "://" in self.outputs:
            raise UserError(
                f"outputs go to {self.outputs}, where no SQLite file can live: "
                "set tracking.uri to an MLflow server or to sqlite:////path/mlflow.db"
            )
        return f"sqlite:///{self.outputs}/mlflow.db"


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with other settings, by their dotted keys, such as {"train.lr": 1e-3}.

    Raises:
        UserError: for an unknown key or a bad value.
    """
    changed = config.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        place: Any = changed
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place:
            raise UserError(f"unknown key {key}{closest(key)}")
        place[name] = value
    try:
        return Config(**changed)
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def _in_job() -> bool:
    """Whether this is the driver of a submitted job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


_SECTIONS = ("", *(name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")))


def sentence(error: ValidationError, file: str | None = None) -> str:
    """What pydantic found wrong, as one sentence: key, value, what was expected, and the file of the settings."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = f" (settings of {file} and the command line)" if file else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{closest(key)}{where}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error" and key in _SECTIONS:  # a check over several keys, which names them
        return message + where
    return f"{key} is {first['input']!r}, expected {message}{where}"


def closest(key: str) -> str:
    """A question for the known key that is most like an unknown one; nothing where none is like it."""
    match = difflib.get_close_matches(key, _keys(Config), n=1)
    return f", did you mean {match[0]}?" if match else ""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += _keys(kind, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return keys
