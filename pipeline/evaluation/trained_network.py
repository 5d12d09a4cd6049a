"""Score a trained network beside bicubic interpolation and the untrained network.

`evaluate` scores the held-out images of a patch set and the configured benchmark sets, and writes scores.json. Running
it again with the same weights, images and methods reads that file.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.patchset import PatchSet
from pipeline.evaluation import methods as ways
from pipeline.evaluation.measuring import Evaluation, list_images, score_images
from pipeline.evaluation.scores import BICUBIC, METHODS, Scores, read_scores
from pipeline.settings import Config


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
    evaluation = _describe(config, patch_set, weights, methods)
    known = read_scores(folder, evaluation.identify(config))
    return known or score_images(config, evaluation, folder, stage)


def read(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str] = tuple(METHODS)
) -> Scores | None:
    """Return the scores in `folder`, or None unless they are whole and of these weights, images and methods."""
    return read_scores(folder, _describe(config, patch_set, weights, methods).identify(config))


def identify(config: Config, patch_set: PatchSet, weights: str) -> str:
    """Return a fingerprint of what is scored, and how, with all methods."""
    return _describe(config, patch_set, weights, tuple(METHODS)).identify(config)


def _describe(config: Config, patch_set: PatchSet, weights: str, methods: Sequence[str]) -> Evaluation:
    known = {
        BICUBIC: lambda: ways.bicubic(config.scale),
        "untrained": lambda: ways.configured("untrained", config),
        "trained": lambda: ways.configured("trained", config, weights),
    }
    return Evaluation(config.scale, list_images(config, patch_set), [known[name]() for name in methods], methods)
