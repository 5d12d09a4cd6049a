"""Every setting of the pipeline, typed, documented and validated in one place.

`configs/*.yaml` are instances of `Config`; `pipeline.commandline` reads them, and options that override them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sr_model import losses, perceptual

Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# Defaults are validated, too, so that 0 is the 0.0 that a file or command line gives: names are made of them.
_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class UserError(Exception):
    """A mistake or circumstance that the user can mend; its text is one sentence: what, where, what was expected."""


class Degradation(BaseModel):
    """What makes the LR picture of an HR one, in this order; computed on whole pictures."""

    model_config = _STRICT

    blur: float = Field(0, ge=0, le=20)
    """HR pixels, standard deviation of a Gaussian blur; 0 for none."""
    bicubic: Literal["matlab", "legacy"] = "matlab"
    """Form of the reduction: today's MATLAB, or the 8-bit form of the published benchmark files."""
    noise: float = Field(0, ge=0, le=100)
    """Grey levels of 255, standard deviation of Gaussian noise on the LR picture; 0 for none."""
    jpeg: int | None = Field(None, ge=1, le=100)
    """Quality of a JPEG compression of the LR picture; none where not given."""
    seed: int = 0
    """Of the noise, together with the picture's content."""


class Preprocess(BaseModel):
    """From pictures to a patch set."""

    model_config = _STRICT

    holdout: list[str] = []
    """Glob patterns, on a picture's path in its source or its name without extension, of pictures kept for validation,
    never trained on."""
    holdout_count: int = Field(1, ge=1)
    """Pictures kept for validation where `holdout` is empty, chosen by their content."""
    degradation: Degradation = Degradation()
    """What makes the LR picture of an HR one."""
    max_side: int | None = Field(None, ge=64)
    """Pixels; a picture with a longer side is first reduced to it, which also removes JPEG and sensor noise."""
    tile: int = Field(192, ge=32)
    """HR pixels, side of a stored tile; larger than the training crop, so that crops stay random."""
    stride: int | None = Field(None, ge=8)
    """HR pixels between tiles; the tile's side where not given. The remainder at the far borders is always covered."""
    min_detail: float = Field(0, ge=0, le=128)
    """Grey levels; tiles whose mean of R, G and B has a smaller standard deviation (sky, walls) are dropped."""
    row_group: int = Field(8, ge=1)
    """Tiles in a Parquet row group, the unit of reading and of dealing to lanes."""
    shard_mb: float = Field(128, gt=0)
    """MB, target size of a shard."""
    max_pixels: int = Field(200_000_000, ge=1)
    """Pixels; a larger picture is rejected (decompression bombs)."""
    max_reject_share: float = Field(0.05, ge=0, le=1)
    """Share of rejected pictures above which preprocessing fails."""


class Data(BaseModel):
    """From a patch set to training samples. These settings define the sample order, together with `train.seed`."""

    model_config = _STRICT

    crop: int = Field(96, ge=16)
    """HR pixels, side of a training patch."""
    crops_per_tile: int | None = Field(None, ge=1)
    """Random crops of each tile in an epoch; (tile / crop)^2 where not given, which covers about every pixel once."""
    lanes: int = Field(8, ge=1)
    """Independent shuffled streams that row groups are dealt to; worker r of N reads lanes r, r + N and so on, so
    that the samples of a step don't depend on N. At least N, at best a multiple."""
    window: int = Field(256, ge=1)
    """Tiles of a lane that are shuffled together; bounds the memory of a lane."""
    augment: bool = True
    """Random flips and quarter turns."""
    hold: Literal["auto", "map", "stream"] = "auto"
    """Where tiles are read from: "map" makes an unpacked copy on each node, which its workers map into memory; "stream"
    reads the patch set where it lies; "auto" maps if the copy fits `hold_mb` and half of the free disk. The batches are
    the same."""
    hold_mb: float = Field(8000, ge=0)
    """MB of unpacked tiles up to which "auto" maps."""
    scratch: str | None = None
    """Folder on each node for unpacked tiles; one in the system's temporary folder where not given."""


class Model(BaseModel):
    """The network."""

    model_config = _STRICT

    channels: int = Field(64, ge=4)
    """Feature channels."""
    blocks: int = Field(16, ge=1)
    """Residual blocks."""
    batch_norm: bool = True
    """BatchNorm after the convolutions of the body."""
    init: Literal["upsampler", "paper"] = "upsampler"
    """Initialisation: an interpolating upsampler from the start, or PyTorch's default (the paper names none)."""


class Perceptual(BaseModel):
    """The term "perceptual" of the objective: a distance between VGG features."""

    model_config = _STRICT

    network: Literal["vgg16", "vgg19"] = "vgg19"
    """Which VGG."""
    layers: dict[str, Weight] = {"conv2_2": 1.0}
    """Weight of each layer: "conv5_4" is before the activation, "relu5_4" after it. The paper's VGG22 and VGG54 are
    relu2_2 and relu5_4; before the activation, features say more."""
    distance: Literal["mse", "l1"] = "mse"
    """Between features, the mean over a layer."""
    scale: float = Field(1.0, gt=0)
    """Factor on features; 1/12.75 = 0.0784 for the published weights in the paper."""
    start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps after which the term joins the others, which train alone until then; Ledig et al. 2017 let
    networks learn pixels first, too."""
    weights: str = "torchvision"
    """Path or URL of a .safetensors or .pth file with torchvision's names (features.N.weight); "torchvision" downloads
    the published file, 550 MB."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return value if value == "torchvision" else _absolute_path(value)

    @model_validator(mode="after")
    def _known_layers(self) -> Perceptual:
        if not self.layers:
            raise ValueError("train.perceptual.layers is empty, expected at least one layer, such as conv2_2")
        for layer in self.layers:
            perceptual.layer_index(self.network, layer)
        return self


class Train(BaseModel):
    """The training run."""

    model_config = _STRICT

    length: str = "1000 steps"
    """Such as "1000 steps", "20 epochs" or "25 minutes"; minutes, validation included, are turned into steps by
    measuring a few before the start."""
    global_batch: int = Field(16, ge=1)
    """Patches an optimizer step, over all workers and micro-batches."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Largest number of patches a worker holds at once; gradients are accumulated up to the global batch. "auto" takes
    what fits four fifths of `memory_mb`, by measuring small ones before the start."""
    memory_mb: float | None = Field(None, gt=0)
    """MB a worker may use; its share of what is free on its device where not given."""
    recompute: bool = False
    """Compute the activations of a block again instead of keeping them (activation checkpointing): less memory, more
    time, the same gradients."""
    loss: dict[str, Weight] = {"mse": 1.0}
    """Weight of each term of the objective: mse, l1, charbonnier, tv, perceptual."""
    perceptual: Perceptual = Perceptual()
    """The term "perceptual"."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Adam; or Muon for the hidden 3x3 convolutions (Jordan et al. 2024) and Adam for the rest: the same PSNR in fewer
    steps."""
    lr: float = Field(4e-4, gt=0)
    """Peak learning rate, at a global batch of `lr_batch`."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How the peak learning rate grows with global_batch / lr_batch: not at all, with its square root (Krizhevsky 2014,
    arXiv:1404.5997), or in proportion (Goyal et al. 2017, arXiv:1706.02677)."""
    lr_batch: int = Field(16, ge=1)
    """Global batch that `lr` is meant for."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    stable: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, the warm-up included, after which the learning rate begins to fall."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How it falls: along half a cosine, or in proportion to the steps. "linear" with `stable` is the trapezoid, also
    called warmup-stable-decay (Hägele et al. 2024, arXiv:2405.18392)."""
    lr_final: float = Field(0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the weights' moving average (EMA), which is what is validated and shipped. It warms up from 0.1: a
    constant 0.999 from the first step would lag by a thousand steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward and backward pass; "auto" takes bf16 where the device computes it in hardware."""
    channels_last: bool = True
    """Memory layout in which channels of a pixel lie together: what convolutions on CPU and tensor cores want."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile, which takes half a minute before the first step; "auto" takes it from 2000 steps on, where a
    compiler is at hand."""
    max_skipped: int = Field(10, ge=1)
    """Steps in a row with a non-finite loss or gradient, which are skipped, after which training stops."""
    seed: int = 0
    """Seed of initialisation, sample order and augmentation."""
    init_from: str | None = None
    """Weights to start from: a .safetensors file (path or URL) of the same network."""
    validate_every: int = Field(200, ge=1)
    """Steps between validations on the held-out pictures."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; those since the newest are repeated after an interruption."""
    keep: int = Field(1, ge=0)
    """Checkpoints kept beside the newest, and beside the weights that were best on the held-out pictures."""
    log_every: int = Field(10, ge=1)
    """Steps between records of loss, learning rate and throughput."""

    @field_validator("length")
    @classmethod
    def _amount_and_unit(cls, value: str) -> str:
        if not re.fullmatch(r"(0\.0*[1-9]\d*|[1-9]\d*(\.\d+)?) (steps|epochs|minutes)", value):
            raise ValueError('such as "1000 steps", "20 epochs" or "25 minutes"')
        return value

    @field_validator("init_from")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else _absolute_path(value)

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(losses.NAMES))
        if unknown or not value:
            raise ValueError(f"terms among {sorted(losses.NAMES)}")
        return value

    @model_validator(mode="after")
    def _pixels_until_the_start(self) -> Train:
        if self.perceptual.start and "perceptual" in self.loss and set(self.loss) <= {"perceptual", "tv"}:
            raise ValueError("train.perceptual.start needs a term of pixels until then, such as l1 in train.loss")
        return self


class Evaluate(BaseModel):
    """Measuring a trained network."""

    model_config = _STRICT

    benchmarks: dict[str, str] = {}
    """Benchmark sets, name=folder, in a layout of docs/data.md: with the set's LR files, or HR pictures alone."""
    pictures: int = Field(6, ge=0)
    """Pictures shown in the report, per set."""
    squeezenet: str | None = None
    """Weights of SqueezeNet 1.1 for a perceptual distance that nothing was trained on: path or URL of a .safetensors or
    .pth file with torchvision's names, or "torchvision" to download the published file, 5 MB; where not given, that
    distance isn't measured."""
    while_training: bool = False
    """Also score the benchmark sets at each validation: for display only, they choose nothing."""

    @field_validator("benchmarks")
    @classmethod
    def _absolute_folders(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", name) or name == "held-out":
                raise ValueError(f"another name than {name!r}: letters, digits, spaces, dots and dashes; not held-out")
        return {name: _absolute_source(source) for name, source in value.items()}

    @field_validator("squeezenet")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value in (None, "torchvision") else _absolute_path(value)


class Tune(BaseModel):
    """The grid of `python -m pipeline.tune`."""

    model_config = _STRICT

    grid: dict[str, list[Any] | dict[str, Any]] = {
        "model.batch_norm": [True, False],
        "train.loss": {"mse": {"mse": 1.0}, "perceptual": {"perceptual": 1.0, "tv": 5.5e-4}},
    }
    """Axes: values of any setting, of which every combination is a trial; a mapping gives them names."""
    sample: dict[str, dict[str, list[Any]]] = {}
    """Settings that are drawn at random for each trial: {"train.lr": {"loguniform": [1e-4, 1e-3]}}, also uniform,
    randint, lograndint, and choice with the list of values."""
    samples: int = Field(1, ge=1)
    """Random draws for every combination of the grid, seeded by `train.seed`."""
    also: dict[str, dict[str, Any]] = {}
    """Further cells, by name: the settings, by dotted key, in which each differs from the configuration."""
    scheduler: Literal["none", "asha"] = "none"
    """Whether trials that are behind are stopped early (asynchronous successive halving)."""
    metric: str = "val/psnr_y"
    """What the scheduler goes by: of held-out pictures; benchmark sets choose nothing."""
    grace: int = Field(500, ge=1)
    """Steps before which the scheduler stops no trial."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at once; where not given, as many as fit."""
    records: str | None = None
    """Folder that finished cells are put into, each with its weights in fp16, metrics and a model card; a cell whose
    training is found there counts as finished. A submitted job puts them into records/ of the home of outputs."""
    note: str = ""
    """What the pictures are and on what terms they may be used, for the model cards."""

    @field_validator("metric")
    @classmethod
    def _held_out(cls, value: str) -> str:
        if not value.startswith("val/"):
            raise ValueError("a metric of held-out pictures, such as val/psnr_y or val/ssim_y")
        return value

    @field_validator("records")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else _absolute_path(value)


class Tracking(BaseModel):
    """MLflow."""

    model_config = _STRICT

    uri: str | None = None
    """Tracking server or database; $MLFLOW_TRACKING_URI, else a SQLite file in the home of outputs."""
    experiment: str = Field("super-resolution", min_length=1)
    """Experiment that the runs belong to."""


class Cluster(BaseModel):
    """Where the work runs; changes no result beyond rounding, but for BatchNorm.

    Its statistics are those of a worker's micro-batch on CPU, and of all workers' micro-batches on GPUs.
    """

    model_config = _STRICT

    address: str | None = None
    """Ray cluster; $RAY_ADDRESS, else a local Ray that ends with the command."""
    workers: int | None = Field(None, ge=1)
    """Training workers; where not given one a GPU, without GPUs two (or one on a single core)."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with fewer workers, down to this number, after a node was lost, and with `workers` again when one is back;
    where not given, wait for a replacement."""
    resize_s: float = Field(60, gt=0)
    """Seconds between looks for a lost worker's replacement, where `min_workers` is given."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPU cores of a training worker; an equal share of the cluster's where not given."""
    gpu: bool | None = None
    """Train on GPUs; where not given, if the cluster has any."""
    max_failures: int = Field(2, ge=-1)
    """Restarts of training from its newest checkpoint after a worker was lost; -1 for any number."""
    object_store_mb: int = Field(256, ge=80)
    """MB of shared memory of a local Ray."""
    timeout_s: int = Field(600, ge=10)
    """Seconds without progress after which a worker counts as hung and training restarts from its newest checkpoint;
    longer than a step and than any held-out picture takes."""


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
    """Pictures: "builtin" (photographs that installed packages ship), "div2k" (downloaded; or one part, div2k/train,
    div2k/valid), folders, files, glob patterns, zip and tar archives; local paths or URLs; several with commas."""
    scale: Literal[2, 3, 4, 8] = 4
    """Upscaling factor."""
    preprocess: Preprocess = Preprocess()
    """From pictures to a patch set."""
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
        return value if value is None else _absolute_path(value)

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
        return [_absolute_source(source) for source in value]

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
        return _absolute_path(cache)

    @property
    def outputs(self) -> str:
        """Absolute path or URL of the home of all outputs; call before Ray changes the working directory."""
        home = self.home or os.environ.get("SR_HOME") or ("~/sr-runs" if _in_job() else "runs")
        return _absolute_path(home)

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


def fingerprint(value: Any) -> str:
    """Name of a JSON-like value by its content: 12 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _in_job() -> bool:
    """Whether this is the driver of a submitted job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _absolute_path(path: str) -> str:
    """Workers run in folders of their own."""
    if not path:
        raise ValueError("a path or URL")
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_source(source: str) -> str:
    """A name such as "builtin" or "div2k/valid" is no path."""
    return source if source == "builtin" or source.split("/")[0] == "div2k" else _absolute_path(source)


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
