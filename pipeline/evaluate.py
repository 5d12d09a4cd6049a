"""Measure a trained network: PSNR and SSIM on held-out pictures and benchmark sets, beside bicubic and untrained.

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

from pipeline import cluster, features, patchset, preprocess, sources, storage, train
from pipeline.commandline import command, parse
from pipeline.config import Config, Model, UserError, fingerprint
from pipeline.learner import build_network, load_weights
from pipeline.patchset import Bytes, PatchSet
from pipeline.pictures import RejectedPictureError
from pipeline.scoring import bicubic_picture, feature_distance, load_pair, mean_scores, score_picture, upscale_picture
from sr_model.srresnet import SRResNet

ALGORITHM = 1
"""Version of the protocol; part of the name of what was measured."""

PROTOCOL = (
    "PSNR and SSIM on the luma Y of BT.601 (MATLAB's rgb2ycbcr, 8 bits), as many border pixels left out as the scale; "
    "SSIM of Wang et al. 2004; PSNR(RGB) with the same border. Means over pictures."
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
"""{"protocol", "identity", "sets": {set: {"lr", "pictures": [{"name", "scores", "shown"}], "mean": {method:
{metric: value}}}}}"""


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.evaluate`."""
    config = parse(argv, "evaluate", "Measure the finished training that the configuration describes.")
    patch_set, _ = preprocess.prepare(config)
    trained = train.find(config, patch_set)
    if trained is None:
        raise UserError("the training that the configuration describes isn't finished: run pipeline.train first")
    folder = f"{config.outputs}/workflows/{trained.name}"
    scores = find(config, patch_set, trained.weights, folder) or evaluate(config, patch_set, trained.weights, folder)
    print(f"{table(scores)}\n\nscores: {folder}/scores.json")


def evaluate(
    config: Config, patch_set: PatchSet, weights: str, folder: str, methods: Sequence[str] = tuple(METHODS)
) -> Scores:
    """Score bicubic, the untrained and the trained network on held-out pictures and benchmarks.

    Args:
        config: names the network and the benchmark sets.
        patch_set: holds the held-out pictures.
        weights: path or URL of the trained weights.
        folder: where scores.json and the upscaled pictures go.
        methods: those of `METHODS` that are scored.

    Raises:
        UserError: if a benchmark's folder or one of its pictures cannot be used.
    """
    tasks = _tasks(config, patch_set, weights, folder, methods)
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
        entry["mean"] = {m: mean_scores([p["scores"][m] for p in entry["pictures"]]) for m in methods}
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


def table(scores: Scores) -> str:
    """The mean scores as aligned text, one line for each set and method."""
    metrics = measured([scores["sets"]])
    rows = [["set", "", *metrics.values()]]
    for name, entry in scores["sets"].items():
        for method, means in entry["mean"].items():
            values = [format_value(key, means[key]) for key in metrics]
            rows.append([f"{name} ({len(entry['pictures'])})", METHODS[method], *values])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_value(metric: str, value: float) -> str:
    """A score as it is printed: hundredths of a dB, four digits of what lies around 1."""
    return f"{value:.2f}" if metric.startswith("psnr") else f"{value:.4f}"


def measured(scored: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Those of `METRICS` that the "sets" of all `Scores` have."""
    means = [mean for sets in scored for entry in sets.values() for mean in entry["mean"].values()]
    return {key: label for key, label in METRICS.items() if all(key in mean for mean in means)}


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
        for i, picture in enumerate(sources.find_benchmark(name, source, config.scale, config.downloads)):
            entries.append(
                {
                    "set": name,
                    "name": picture.name,
                    "hr": picture.hr,
                    "lr": picture.lr or "",
                    "patch_set": "",
                    "index": i,
                    "version": picture.version,
                }
            )
    return [
        {**shared, **entry, "number": n, "show": entry["index"] < config.evaluate.pictures}
        for n, entry in enumerate(entries)
    ]


def _evaluate_picture(task: dict[str, Any]) -> dict[str, Any]:
    """Ray Data task: score one picture, and write what the report shows of it."""
    scale = task["scale"]
    result = {"number": task["number"], "set": task["set"], "name": task["name"], "error": "", "shown": {}}
    try:
        hr, lr, origin = _load_pair(task)
    except (RejectedPictureError, OSError) as error:
        return {**result, "lr": "", "scores": {}, "error": f"benchmark {task['set']}: {task['name']} {error}"}
    nets = _networks(task["model"], task["seed"], scale, task["weights"])
    pictures = {
        method: upscale_picture(nets[method], lr) if method in nets else bicubic_picture(lr, scale)
        for method in task["methods"]
    }
    if task["show"]:
        stem = f"{task['folder']}/pictures/{task['set']}/{task['index']}_{storage.plain_name(task['name'])}"
        for kind, picture in {**pictures, "hr": hr}.items():
            storage.write(f"{stem}-{kind}.png", _png(picture))
            result["shown"][kind] = f"{stem}-{kind}.png"
    scores = {method: asdict(score_picture(picture, hr, scale)) for method, picture in pictures.items()}
    if task["squeezenet"]:
        for method, picture in pictures.items():
            scores[method]["distance"] = feature_distance(task["squeezenet"], picture, hr)
    return {**result, "lr": origin, "scores": scores}


def _load_pair(task: dict[str, Any]) -> tuple[Bytes, Bytes, str]:
    if task["patch_set"]:
        picture = patchset.load(task["patch_set"]).read_holdout(task["index"])
        return picture.hr, picture.lr, "made here"
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


def _png(picture: Bytes) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(sink, "PNG")
    return sink.getvalue()


if __name__ == "__main__":
    from pipeline import evaluate as module  # by its name, so that Ray's workers import what they run

    module.main()
