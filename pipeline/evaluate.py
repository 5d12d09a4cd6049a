"""Measure a trained network: PSNR and SSIM on held-out pictures and benchmark sets, beside bicubic and untrained.

`python -m pipeline.evaluate --config FILE` measures the training that the configuration describes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline import cluster, patchset, sources, storage
from pipeline.config import Config, Model, UserError, fingerprint
from pipeline.learner import build_network, load_weights, to_unit
from pipeline.patchset import Bytes, HoldoutPicture, PatchSet
from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import Score, score
from sr_model.srresnet import SRResNet
from sr_model.tiling import upscale

ALGORITHM = 1
"""Version of the protocol; part of the name of what was measured."""

PROTOCOL = (
    "PSNR and SSIM on the luma Y of BT.601 (MATLAB's rgb2ycbcr, 8 bits), `scale` border pixels left out; SSIM of Wang "
    "et al. 2004; PSNR(RGB) with the same border. Means over pictures."
)

METHODS = ("bicubic", "untrained", "trained")


def evaluate_training(
    config: Config, patch_set: PatchSet, weights: str, folder: str
) -> tuple[dict[str, Any], bool]:
    """Score bicubic, the untrained and the trained network on held-out pictures and benchmarks.

    Args:
        config: names the network and the benchmark sets.
        patch_set: holds the held-out pictures.
        weights: path or URL of the trained weights.
        folder: where scores.json and the upscaled pictures go.

    Returns:
        {"protocol", "sets": {set: {"lr", "pictures": [...], "mean": {method: {metric: value}}}}}, and whether it was
        already there.
    """
    tasks = _tasks(config, patch_set, weights, folder)
    identity = fingerprint([ALGORITHM, [{k: v for k, v in task.items() if k != "weights"} for task in tasks]])
    scores = storage.read_json(f"{folder}/scores.json")
    if scores and scores["identity"] == identity:
        return scores, True
    cluster.connect(config)
    rows = sorted(cluster.map_rows(tasks, _evaluate_picture), key=lambda row: int(row["number"]))
    failed = next((row["error"] for row in rows if row["error"]), None)
    if failed:
        raise UserError(failed)
    sets: dict[str, Any] = {}
    for row in rows:
        entry = sets.setdefault(row["set"], {"lr": row["lr"], "pictures": []})
        entry["pictures"].append({"name": row["name"], "scores": row["scores"], "shown": row["shown"]})
    for entry in sets.values():
        entry["mean"] = {m: mean_scores([p["scores"][m] for p in entry["pictures"]]) for m in METHODS}
    scores = {"identity": identity, "protocol": PROTOCOL, "sets": sets}
    storage.write_json(f"{folder}/scores.json", scores)
    return scores, False


def upscale_picture(net: SRResNet, lr: Bytes, device: torch.device) -> Bytes:
    """Upscale an 8-bit picture.

    Args:
        net: in eval mode.
        lr: (h, w, 3) uint8; or (h, w, 1), which is fed as three equal channels and averaged back to one.
        device: where the network is.

    Returns:
        (s*h, s*w, C) uint8.
    """
    grey = lr.shape[2] == 1
    rgb = np.repeat(lr, 3, axis=2) if grey else np.array(lr)
    x = to_unit(rgb[None], device)
    sr = upscale(net, x)[0]
    if grey:
        sr = sr.mean(dim=0, keepdim=True)
    eight_bit: Bytes = sr.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return eight_bit


def score_picture(sr: Bytes, hr: Bytes, scale: int) -> Score:
    """Score (H, W, C) uint8 pictures by the protocol."""
    return score(_channels_first(sr), _channels_first(hr), border=scale)


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric in the given order, in float64; nothing for no scores."""
    return {key: float(np.mean([s[key] for s in scores], dtype=np.float64)) for key in (scores[0] if scores else {})}


def bicubic_picture(lr: Bytes, scale: int) -> Bytes:
    """Enlarge (h, w, C) uint8 by MATLAB's bicubic."""
    enlarged: Bytes = upscale_bicubic(_channels_first(lr), scale).permute(1, 2, 0).numpy()
    return enlarged


def busiest_crop(hr: Bytes, side: int) -> tuple[int, int]:
    """Origin (y, x) of the square of `side` pixels with the most detail: the largest variance of the luma's slope."""
    grey = hr.astype(np.float32).mean(axis=2)
    slope = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(slope.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = max(slope.shape[0] - side, 0), max(slope.shape[1] - side, 0)
    ys, xs = np.arange(0, h + 1, 8), np.arange(0, w + 1, 8)
    y1, x1 = np.minimum(ys + side, slope.shape[0]), np.minimum(xs + side, slope.shape[1])
    sums = total[y1][:, x1] - total[ys][:, x1] - total[y1][:, xs] + total[ys][:, xs]
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(ys[best[0]]), int(xs[best[1]])


def comparison_strip(picture: HoldoutPicture, sr: Bytes, scale: int, side: int = 160) -> Image.Image:
    """The same crop of bicubic, SR and HR, side by side."""
    y, x = busiest_crop(picture.hr, side)
    crops = [p[y : y + side, x : x + side] for p in (bicubic_picture(picture.lr, scale), sr, picture.hr)]
    return Image.fromarray(np.concatenate(crops, axis=1))


def _tasks(config: Config, patch_set: PatchSet, weights: str, folder: str) -> list[dict[str, Any]]:
    shared = {
        "weights": weights,
        "folder": folder,
        "scale": config.scale,
        "model": config.model.model_dump_json(),
        "seed": config.train.seed,
        "max_pixels": config.preprocess.max_pixels,
    }
    held_out = [record.name for shard in patch_set.holdout for record in shard.pictures if not record.rejected]
    entries = [
        {"set": "held-out", "name": name, "hr": "", "lr": "", "patch_set": patch_set.url, "index": i}
        for i, name in enumerate(held_out)
    ]
    for name, source in config.evaluate.benchmarks.items():
        for i, picture in enumerate(sources.find_benchmark(name, source, config.scale)):
            entries.append(
                {"set": name, "name": picture.name, "hr": picture.hr, "lr": picture.lr or "", "patch_set": "", "index": i}
            )
    return [
        {**shared, **entry, "number": n, "show": int(entry["index"]) < config.evaluate.pictures}
        for n, entry in enumerate(entries)
    ]


def _evaluate_picture(task: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: score one picture, and write what the report shows of it."""
    scale = task["scale"]
    result = {"number": task["number"], "set": task["set"], "name": task["name"], "error": "", "shown": {}}
    try:
        hr, lr, origin = _load_pair(task)
    except (sources.RejectedPicture, OSError) as error:
        return {**result, "lr": "", "scores": {}, "error": f"benchmark {task['set']}: {task['name']} {error}"}
    untrained, trained = _networks(task["model"], task["seed"], scale, task["weights"])
    pictures = {
        "bicubic": bicubic_picture(lr, scale),
        "untrained": upscale_picture(untrained, lr, torch.device("cpu")),
        "trained": upscale_picture(trained, lr, torch.device("cpu")),
    }
    if task["show"]:
        stem = f"{task['folder']}/pictures/{task['set']}/{PurePosixPath(task['name']).stem}"
        for kind, picture in {**pictures, "hr": hr}.items():
            storage.write(f"{stem}-{kind}.png", _png(picture))
            result["shown"][kind] = f"{stem}-{kind}.png"
    scores = {method: asdict(score_picture(picture, hr, scale)) for method, picture in pictures.items()}
    return {**result, "lr": origin, "scores": scores}


def _load_pair(task: dict[str, Any]) -> tuple[Bytes, Bytes, str]:
    if task["patch_set"]:
        pictures = patchset.load(task["patch_set"]).read_holdout()
        picture = next(p for i, p in enumerate(pictures) if i == task["index"])
        return picture.hr, picture.lr, "made here"
    scale = task["scale"]
    hr = sources.decode(sources.read_bytes(task["hr"]), task["max_pixels"], grey_ok=True)
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    if not task["lr"]:
        return hr, downscale(_channels_first(hr), scale).permute(1, 2, 0).numpy(), "made here, MATLAB's bicubic"
    lr = sources.decode(sources.read_bytes(task["lr"]), task["max_pixels"], grey_ok=True)
    if (lr.shape[0] * scale, lr.shape[1] * scale, lr.shape[2]) != hr.shape:
        raise sources.RejectedPicture(f"has an LR file of {lr.shape}, which doesn't fit HR {hr.shape} at x{scale}")
    return hr, lr, "the set's own files"


@lru_cache(maxsize=2)
def _networks(model: str, seed: int, scale: int, weights: str) -> tuple[SRResNet, SRResNet]:
    untrained = build_network(scale, Model.model_validate_json(model), seed)
    trained = build_network(scale, Model.model_validate_json(model), seed)
    load_weights(trained, weights)
    nets = tuple(net.eval().to(memory_format=torch.channels_last) for net in (untrained, trained))  # type: ignore[call-overload]
    return nets[0], nets[1]


def _channels_first(picture: Bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _png(picture: Bytes) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(sink, "PNG")
    return sink.getvalue()
