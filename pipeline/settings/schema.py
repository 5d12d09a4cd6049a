"""The configuration: every setting of the pipeline, typed, documented and validated.

The files in configs/ hold values of `Config`. `pipeline.settings.command_line` reads a file and the options that
override it, and `pipeline.settings.places` makes its places absolute.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import yaml
from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.settings.data import Data, Preprocess
from pipeline.settings.environment import Cluster, Tracking, sqlite_uri
from pipeline.settings.errors import UserError
from pipeline.settings.evaluation import Evaluate
from pipeline.settings.fields import absolute_path, absolute_source
from pipeline.settings.grid import Tune
from pipeline.settings.methods import DEFAULT_METHOD
from pipeline.settings.network import Model, default_model, known_networks
from pipeline.settings.training import Train
from pipeline.storage import redact
from sr_model.terms import TERMS


class Config(BaseSettings):
    """Settings of the super-resolution pipeline."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_kebab_case=False,
        cli_parse_none_str="null",
    )

    name: str = "srresnet"
    """Name of the workflow, by default the name of its network. Names of its folders start with it."""
    home: str | None = None
    """Folder or URL of all outputs. By default $SR_HOME or, if that is not set, runs/ in the current folder, and
    ~/sr-runs in a submitted job."""
    cache: str | None = None
    """Folder or URL in which downloads are kept. By default $SR_CACHE or, if that is not set, ~/.cache/sr-pipeline."""
    source: list[str] = ["builtin"]
    """Training and validation images, as one or more comma-separated sources: "builtin" (photographs that ship with
    installed packages), "div2k", "div2k/train" or "div2k/valid" (downloaded), or the paths or URLs of folders, image
    files, zip and tar archives, Parquet or CSV tables of URLs, or glob patterns."""
    scale: Literal[2, 3, 4, 8] = 4
    """Upscaling factor."""
    preprocess: Preprocess = Preprocess()
    """Settings for turning images into a patch set."""
    data: Data = Data()
    """Settings for drawing training samples from a patch set. Together with train.seed they define the sample order."""
    model: Model = default_model()
    """Settings of the network."""
    train: Train = Train()
    """Settings of the training."""
    evaluate: Evaluate = Evaluate()
    """Settings for scoring a trained network."""
    tune: Tune = Tune()
    """Settings of the grid that `python -m pipeline.tune` trains."""
    log_format: Literal["text", "json"] | None = None
    """Format of a command's output: "text" for people, "json" for programs that collect logs, with a JSON object in
    each line. By default $SR_LOG_FORMAT or, if that is not set, "text"."""
    tracking: Tracking = Tracking()
    """Settings of MLflow."""
    cluster: Cluster = Cluster()
    """Settings of the Ray cluster and of its training workers."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_network(cls, values: Any) -> Any:
        """Name the workflow of another network than the default one after it."""
        model = values.get("model") if isinstance(values, dict) and "name" not in values else None
        network = model.get("name") if isinstance(model, dict) else getattr(model, "name", None)
        return {**values, "name": network} if network in known_networks() else values

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError('letters A to Z, digits, ".", "_" and "-", beginning with a letter or digit')
        return value

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_path(value)

    @field_validator("scale", mode="before")
    @classmethod
    def _integer_from_text(cls, value: Any) -> Any:
        """Convert the command line's text, because a choice of integers does not accept it."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("source", mode="before")
    @classmethod
    def _list_from_text(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _absolute_sources(cls, value: list[str]) -> list[str]:
        return [absolute_source(source) for source in value]

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Config:
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
            raise ValueError(f"preprocess.row_group x preprocess.tile^2 x 3 is {group} bytes, expected less than 2^31")
        if self.data.crop > self.preprocess.tile:
            raise ValueError(
                f"data.crop is {self.data.crop}, expected no more than preprocess.tile, {self.preprocess.tile}"
            )
        for name in self.train.loss:
            smallest = TERMS[name].smallest(self.train.term_settings(name))
            if self.data.crop < smallest:
                raise ValueError(f"data.crop is {self.data.crop}, expected at least {smallest} for the term {name}")
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
        """Ignore environment variables, because $HOME would set `home`."""
        return (init_settings,)

    @property
    def outputs(self) -> str:
        """Absolute path or URL of the home folder, which holds all outputs."""
        if self.home is None:
            raise ValueError("this configuration has no home, expected one from pipeline.settings.resolve")
        return self.home

    @property
    def downloads(self) -> str:
        """Absolute path or URL of the folder for downloads; a folder in the home if `cache` is not set."""
        return self.cache or f"{self.outputs}/downloads"

    @property
    def tracking_uri(self) -> str:
        """URI of the MLflow tracking server or database.

        Raises:
            UserError: if there is none, because the outputs go to a URL and no server was named.
        """
        if self.tracking.uri:
            return self.tracking.uri
        if "://" in self.outputs:
            raise UserError(
                f"outputs go to {self.outputs}, which cannot hold a SQLite file: "
                "set tracking.uri to an MLflow server or to sqlite:////path/mlflow.db"
            )
        return sqlite_uri(f"{self.outputs}/mlflow.db")

    @property
    def training_label(self) -> str:
        """Beginning of the name of the training that this configuration describes, such as "srresnet-x4-bn-mse"."""
        method = "" if self.train.method == DEFAULT_METHOD else f"-{self.train.method}"
        return f"{self.name}-x{self.scale}-{self.model.label}-{'+'.join(self.train.loss)}{method}"

    @property
    def registered_model(self) -> str | None:
        """Name of the registered model that gets a version of the network, or None if nothing is registered."""
        default = f"{self.model.name}-x{self.scale}" if self.tracking.register_models else None
        return self.tracking.register_as or default

    @property
    def new_records(self) -> str | None:
        """Path or URL of the folder for records of newly finished cells, or None if they are not recorded."""
        return self.tune.new_records or self.tune.records

    def to_yaml(self) -> str:
        """Return the settings as YAML for another user or machine.

        The text leaves out the places that `resolve` sets, because each machine has its own, and the secrets in URLs.
        """
        places: Any = {"home": True, "cache": True, "log_format": True, "tracking": {"uri"}, "tune": {"new_records"}}
        return yaml.safe_dump(_redacted(self.model_dump(mode="json", exclude=places)), sort_keys=False)


def _redacted(value: Any) -> Any:
    """Return a JSON value with the secrets removed from the URLs in its texts."""
    if isinstance(value, dict):
        return {key: _redacted(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_redacted(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value
