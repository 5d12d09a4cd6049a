"""Weights of pretrained networks that compare images: the driver finds or downloads them, workers load them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pipeline import storage
from pipeline.downloads import download
from pipeline.networks.weights import parse_weights, serialise
from pipeline.settings import Config, Train, UserError
from pipeline.settings.methods import measured_metrics
from pipeline.storage import fingerprint, one_line
from sr_model import squeezenet
from sr_model.pretrained import Pretrained
from sr_model.squeezenet import SqueezeNetDistance
from sr_model.stlpips import STLPIPS
from sr_model.terms import TERMS, Term

PUBLISHED = {
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "vgg19": ("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
    "squeezenet1_1": ("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0"),
}
"""torchvision's files, and the first digits of their SHA-256, which are part of the file names."""

_ST_LPIPS = Path(__file__).resolve().parent / "metrics" / "st-lpips" / "model.safetensors"


def prepare_terms(config: Config) -> Config:
    """Store the pretrained weights of the objective's terms in the outputs' home, and name them in the configuration.

    If validations measure the SqueezeNet distance, its weights are stored and named, too. The driver calls this once;
    workers never download.

    Raises:
        UserError: if weights cannot be found or downloaded, or lack what a term or the distance needs.
    """
    if "distance" in measured_metrics(config):
        squeezenet = prepare_distance(config)
        if not squeezenet:
            raise UserError(
                "tune.metric is val/distance, expected evaluate.squeezenet to name the weights of this distance"
            )
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"squeezenet": squeezenet})})
    needed = config.train.pretrained()
    if not needed:
        return config
    stored = {name: _store(config, weights) for name, weights in needed.items()}
    return config.model_copy(update={"train": config.train.with_pretrained(stored)})


def load_terms(settings: Train, device: torch.device) -> list[Term]:
    """Make the terms of the objective, with their pretrained weights on a device.

    Raises:
        UserError: if weights cannot be read or lack what a term needs.
    """
    terms = []
    for name, weight in settings.loss.items():
        kind, own = TERMS[name], settings.term_settings(name)
        needed = kind.pretrained(own)
        weights = _load_cached(needed.setting, needed.source) if needed else {}
        try:
            distance = kind.create(own, weights)
        except (ValueError, RuntimeError) as error:
            raise _lacking(needed, error) if needed else error from None
        if isinstance(distance, torch.nn.Module):
            distance = distance.to(device, torch.get_default_dtype()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        terms.append(Term(name, weight, kind.start(own), distance, kind.shift(own), settings.seed))
    return terms


def identify(needed: Pretrained) -> str:
    """Identify the file of pretrained weights by its content; it reads a local file and downloads nothing.

    Raises:
        UserError: if the file does not exist.
    """
    return _identify(needed.setting, needed.source, needed.network)


def prepare_distance(config: Config) -> str:
    """Store SqueezeNet's weights in the outputs' home, for `load_distance`.

    Returns:
        Path or URL of the stored weights, or "" if no distance is configured.

    Raises:
        UserError: if the weights cannot be found or downloaded, or belong to another network.
    """
    source = config.evaluate.squeezenet
    return "" if source is None else _store(config, squeezenet.pretrained(source))


def distance_identity(config: Config) -> str:
    """Identify the weights of the SqueezeNet distance by their content; "" if no distance is configured."""
    source = config.evaluate.squeezenet
    return "" if source is None else identify(squeezenet.pretrained(source))


@lru_cache(maxsize=1)
def load_distance(url: str, device: torch.device) -> SqueezeNetDistance:
    """Load the SqueezeNet distance from what `prepare_distance` returned to a device."""
    return SqueezeNetDistance(_load_cached("evaluate.squeezenet", url)).to(device)


@lru_cache(maxsize=1)
def load_st_lpips(device: torch.device) -> STLPIPS:
    """Load ST-LPIPS, whose weights come with the package, to a device."""
    return STLPIPS(parse_weights(_ST_LPIPS.read_bytes())).to(device)


def _store(config: Config, needed: Pretrained) -> str:
    """Store the needed part of the weights in the outputs' home, unless it is there, and return its location."""
    part = fingerprint([identify(needed), needed.network, *needed.part])
    url = f"{config.outputs}/features/{needed.network}-{part}.safetensors"
    if not _is_stored(url, needed):
        selected = _select(config, needed)
        storage.write(url, serialise({name: value.float().contiguous() for name, value in selected.items()}))
    return url


def _is_stored(url: str, needed: Pretrained) -> bool:
    """Tell whether the home has the needed part of the weights; a damaged file counts as missing."""
    content = storage.read(url)
    try:
        return content is not None and bool(needed.select(parse_weights(content)))
    except (ValueError, RuntimeError) as error:
        storage.report_once(f"{url} is damaged ({one_line(error, 200)}): it is made again")
        return False


def _select(config: Config, needed: Pretrained) -> dict[str, Tensor]:
    """Load the whole weights, after a download if necessary, and return the needed part."""
    downloaded = needed.source == "torchvision"
    file = _download(config, needed) if downloaded else needed.source
    try:
        whole = _load(needed.setting, file)
        return needed.select(whole)
    except (UserError, ValueError, RuntimeError) as error:
        if downloaded:
            download.discard(file)
            raise UserError(f"the download {file} was damaged and is removed: rerun the command") from None
        if isinstance(error, UserError):
            raise
        raise _lacking(needed, error) from None


def _lacking(needed: Pretrained, error: Exception) -> UserError:
    return UserError(f"{needed.setting} is {needed.source}: {one_line(error, 200)}")


@lru_cache(maxsize=8)
def _identify(setting: str, source: str, network: str) -> str:
    return PUBLISHED[network][1] if source == "torchvision" else hashlib.sha256(_read(setting, source)).hexdigest()


def _download(config: Config, needed: Pretrained) -> str:
    url, digits = PUBLISHED[needed.network]
    try:
        file = download.fetch(url, config.downloads)
    except download.DownloadError as error:
        raise UserError(
            f"{error}; the weights of {needed.network} are required: expected {needed.setting} to name a .safetensors "
            "or .pth file with torchvision's names, or a network connection to download them"
        ) from None
    found = download.recorded_sha256(file) or ""
    if not found.startswith(digits):
        download.discard(file)
        raise UserError(f"{url} has the SHA-256 {found}, expected one that begins with {digits}")
    return file


@lru_cache(maxsize=2)
def _load_cached(setting: str, url: str) -> dict[str, Tensor]:
    return _load(setting, url)


def _load(setting: str, url: str) -> dict[str, Tensor]:
    content = _read(setting, url)
    try:
        return parse_weights(content) if url.endswith(".safetensors") else _parse_pth(content)
    except Exception as error:  # the unpickler of PyTorch raises exceptions of many classes for a damaged file
        raise UserError(
            f"{setting} is {url}, expected a .safetensors file, or a .pth file that holds nothing but tensors "
            f"({one_line(error, 200)})"
        ) from None


def _parse_pth(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file that `torch.save` wrote. They take no more memory than the file."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
    file.seek(0)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def _read(setting: str, url: str) -> bytes:
    content = storage.read(url)
    if content is None:
        raise UserError(f"{setting} is {url}, expected an existing .safetensors or .pth file")
    return content
