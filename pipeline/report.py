"""What a person looks at: report.html, self-contained, and comparison.png."""

from __future__ import annotations

import base64
import io
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display
from matplotlib import pyplot as plt
from PIL import Image

from pipeline import storage
from pipeline.config import Config
from pipeline.evaluate import METHODS, METRICS, Scores, format_value
from pipeline.scoring import busiest_crop
from pipeline.tracking import Record

_LABELS = {**METHODS, "hr": "ground truth (HR)"}
_CROP = 128


def write_report(
    folder: str, config: Config, scores: Scores, history: list[Record], facts: dict[str, str]
) -> tuple[bytes, bytes]:
    """Write comparison.png and report.html to a folder.

    Args:
        folder: path or URL, with the pictures that `evaluate` left.
        config: shown as it was resolved.
        scores: what `evaluate` returned.
        history: the training's records.
        facts: what else to state, by name.

    Returns:
        comparison.png and report.html.
    """
    shown = [
        _Shown(name, picture)
        for name, entry in scores["sets"].items()
        for picture in entry["pictures"]
        if picture["shown"]
    ]
    comparison = _comparison(shown[:3])
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "report.html.j2").read_text()
    )
    page = template.render(
        title=config.name,
        protocol=scores["protocol"],
        columns=METRICS,
        labels=_LABELS,
        methods=METHODS,
        sets=scores["sets"],
        formatted=format_value,
        pictures=shown,
        curves=_curves(history, scores),
        facts=facts,
        settings=config.to_yaml(),
    )
    storage.write(f"{folder}/comparison.png", comparison)
    storage.write(f"{folder}/report.html", page.encode())
    return comparison, page.encode()


class _Shown:
    """A picture of the report: crops of the busiest place, and the whole for the slider."""

    def __init__(self, group: str, picture: dict[str, Any]) -> None:
        self.group, self.name = group, PurePosixPath(picture["name"]).stem
        self.scores: dict[str, dict[str, float]] = picture["scores"]
        whole = {
            kind: Image.open(io.BytesIO(storage.read(url) or b"")).convert("RGB")
            for kind, url in picture["shown"].items()
        }
        self.width, self.height = whole["hr"].size
        y, x = busiest_crop(np.asarray(whole["hr"]), _CROP)
        self.crops = {kind: image.crop((x, y, x + _CROP, y + _CROP)) for kind, image in whole.items()}
        self.crop_urls = {kind: _data_url(image, "PNG") for kind, image in self.crops.items()}
        self.before, self.after = (_data_url(whole[kind], "WEBP") for kind in ("bicubic", "trained"))

    def caption(self, kind: str) -> str:
        if kind == "hr":
            return _LABELS[kind]
        score = self.scores[kind]
        return f"{_LABELS[kind]}: {score['psnr_y']:.2f} dB / {score['ssim_y']:.4f}"


def _comparison(pictures: list[_Shown]) -> bytes:
    kinds = ("bicubic", "trained", "hr")
    rows = max(len(pictures), 1)
    figure, axes = plt.subplots(rows, len(kinds), figsize=(9.6, 3.45 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for row, picture in zip(axes, pictures, strict=False):
        for axis, kind in zip(row, kinds, strict=True):
            axis.imshow(picture.crops[kind], interpolation="nearest")
            axis.set_title(picture.caption(kind), fontsize=10)
    return _rendered(figure, "png")


def _curves(history: list[Record], scores: dict[str, Any]) -> str:
    """Objective, held-out PSNR and learning rate over the steps, as SVG."""
    train = [r for r in history if r["kind"] == "train" and "train/objective" in r["metrics"]]
    validation = [r for r in history if r["kind"] == "validation" and "val/psnr_y" in r["metrics"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot([r["step"] for r in train], [r["metrics"]["train/objective"] for r in train], lw=1)
    left.set(xlabel="step", title="training objective", yscale="log")
    if validation:
        right.plot([r["step"] for r in validation], [r["metrics"]["val/psnr_y"] for r in validation], marker="o", ms=3)
        right.axhline(scores["sets"]["held-out"]["mean"]["bicubic"]["psnr_y"], ls="--", lw=1, color="gray")
        right.annotate("bicubic", (0.99, 0.02), xycoords="axes fraction", ha="right", color="gray")
    right.set(xlabel="step", title="held-out PSNR (Y), dB (dashed: bicubic)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    svg = _rendered(figure, "svg").decode()
    return svg[svg.index("<svg") :]


def _rendered(figure: Any, kind: str) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return sink.getvalue()


def _data_url(image: Image.Image, kind: str) -> str:
    sink = io.BytesIO()
    image.save(sink, kind, **({"quality": 92} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"
