"""The report of a training: report.html, which needs no other file, and comparison.png."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from pipeline import storage
from pipeline.evaluation.scores import HELD_OUT, METHODS, Metrics, Scores
from pipeline.evaluation.scoring import busiest_crop
from pipeline.evaluation.tables import common_metrics, format_value
from pipeline.reporting import pages
from pipeline.reporting.drawing import plain_text, rendered
from pipeline.settings import Config, architecture
from pipeline.tracking import JournalRecord

TRUTH = "ground truth (HR)"
"""Label of the HR image."""

_CROP = 128
_LONGEST_WEBP = 16383


def write_report(
    folder: str, config: Config, scores: Scores, history: list[JournalRecord], facts: dict[str, str]
) -> tuple[bytes, bytes]:
    """Write comparison.png and report.html to a folder.

    Args:
        folder: path or URL.
        config: the settings, which the report lists.
        scores: scores of the trained network, with the places of the enlarged images.
        history: journal of the training.
        facts: further values to state, by name.

    Returns:
        The content of comparison.png and of report.html.
    """
    shown = [
        load_shown(
            name,
            image.name,
            {METHODS.get(kind, TRUTH): url for kind, url in image.shown.items()},
            {METHODS[method]: metrics for method, metrics in image.scores.items()},
        )
        for name, entry in scores.sets.items()
        for image in entry.images
        if image.shown
    ]
    comparison = crops_figure(shown[:3], [METHODS["bicubic"], METHODS["trained"], TRUTH])
    held_out = scores.sets.get(HELD_OUT)
    title = architecture(config.model).title
    page = pages.render(
        "report.html.j2",
        title=config.name,
        network=title,
        protocol=scores.protocol,
        columns=common_metrics([scores.sets]),
        labels=METHODS,
        sets=scores.sets,
        formatted=format_value,
        images=shown,
        before=METHODS["bicubic"],
        after=METHODS["trained"],
        curves=curves({title: history}, held_out.mean["bicubic"]["psnr_y"] if held_out else None),
        facts={name: storage.redact(value) for name, value in facts.items()},
        settings=storage.redact(config.to_yaml()),
    ).encode()
    storage.write(f"{folder}/comparison.png", comparison)
    storage.write(f"{folder}/report.html", page)
    return comparison, page


@dataclass(frozen=True)
class ShownImage:
    """An image of a report in several versions: its most detailed crop, and the whole for the slider."""

    group: str
    """Set that the image belongs to."""
    name: str
    width: int
    height: int
    scores: dict[str, Metrics]
    """Scores by the label of the version; the ground truth has none."""
    crops: dict[str, Image.Image]
    """The same crop of each version, by label."""
    crop_urls: dict[str, str]
    """The crops as data URLs."""
    whole_urls: dict[str, str]
    """The whole versions as data URLs."""

    def caption(self, label: str) -> str:
        """Return the label of a version with its PSNR and SSIM."""
        metrics = self.scores.get(label)
        return f"{label}: {metrics['psnr_y']:.2f} dB / {metrics['ssim_y']:.4f}" if metrics else label


def load_shown(group: str, name: str, urls: Mapping[str, str], scores: Mapping[str, Metrics]) -> ShownImage:
    """Read the versions of an image for a report.

    Args:
        group: set that the image belongs to.
        name: file name.
        urls: path or URL of each version by its label, `TRUTH` among them.
        scores: scores by the label of the version.
    """
    whole = {label: _read_image(url) for label, url in urls.items()}
    truth = whole[TRUTH]
    y, x = busiest_crop(np.asarray(truth), _CROP)
    crops = {label: image.crop((x, y, x + _CROP, y + _CROP)) for label, image in whole.items()}
    kind = "WEBP" if max(truth.size) <= _LONGEST_WEBP else "JPEG"
    return ShownImage(
        group=group,
        name=PurePosixPath(name).stem,
        width=truth.width,
        height=truth.height,
        scores=dict(scores),
        crops=crops,
        crop_urls={label: _data_url(image, "PNG") for label, image in crops.items()},
        whole_urls={label: _data_url(image, kind) for label, image in whole.items()},
    )


def _read_image(url: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(storage.read(url) or b"")).convert("RGB")
    except Exception:  # Pillow raises exceptions of many classes for a damaged file
        raise storage.DamagedFileError(f"{url} is damaged: {storage.DELETE_AND_RERUN}") from None


def crops_figure(images: Sequence[ShownImage], labels: Sequence[str]) -> bytes:
    """Draw crops as PNG, with a row for each image and a column for each label."""
    rows = max(len(images), 1)
    size = (3.2 * len(labels), 3.45 * rows)
    figure, axes = plt.subplots(rows, len(labels), figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for row, image in zip(axes, images, strict=False):
        for axis, label in zip(row, labels, strict=True):
            axis.imshow(image.crops[label], interpolation="nearest")
            axis.set_title(plain_text(image.caption(label)), fontsize=10)
    return rendered(figure, "png")


def curves(histories: Mapping[str, Sequence[JournalRecord]], bicubic: float | None) -> str:
    """Draw objective and held-out PSNR over the steps as SVG, with a line for each training.

    Args:
        histories: journals by label.
        bicubic: held-out PSNR of bicubic interpolation in dB, drawn as a dashed line.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for label, history in histories.items():
        train = [r for r in history if r.kind == "train" and "train/objective" in r.metrics]
        validation = [r for r in history if r.kind == "validation" and "val/psnr_y" in r.metrics]
        left.plot([r.step for r in train], [r.metrics["train/objective"] for r in train], lw=1)
        scores = [r.metrics["val/psnr_y"] for r in validation]
        right.plot([r.step for r in validation], scores, marker="o", ms=3, label=plain_text(label))
    left.set(xlabel="step", title="training objective", yscale="log")
    if bicubic is not None:
        right.axhline(bicubic, ls="--", lw=1, color="gray", label="bicubic")
    right.set(xlabel="step", title="held-out PSNR (Y), dB")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    svg = rendered(figure, "svg").decode()
    return svg[svg.index("<svg") :]


def _data_url(image: Image.Image, kind: str) -> str:
    sink = io.BytesIO()
    image.save(sink, kind, **({} if kind == "PNG" else {"quality": 92}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"
