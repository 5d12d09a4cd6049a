"""Measure a trained network: PSNR and SSIM on held-out images and benchmark sets, beside bicubic and untrained.

`python -m pipeline.evaluate --config FILE` measures the training that the configuration describes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from pipeline import cluster, storage
from pipeline.data import patchset, sources
from pipeline.data.images import RejectedImageError
from pipeline.data.patchset import PatchSet
from pipeline.evaluation.scoring import bicubic_image, feature_distance, load_pair, mean_scores, score_image
from pipeline.networks import features
from pipeline.networks.upscaling import upscale_image
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, Model, UserError
from pipeline.storage import fingerprint
from sr_model.pixels import Pixels
from sr_model.srresnet import SRResNet

ALGORITHM = 1
"""Version of the protocol; part of the name of what was measured."""

PROTOCOL = (
    "PSNR and SSIM on the luma Y of BT.601 (MATLAB's rgb2ycbcr, 8 bits), as many border pixels left out as the scale; "
    "SSIM of Wang et al. 2004; PSNR(RGB) with the same border. Means over images."
)

METHODS = {"bicubic": "bicubic", "untrained": "untrained network", "trained": "SRResNet"}
"""What is scored, and how it is called."""

METRICS = {
    "psnr_y": "PSNR (Y), dB",
    "ssim_y": "SSIM (Y)",
    "psnr_rgb": "PSNR (RGB), dB",
    "distance": "SqueezeNet distance",
}
"""The fields of a score, and how they are called; the distance only where its network is configured."""


Scores = dict[str, Any]
"""{"protocol", "identity", "sets": {set: {"lr", "images": [{"name", "scores", "shown"}], "mean": {method:
{metric: value}}}}}"""


def evaluate(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str] = tuple(METHODS)
) -> Scores:
    """Score bicubic, the untrained and the trained network on held-out images and benchmarks.

    Args:
        config: names the network and the benchmark sets.
        patch_set: holds the held-out images.
        weights: path or URL of the trained weights.
        folder: where scores.json and the upscaled images go.
        methods: those of `METHODS` that are scored.

    Raises:
        UserError: if a benchmark's folder or one of its images cannot be used.
    """
    tasks = _tasks(config, patch_set, weights, folder, methods)
    cluster.connect(config)
    rows = sorted(cluster.map_rows(tasks, _evaluate_image), key=lambda row: int(row["number"]))
    failed = next((row["error"] for row in rows if row["error"]), None)
    if failed:
        raise UserError(failed)
    sets: dict[str, Any] = {}
    for row in rows:
        entry = sets.setdefault(row["set"], {"lr": row["lr"], "images": []})
        entry["images"].append({"name": row["name"], "scores": row["scores"], "shown": row["shown"]})
    for entry in sets.values():
        entry["mean"] = {m: mean_scores([p["scores"][m] for p in entry["images"]]) for m in methods}
    scores = {"identity": _identity(tasks), "protocol": PROTOCOL, "sets": sets}
    storage.write_json(f"{folder}/scores.json", scores)
    return scores


def find(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str] = tuple(METHODS)
) -> Scores | None:
    """The scores, if the same was measured before."""
    scores: Scores | None = storage.read_json(f"{folder}/scores.json")
    if scores and scores["identity"] == _identity(_tasks(config, patch_set, weights, folder, methods)):
        return scores
    return None


def _identity(tasks: list[dict[str, Any]]) -> str:
    return fingerprint([ALGORITHM, tasks])


def _tasks(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str]
) -> list[dict[str, Any]]:
    shared = {
        "methods": list(methods),
        "squeezenet": features.prepare_distance(config),
        "weights": weights,
        "folder": folder,
        "scale": config.scale,
        "model": config.model.model_dump_json(),
        "seed": config.train.seed,
        "max_pixels": config.preprocess.max_pixels,
    }
    entries: list[dict[str, Any]] = [
        {"set": "held-out", "name": name, "hr": "", "lr": "", "patch_set": patch_set.url, "index": i, "version": ""}
        for i, name in enumerate(patch_set.holdout_names)
    ]
    for name, source in config.evaluate.benchmarks.items():
        for i, image in enumerate(sources.find_benchmark(name, source, config.scale, config.downloads)):
            entries.append(
                {
                    "set": name,
                    "name": image.name,
                    "hr": image.hr,
                    "lr": image.lr or "",
                    "patch_set": "",
                    "index": i,
                    "version": image.version,
                }
            )
    return [
        {**shared, **entry, "number": n, "show": entry["index"] < config.evaluate.images}
        for n, entry in enumerate(entries)
    ]


def _evaluate_image(task: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: score one image, and write what the report shows of it."""
    scale = task["scale"]
    result = {"number": task["number"], "set": task["set"], "name": task["name"], "error": "", "shown": {}}
    try:
        hr, lr, origin = _load_pair(task)
    except (RejectedImageError, OSError) as error:
        return {**result, "lr": "", "scores": {}, "error": f"benchmark {task['set']}: {task['name']} {error}"}
    nets = _networks(task["model"], task["seed"], scale, task["weights"])
    images = {
        method: upscale_image(nets[method], lr) if method in nets else bicubic_image(lr, scale)
        for method in task["methods"]
    }
    if task["show"]:
        stem = f"{task['folder']}/images/{task['set']}/{task['index']}_{storage.plain_name(task['name'])}"
        for kind, image in {**images, "hr": hr}.items():
            storage.write(f"{stem}-{kind}.png", _png(image))
            result["shown"][kind] = f"{stem}-{kind}.png"
    scores = {method: asdict(score_image(image, hr, scale)) for method, image in images.items()}
    if task["squeezenet"]:
        for method, image in images.items():
            scores[method]["distance"] = feature_distance(task["squeezenet"], image, hr)
    return {**result, "lr": origin, "scores": scores}


def _load_pair(task: dict[str, Any]) -> tuple[Pixels, Pixels, str]:
    if task["patch_set"]:
        image = patchset.load(task["patch_set"]).read_holdout(task["index"])
        return image.hr, image.lr, "made here"
    return load_pair(task["hr"], task["lr"] or None, task["scale"], task["max_pixels"])


@lru_cache(maxsize=2)
def _networks(model: str, seed: int, scale: int, weights: str) -> dict[str, SRResNet]:
    untrained = build_network(scale, Model.model_validate_json(model), seed)
    trained = build_network(scale, Model.model_validate_json(model), seed)
    load_weights(trained, weights)
    return {
        name: net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, net in (("untrained", untrained), ("trained", trained))
    }


def _png(image: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(sink, "PNG")
    return sink.getvalue()
