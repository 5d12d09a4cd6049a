"""What a person looks at: report.html, self-contained, and comparison.png."""

from __future__ import annotations

import base64
import io
from pathlib import PurePosixPath
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from pipeline import storage
from pipeline.evaluation.scores import METHODS, Scores
from pipeline.evaluation.scoring import busiest_crop
from pipeline.evaluation.tables import format_value, measured
from pipeline.reporting import pages
from pipeline.settings import Config
from pipeline.tracking import JournalRecord

matplotlib.use("Agg")  # no display
matplotlib.rcParams["svg.hashsalt"] = "report"  # the same drawing is the same file

TRUTH = "ground truth (HR)"

_CROP = 128
_LONGEST_WEBP = 16383


def write_report(
    folder: str, config: Config, scores: Scores, history: list[JournalRecord], facts: dict[str, str]
) -> tuple[bytes, bytes]:
    """Write comparison.png and report.html to a folder.

    Args:
        folder: path or URL, with the images that `evaluate` left.
        config: shown as it was resolved.
        scores: what `evaluate` returned.
        history: the training's records.
        facts: what else to state, by name.

    Returns:
        comparison.png and report.html.
    """
    shown = [
        Shown(
            name,
            image["name"],
            {METHODS.get(kind, TRUTH): url for kind, url in image["shown"].items()},
            {METHODS[kind]: score for kind, score in image["scores"].items()},
        )
        for name, entry in scores["sets"].items()
        for image in entry["images"]
        if image["shown"]
    ]
    comparison = crops_figure(shown[:3], [METHODS["bicubic"], METHODS["trained"], TRUTH])
    bicubic = scores["sets"]["held-out"]["mean"]["bicubic"]["psnr_y"] if "held-out" in scores["sets"] else None
    page = pages.render(
        "report.html.j2",
        title=config.name,
        protocol=scores["protocol"],
        columns=measured([scores["sets"]]),
        labels=METHODS,
        sets=scores["sets"],
        formatted=format_value,
        images=shown,
        before=METHODS["bicubic"],
        after=METHODS["trained"],
        curves=curves({"SRResNet": history}, bicubic),
        facts=facts,
        settings=config.to_yaml(),
    ).encode()
    storage.write(f"{folder}/comparison.png", comparison)
    storage.write(f"{folder}/report.html", page)
    return comparison, page


class Shown:
    """An image of a report: crops of its busiest place, and the whole for the slider.

    Args:
        group: set that it belongs to.
        name: file name.
        urls: path or URL of each version, by label; `TRUTH` among them.
        scores: of each version but the truth, by label.
    """

    def __init__(self, group: str, name: str, urls: dict[str, str], scores: dict[str, dict[str, float]]) -> None:
        self.group, self.name, self.scores = group, PurePosixPath(name).stem, scores
        whole = {label: Image.open(io.BytesIO(storage.read(url) or b"")).convert("RGB") for label, url in urls.items()}
        self.width, self.height = whole[TRUTH].size
        y, x = busiest_crop(np.asarray(whole[TRUTH]), _CROP)
        self.crops = {label: image.crop((x, y, x + _CROP, y + _CROP)) for label, image in whole.items()}
        self.crop_urls = {label: _data_url(image, "PNG") for label, image in self.crops.items()}
        kind = "WEBP" if max(whole[TRUTH].size) <= _LONGEST_WEBP else "JPEG"
        self.whole_urls = {label: _data_url(image, kind) for label, image in whole.items()}

    def caption(self, label: str) -> str:
        """The label and its scores."""
        if label not in self.scores:
            return label
        score = self.scores[label]
        return f"{label}: {score['psnr_y']:.2f} dB / {score['ssim_y']:.4f}"


def crops_figure(images: list[Shown], labels: list[str]) -> bytes:
    """The same crops side by side, a row for each image, a column for each label, as PNG."""
    rows = max(len(images), 1)
    size = (3.2 * len(labels), 3.45 * rows)
    figure, axes = plt.subplots(rows, len(labels), figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for row, image in zip(axes, images, strict=False):
        for axis, label in zip(row, labels, strict=True):
            axis.imshow(image.crops[label], interpolation="nearest")
            axis.set_title(image.caption(label), fontsize=10)
    return _rendered(figure, "png")


def curves(histories: dict[str, list[JournalRecord]], bicubic: float | None) -> str:
    """Objective and held-out PSNR over the steps, a line for each training, as SVG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for label, history in histories.items():
        train = [r for r in history if r.kind == "train" and "train/objective" in r.metrics]
        validation = [r for r in history if r.kind == "validation" and "val/psnr_y" in r.metrics]
        left.plot([r.step for r in train], [r.metrics["train/objective"] for r in train], lw=1, label=label)
        scores = [r.metrics["val/psnr_y"] for r in validation]
        right.plot([r.step for r in validation], scores, marker="o", ms=3, label=label)
    left.set(xlabel="step", title="training objective", yscale="log")
    if bicubic is not None:
        right.axhline(bicubic, ls="--", lw=1, color="gray", label="bicubic")
    right.set(xlabel="step", title="held-out PSNR (Y), dB")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    svg = _rendered(figure, "svg").decode()
    return svg[svg.index("<svg") :]


def _rendered(figure: Any, kind: str) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return sink.getvalue()


def _data_url(image: Image.Image, kind: str) -> str:
    sink = io.BytesIO()
    image.save(sink, kind, **({} if kind == "PNG" else {"quality": 92}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"
