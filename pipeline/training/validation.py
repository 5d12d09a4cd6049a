"""Validation during a training: the held-out images, and benchmark sets for display, spread over the ranks."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import torch.distributed as dist

from pipeline import storage
from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.patchset import HeldOutImage, PatchSet
from pipeline.data.rejection import RejectedImageError
from pipeline.evaluation import scoring
from pipeline.networks.upscaling import tile_within, upscale
from pipeline.settings import Config, UserError
from pipeline.settings.methods import measured_metrics
from pipeline.tracking import Journal
from pipeline.training.ranks import Ranks
from sr_model.metrics import Comparison, compare
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import to_tensor

T = TypeVar("T")

HELD_OUT = "val"
"""Prefix of the metrics of the held-out images."""

_SHOWN_IMAGES = 3
"""Held-out images of which each validation saves a comparison."""


@dataclass(frozen=True)
class Validation:
    """The means of a validation, and the files that show some of its images."""

    metrics: dict[str, float]
    images: dict[str, str] = field(default_factory=dict)
    """File in the journal's folder, by the key that MLflow shows."""


@dataclass(frozen=True)
class _Scored:
    number: int
    scores: dict[str, float]
    images: dict[str, str]


@dataclass(frozen=True)
class _Compared:
    """An image whose scores a GPU may not have computed yet."""

    number: int
    comparison: Comparison
    further: dict[str, float]
    images: dict[str, str]

    def read(self) -> _Scored:
        return _Scored(self.number, {**asdict(self.comparison.score()), **self.further}, self.images)


class Validator:
    """Scores a network on the device of its rank; every rank scores some of the images.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set with the held-out images.
        benchmarks: images that are scored for display only, by the name of their set.
        ranks: this process among the ranks.
        journal: the journal that comparisons are saved in.
    """

    def __init__(
        self,
        config: Config,
        patch_set: PatchSet,
        benchmarks: dict[str, list[BenchmarkImage]],
        ranks: Ranks,
        journal: Journal,
    ) -> None:
        self._config, self._patch_set, self._ranks, self._journal = config, patch_set, ranks, journal
        self._further = [name for name in measured_metrics(config) if name in scoring.FURTHER]
        self._held_out = patch_set.held_out
        self._benchmarks = [(f"bench/{name}", image) for name, images in benchmarks.items() for image in images]
        self._sets: Sequence[str] = [HELD_OUT] * self._held_out + [name for name, _ in self._benchmarks]

    def validate(self, net: SuperResolver, step: int | None = None) -> Validation:
        """Score all images. Means are taken in the order of images, so they do not depend on the number of ranks.

        Args:
            net: network in eval mode.
            step: number of finished steps, to save comparisons of some held-out images under; None to save none.
        """
        if self._ranks.world_size > 1:  # BatchNorm's statistics are those of rank 0, which checkpoints hold
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        places = range(self._ranks.rank, len(self._sets), self._ranks.world_size)
        watched = watch_for_hangs(places, self._config.cluster.timeout_s)
        compared = one_behind(self._compare(net, number, step) for number in watched)
        own = self._ranks.call_on_all(lambda: [entry.read() for entry in compared])
        scored = sorted((entry for part in self._ranks.gather(own) for entry in part), key=lambda entry: entry.number)
        metrics = {}
        for name in dict.fromkeys(self._sets):
            means = scoring.mean_scores([entry.scores for entry in scored if self._sets[entry.number] == name])
            if truth := means.get("true_phase_energy"):  # a mean of ratios would be that of the flattest image
                means["phase_ratio"] = means["phase_energy"] / truth
            metrics.update({f"{name}/{key}": value for key, value in means.items()})
        return Validation(metrics, {key: file for entry in scored for key, file in entry.images.items()})

    def _compare(self, net: SuperResolver, number: int, step: int | None) -> _Compared:
        image = self._image(number)
        hr, lr = (to_tensor(pixels, self._ranks.device) for pixels in (image.hr, image.lr))
        sr = upscale(net, lr, tile_within(net, self._config.train.memory_mb))
        images = {}
        if step is not None and number < min(_SHOWN_IMAGES, self._held_out):
            strip = scoring.comparison_strip(image, sr, self._config.scale)
            name = f"{number}_{storage.plain_name(image.name)}"
            images[f"bicubic_sr_hr/{name}"] = self._journal.save_image(f"{name}-{step:09d}", strip)
        further = scoring.measure_further(self._further, sr, lr, hr, self._config.evaluate.squeezenet or "")
        return _Compared(number, compare(sr, hr, border=self._config.scale), further, images)

    def _image(self, number: int) -> HeldOutImage:
        if number < self._held_out:
            return self._patch_set.read_holdout(number)
        _, image = self._benchmarks[number - self._held_out]
        config = self._config
        limit, further = config.preprocess.max_pixels, config.evaluate.degradation
        try:
            hr, lr, _ = scoring.load_pair(image.hr, image.lr, config.scale, limit, further)
        except RejectedImageError as error:
            raise UserError(f"evaluate.benchmarks: {image.name} {error}") from None
        return HeldOutImage(image.name, hr, lr)


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Pass on each item after the next one was made, so that a GPU computes one while the next one is prepared."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def watch_for_hangs(items: Iterable[T], timeout_s: float) -> Iterator[T]:
    """Pass on items; if the next one is not asked for in time, the process prints its tracebacks and ends."""
    for item in items:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)
        yield item


def stop_watching() -> None:
    """End the time limit that `watch_for_hangs` started."""
    faulthandler.cancel_dump_traceback_later()
