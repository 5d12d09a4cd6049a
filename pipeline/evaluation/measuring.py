"""Score images on the cluster, one Ray Data task for each image: every method enlarges it, and every metric judges."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline import cluster, storage, terminal
from pipeline.data import benchmark_sets, patchset, sources
from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.images import decode
from pipeline.data.locations import Location
from pipeline.data.patchset import PatchSet
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.evaluation.methods import Method, load_all
from pipeline.evaluation.scores import (
    HELD_OUT,
    PROTOCOL,
    PROTOCOL_VERSION,
    ImageScores,
    Metrics,
    Scores,
    SetScores,
    discard_scores,
    write_scores,
)
from pipeline.evaluation.scoring import load_pair, mean_scores, measure
from pipeline.networks import features
from pipeline.networks.devices import best_device, cuda_fault
from pipeline.settings import Config, Degradation, UserError
from sr_model.pixels import Pixels, to_pixels, to_tensor

_PROCESSES_PER_GPU = 4
"""Worker processes that share a GPU. Each needs about 2 GB of its memory. While one decodes or encodes image files, the
others compute."""


@dataclass(frozen=True)
class HeldOut:
    """The place of a held-out image in a patch set."""

    patch_set: str
    index: int


@dataclass(frozen=True)
class EnlargedFile:
    """An image that another tool has enlarged."""

    location: Location
    version: str
    """It changes when the content of the file changes."""


@dataclass(frozen=True)
class ScoredImage:
    """An image to score."""

    set: str
    index: int
    """Position in its set."""
    name: str
    version: str
    """Identifies the content: the patch set's name, or the version of a benchmark image."""
    source: HeldOut | BenchmarkImage
    shown: bool
    """True if its enlarged versions are written for a report."""
    files: Mapping[str, EnlargedFile] = field(default_factory=dict)
    """Results of other tools, by the name under which they are scored."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that shapes the scores: images, methods and metrics."""

    scale: int
    images: Sequence[ScoredImage]
    methods: Sequence[Method]
    names: Sequence[str]
    """All methods in the order of tables: those of `methods` and those that have files."""
    show_lr: bool = False
    """True if the LR version of shown images is written, too."""

    def identify(self, config: Config) -> str:
        """Return a fingerprint of the content of images and methods, of the metrics and of the protocol."""
        degradation = config.evaluate.degradation
        return storage.fingerprint(
            {
                "protocol": PROTOCOL_VERSION,
                "metrics": ["ssim_rgb", "lr_psnr", *(["st_lpips"] if config.evaluate.st_lpips else [])],
                "scale": self.scale,
                "images": [
                    [
                        *(image.set, image.name, image.version, image.shown),
                        {name: file.version for name, file in image.files.items()},
                    ]
                    for image in self.images
                ],
                "methods": [method.identity() for method in self.methods],
                "names": list(self.names),
                "show_lr": self.show_lr,
                "distance": features.distance_identity(config),
                **({"degradation": degradation.model_dump(mode="json")} if degradation.label else {}),
            }
        )


@dataclass(frozen=True)
class _Task:
    """Everything that a worker needs to score an image."""

    number: int
    image: ScoredImage
    evaluation: Evaluation
    """The evaluation without its images."""
    squeezenet: str
    st_lpips: bool
    folder: str
    max_pixels: int
    degradation: Degradation
    """Degradation of the LR images of benchmark sets."""
    gpu: bool
    """True if the worker has a GPU."""


@dataclass(frozen=True)
class _Result:
    """The scores of a task's image."""

    number: int
    lr: str
    scores: dict[str, Metrics]
    shown: dict[str, str]
    problems: list[str]
    gpu_fault: str | None
    """The reason why PyTorch cannot use the worker's GPU."""


def list_images(config: Config, patch_set: PatchSet | None = None) -> list[ScoredImage]:
    """List the images to score, set by set: the held-out images of a patch set, if there is one, and the benchmarks.

    Raises:
        UserError: if a benchmark set cannot be used.
    """
    shown = config.evaluate.images
    images = []
    if patch_set:
        images = [
            ScoredImage(HELD_OUT, i, name, patch_set.name, HeldOut(patch_set.url, i), i < shown)
            for i, name in enumerate(patch_set.holdout_names)
        ]
    for name, source in config.evaluate.benchmarks.items():
        found = benchmark_sets.list_images(name, source, config.scale, config.downloads)
        name += config.evaluate.degradation.label
        images += [ScoredImage(name, i, image.name, image.version, image, i < shown) for i, image in enumerate(found)]
    return images


def score_images(config: Config, evaluation: Evaluation, folder: str, stage: str) -> Scores:
    """Score images, and write scores.json and the shown images.

    Args:
        config: names the metrics, the cluster and the limits.
        evaluation: the images and methods.
        folder: path or URL to write to.
        stage: name of the work on the screen.

    Raises:
        UserError: if a model or an image cannot be used.
        OSError: if the scores cannot be stored.
    """
    squeezenet = features.prepare_distance(config)
    cluster.connect(config)
    gpus = cluster.gpu_pool(config, _PROCESSES_PER_GPU)
    shared = Evaluation(evaluation.scale, [], evaluation.methods, evaluation.names, evaluation.show_lr)
    limit, judged, further = config.preprocess.max_pixels, config.evaluate.st_lpips, config.evaluate.degradation
    tasks = [
        _Task(number, image, shared, squeezenet, judged, folder, limit, further, gpus is not None)
        for number, image in enumerate(evaluation.images)
    ]
    discard_scores(folder)
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
            cluster.metrics.count_images("evaluate", 1, rejected=0)
    results.sort(key=lambda result: result.number)
    sets: dict[str, SetScores] = {}
    for image, result in zip(evaluation.images, results, strict=True):
        entry = sets.setdefault(image.set, SetScores(result.lr, [], {}))
        entry.images.append(ImageScores(image.name, result.scores, result.shown))
    for entry in sets.values():
        for name in evaluation.names:
            if own := [image.scores[name] for image in entry.images if name in image.scores]:
                entry.mean[name] = mean_scores(own)
    problems = [problem for result in results for problem in result.problems]
    return write_scores(folder, Scores(evaluation.identify(config), PROTOCOL, sets, problems))


def _score(task: _Task) -> _Result:
    """Ray Data task: score one image, and write its enlarged versions if a report shows them."""
    image = task.image
    try:
        hr, lr, origin = _load_pair(task)
    except RejectedImageError as error:
        raise UserError(f"it {error}") from None
    device = best_device() if task.gpu else torch.device("cpu")
    low, high = to_tensor(lr, device), to_tensor(hr, device)
    enlarged, problems = _read_files(task, hr)
    enlarged = {name: sr.to(device) for name, sr in enlarged.items()}
    loaded = load_all(tuple(task.evaluation.methods), device)
    enlarged |= {name: enlarge(low) for name, enlarge in loaded.items()}
    enlarged = {name: enlarged[name] for name in task.evaluation.names if name in enlarged}
    shown = {}
    if image.shown:
        stem = f"images/{image.set}/{image.index}_{storage.plain_name(image.name)}"
        versions = {name: to_pixels(sr) for name, sr in enlarged.items()} | {"hr": hr}
        versions |= {"lr": lr} if task.evaluation.show_lr else {}
        for kind, pixels in versions.items():
            shown[kind] = f"{stem}-{storage.plain_name(kind)}.png"
            storage.write(f"{task.folder}/{shown[kind]}", _png(pixels))
    scores = measure(enlarged, low, high, squeezenet=task.squeezenet, st_lpips=task.st_lpips)
    return _Result(task.number, origin, scores, shown, problems, cuda_fault() if task.gpu else None)


@lru_cache(maxsize=1)
def _open(patch_set: str) -> PatchSet:
    """Open a patch set, which all tasks of this process share."""
    return patchset.load(patch_set)


def _load_pair(task: _Task) -> tuple[Pixels, Pixels, str]:
    source = task.image.source
    if isinstance(source, HeldOut):
        image = _open(source.patch_set).read_holdout(source.index)
        return image.hr, image.lr, "made by this pipeline"
    return load_pair(source.hr, source.lr, task.evaluation.scale, task.max_pixels, task.degradation)


def _read_files(task: _Task, hr: Pixels) -> tuple[dict[str, Tensor], list[str]]:
    """Read the files of other tools; return those that fit the HR image, and a sentence for each of the others."""
    fitting, problems = {}, []
    for name, file in task.image.files.items():
        try:
            content = sources.read_bytes(file.location, sources.byte_limit(task.max_pixels))
            fitting[name] = to_tensor(_fitted(decode(content, task.max_pixels, as_stored=True), hr, task))
        except RejectedImageError as error:
            place = storage.redact(str(file.location))
            problems.append(f"{name}: {place} {error}, so {task.image.name} is left out")
    return fitting, problems


def _fitted(sr: Pixels, hr: Pixels, task: _Task) -> Pixels:
    """Give a result of another tool the size and the channels of the HR image.

    A tool that enlarged an uncropped image returns up to scale - 1 more rows and columns, which are cut off.
    """
    height, width, channels = hr.shape
    extra = (sr.shape[0] - height, sr.shape[1] - width)
    if not all(0 <= more < task.evaluation.scale for more in extra):
        raise RejectedImageError(
            RejectionKind.MISMATCHED, f"is {sr.shape[1]}x{sr.shape[0]}, but its HR image is {width}x{height}"
        )
    sr = sr[:height, :width]
    if channels == 1 and sr.shape[2] == 3:
        grey: Pixels = (sr.mean(axis=2, keepdims=True) + 0.5).astype(np.uint8)
        return grey
    return np.ascontiguousarray(np.broadcast_to(sr, hr.shape))


def _png(image: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, "PNG")
    return sink.getvalue()
