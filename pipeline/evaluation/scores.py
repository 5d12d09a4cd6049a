"""Score a trained network with PSNR and SSIM, beside bicubic interpolation and the untrained network.

`evaluate` scores the held-out images of a patch set and the configured benchmark sets, one Ray Data task for each
image, and writes scores.json. Running it again with the same weights, images and methods reads that file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Annotated

import torch
from PIL import Image
from pydantic import ConfigDict, Field

from pipeline import cluster, storage, terminal
from pipeline.data import benchmark_sets, patchset
from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.patchset import PatchSet
from pipeline.data.rejection import RejectedImageError
from pipeline.evaluation.scoring import feature_distance, load_pair, mean_scores
from pipeline.networks import features
from pipeline.networks.devices import best_device, cuda_fault
from pipeline.networks.upscaling import upscale
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, UserError
from sr_model.degrade import upscale_bicubic
from sr_model.metrics import score
from sr_model.networks import NetworkSettings
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import Pixels, to_pixels, to_tensor

PROTOCOL_VERSION = 2
"""Version of how images are scored; part of the identity of scores."""

PROTOCOL = (
    "PSNR and SSIM on the luma Y of BT.601 (MATLAB's rgb2ycbcr, 8 bits), without a border as wide as the scale; "
    "SSIM of Wang et al. 2004; PSNR (RGB) without the same border. Scores of a set are means over its images."
)
"""How images are scored, for people."""

HELD_OUT = "held-out"
"""Name of the set of held-out images."""

METHODS = {"bicubic": "bicubic", "untrained": "untrained network", "trained": "trained network"}
"""Label of each method that enlarges images."""

METRICS = {
    "psnr_y": "PSNR (Y), dB",
    "ssim_y": "SSIM (Y)",
    "psnr_rgb": "PSNR (RGB), dB",
    "distance": "SqueezeNet distance",
}
"""Label of each metric. The distance is measured only where the weights of its network are configured."""

Metrics = dict[str, float]
"""Values by the name of their metric, a key of `METRICS`."""

_PROCESSES_PER_GPU = 4
"""Worker processes that share a GPU. Each needs about 2 GB of its memory. While one decodes or encodes image files, the
others compute."""

_JSON = ConfigDict(ser_json_inf_nan="constants")  # older files may have an infinite PSNR


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image."""

    __pydantic_config__ = _JSON

    name: str
    scores: dict[str, Metrics]
    """Metrics by method."""
    shown: dict[str, Annotated[str, Field(pattern=r"^images/[^./\\][^/\\]*/[^./\\][^/\\]*$")]]
    """Place of each version of the image that a report shows, by method, and of the HR image as "hr": in scores.json
    below its folder, otherwise a path or URL."""


@dataclass(frozen=True)
class SetScores:
    """The scores of a set of images."""

    __pydantic_config__ = _JSON

    lr: str
    """Origin of the LR images, in words."""
    images: list[ImageScores]
    mean: dict[str, Metrics]
    """Mean over the images of each metric, by method."""


@dataclass(frozen=True)
class Scores:
    """All scores of one trained network: the content of scores.json."""

    identity: str
    """Fingerprint of the weights' content, the images, the methods and the protocol; it names no place."""
    protocol: str
    sets: dict[str, SetScores]
    """Scores by the name of the set."""


@dataclass(frozen=True)
class _HeldOut:
    """The place of a held-out image in a patch set."""

    patch_set: str
    index: int


@dataclass(frozen=True)
class _Image:
    """An image to score."""

    set: str
    index: int
    """Position in its set."""
    name: str
    version: str
    """Identifies the content: the patch set's name, or the version of a benchmark image."""
    source: _HeldOut | BenchmarkImage
    shown: bool
    """True if its enlarged versions are written for the report."""


@dataclass(frozen=True)
class _Networks:
    """The networks that enlarge the images of an evaluation, as a key of a worker's cache."""

    methods: tuple[str, ...]
    scale: int
    model: NetworkSettings
    seed: int
    weights: str
    sha256: str
    """Checksum of the weights, so that a worker notices other weights at the same place."""


@dataclass(frozen=True)
class _Task:
    """Everything that a worker needs to score an image."""

    number: int
    image: _Image
    methods: tuple[str, ...]
    networks: _Networks
    squeezenet: str
    folder: str
    max_pixels: int
    gpu: bool
    """True if the worker has a GPU."""


@dataclass(frozen=True)
class _Result:
    """The scores of a task's image."""

    number: int
    lr: str
    scores: dict[str, Metrics]
    shown: dict[str, str]
    gpu_fault: str | None
    """The reason why PyTorch cannot use the worker's GPU."""


def evaluate(
    config: Config,
    patch_set: PatchSet,
    weights: str,
    folder: str,
    methods: Sequence[str] = tuple(METHODS),
    stage: str = "evaluate",
) -> Scores:
    """Score held-out images and benchmark sets, or read the scores if the same was measured before.

    Args:
        config: names the network and the benchmark sets.
        patch_set: holds the held-out images.
        weights: path or URL of the trained weights.
        folder: path or URL for scores.json and the enlarged images.
        methods: the keys of `METHODS` to score.
        stage: name of the work on the screen.

    Raises:
        UserError: if the weights, a benchmark's folder or an image cannot be used.
        OSError: if the scores cannot be stored.
    """
    images, sha256 = _images(config, patch_set), _sha256(weights)
    identity = _identity(config, images, sha256, methods)
    known = _read(folder, identity)
    if known:
        return known
    networks = _Networks(tuple(methods), config.scale, config.model, config.train.seed, weights, sha256)
    squeezenet = features.prepare_distance(config)
    cluster.connect(config)
    gpus = cluster.gpu_pool(config, _PROCESSES_PER_GPU)
    limit = config.preprocess.max_pixels
    tasks = [
        _Task(number, image, tuple(methods), networks, squeezenet, folder, limit, gpus is not None)
        for number, image in enumerate(images)
    ]
    results: list[_Result] = []
    with terminal.stage(stage, total=len(tasks), unit="images") as shown:
        for result in cluster.map_tasks(_score, tasks, gpus):
            if isinstance(result, cluster.TaskError):
                image = result.task.image
                raise UserError(f"{image.name} of the set {image.set} cannot be scored: {result.reason}")
            if result.gpu_fault:
                reason = f"PyTorch cannot use a GPU that Ray counts ({result.gpu_fault})"
                storage.report_once(f"images are scored on the CPU, because {reason}")
            results.append(result)
            shown.update(len(results))
    results.sort(key=lambda result: result.number)
    sets: dict[str, SetScores] = {}
    for image, result in zip(images, results, strict=True):
        entry = sets.setdefault(image.set, SetScores(result.lr, [], {}))
        entry.images.append(ImageScores(image.name, result.scores, result.shown))
    for entry in sets.values():
        entry.mean.update({m: mean_scores([image.scores[m] for image in entry.images]) for m in methods})
    scores = Scores(identity, PROTOCOL, sets)
    storage.write_document(f"{folder}/scores.json", scores)
    return _located(scores, folder)


def read(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str] = tuple(METHODS)
) -> Scores | None:
    """Return the scores in `folder`, or None unless they are whole and of these weights, images and methods."""
    return _read(folder, _identity(config, _images(config, patch_set), _sha256(weights), methods))


def _read(folder: str, identity: str) -> Scores | None:
    scores = storage.read_expendable(f"{folder}/scores.json", Scores, "the images are scored again")
    if scores is None or scores.identity != identity or not _has_shown_images(scores, folder):
        return None
    return _located(scores, folder)


def _has_shown_images(scores: Scores, folder: str) -> bool:
    shown = {name for entry in scores.sets.values() for image in entry.images for name in image.shown.values()}
    folders = {name.rpartition("/")[0] for name in shown}
    there = {f"{part}/{name}" for part in folders for name, size in storage.sizes(f"{folder}/{part}").items() if size}
    return shown <= there


def _identity(config: Config, images: Sequence[_Image], weights: str, methods: Sequence[str]) -> str:
    """Fingerprint of everything that shapes scores; `weights` is the checksum of the trained weights."""
    return storage.fingerprint(
        {
            "protocol": PROTOCOL_VERSION,
            "scale": config.scale,
            "weights": weights,
            "untrained": [config.model.model_dump(mode="json"), config.train.seed] if "untrained" in methods else None,
            "images": [[image.set, image.name, image.version, image.shown] for image in images],
            "methods": list(methods),
            "distance": features.distance_identity(config),
        }
    )


def _sha256(weights: str) -> str:
    content = storage.read(weights)
    if content is None:
        raise UserError(f"there are no weights at {weights}, expected a .safetensors file")
    return hashlib.sha256(content).hexdigest()


def _images(config: Config, patch_set: PatchSet) -> list[_Image]:
    """List the images to score, set by set."""
    shown = config.evaluate.images
    images = [
        _Image(HELD_OUT, i, name, patch_set.name, _HeldOut(patch_set.url, i), i < shown)
        for i, name in enumerate(patch_set.holdout_names)
    ]
    for name, source in config.evaluate.benchmarks.items():
        found = benchmark_sets.list_images(name, source, config.scale, config.downloads)
        images += [_Image(name, i, image.name, image.version, image, i < shown) for i, image in enumerate(found)]
    return images


def _located(scores: Scores, folder: str) -> Scores:
    """Turn the names of shown images, which are relative in the file, into paths or URLs."""

    def located(image: ImageScores) -> ImageScores:
        return replace(image, shown={kind: f"{folder}/{name}" for kind, name in image.shown.items()})

    sets = {
        name: replace(entry, images=[located(image) for image in entry.images]) for name, entry in scores.sets.items()
    }
    return replace(scores, sets=sets)


def _score(task: _Task) -> _Result:
    """Ray Data task: score one image, and write its enlarged versions if the report shows them."""
    image, scale = task.image, task.networks.scale
    try:
        hr, lr, origin = _load_pair(task)
    except RejectedImageError as error:
        raise UserError(f"it {error}") from None
    device = best_device() if task.gpu else torch.device("cpu")
    nets = _load_networks(task.networks, device)
    low, high = to_tensor(lr, device), to_tensor(hr, device)
    enlarged = {
        method: upscale(nets[method], low) if method in nets else upscale_bicubic(low, scale) for method in task.methods
    }
    shown = {}
    if image.shown:
        stem = f"images/{image.set}/{image.index}_{storage.plain_name(image.name)}"
        for kind, pixels in {**{method: to_pixels(sr) for method, sr in enlarged.items()}, "hr": hr}.items():
            storage.write(f"{task.folder}/{stem}-{kind}.png", _png(pixels))
            shown[kind] = f"{stem}-{kind}.png"
    scores: dict[str, Metrics] = {method: asdict(score(sr, high, border=scale)) for method, sr in enlarged.items()}
    if task.squeezenet:
        for method, sr in enlarged.items():
            scores[method]["distance"] = feature_distance(task.squeezenet, sr, high)
    return _Result(task.number, origin, scores, shown, cuda_fault() if task.gpu else None)


def _load_pair(task: _Task) -> tuple[Pixels, Pixels, str]:
    source = task.image.source
    if isinstance(source, _HeldOut):
        image = patchset.load(source.patch_set).read_holdout(source.index)
        return image.hr, image.lr, "made by this pipeline"
    return load_pair(source.hr, source.lr, task.networks.scale, task.max_pixels)


@lru_cache(maxsize=2)
def _load_networks(networks: _Networks, device: torch.device) -> dict[str, SuperResolver]:
    nets = {}
    for method in {"untrained", "trained"} & set(networks.methods):
        net = build_network(networks.scale, networks.model, networks.seed).eval()
        if method == "trained":
            load_weights(net, networks.weights)
        nets[method] = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return nets


def _png(image: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, "PNG")
    return sink.getvalue()
