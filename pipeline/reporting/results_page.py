"""Show what was recorded: as docs/results.md with its images, or in MLflow.

`python -m pipeline.publish docs` writes the page from `pipeline.records`; `python -m pipeline.publish mlflow` imports
the records into a store of their own, as `make results-ui` does before it opens the UI.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data import sources
from pipeline.evaluation import scoring
from pipeline.networks import upscaling
from pipeline.networks.weights import read_weights
from pipeline.reporting import comparison, pages, records, report
from pipeline.reporting.comparison import Row
from pipeline.reporting.records import Recorded
from pipeline.settings import UserError
from sr_model.srresnet import from_weights

LITERATURE = {
    "SRResNet": {"Set5": 32.05, "Set14": 28.49},
    "SRResNet with VGG22": {"Set5": 30.51, "Set14": 27.19},
}
"""PSNR on Y, of Ledig et al. 2017 (arXiv:1609.04802), table 1."""

CROPS = (("Set5", "butterfly"), ("Set14", "comic"), ("Set14", "zebra"))
"""Sets and images of which crops are shown."""


def write_page(
    found: Sequence[Recorded], seeds: Sequence[Recorded], folder: str, out: Path, benchmarks: Path | None
) -> None:
    """Write results.md and results-curves.svg; with benchmark images also results-crops.png and result.png.

    result.png shows the best row alone, by PSNR on held-out images.

    Args:
        found: the records.
        seeds: records of short trainings with other seeds; may be none.
        folder: where the records' weights are.
        out: folder to write to.
        benchmarks: folder of Set5 and Set14, or None.
    """
    rows = [_row(recorded) for recorded in found]
    page = pages.render(
        "results.md.j2",
        records=found,
        folder=folder,
        headline=comparison.markdown(_headline(found)),
        distances=_distances(found),
        scores=comparison.markdown(comparison.score_table(rows, found[0]["config"]["scale"])),
        efforts=comparison.markdown(comparison.cell_table(rows)),
        note=comparison.NOTE,
        seeds=_spread(seeds),
        short=seeds[0] if seeds else None,
        best=comparison.best(rows),
        cores=records.cores,
        origins={recorded["label"]: records.origin(folder, recorded) for recorded in found},
    )
    (out / "results.md").write_text(page)
    curves = report.curves({recorded["label"]: recorded["history"] for recorded in found}, None)
    (out / "results-curves.svg").write_text(curves)
    if benchmarks:
        best = comparison.best_row(rows, "psnr_y")
        one = [recorded for recorded in found if best and recorded["label"] == best.label]
        for name, shown in (("results-crops.png", found), ("result.png", one)):
            (out / name).write_bytes(_crops(shown, folder, benchmarks))
    print(f"{out / 'results.md'} written from {len(found)} records")


def _row(recorded: Recorded, folder: str = "") -> Row:
    return Row(
        recorded["label"],
        "finished",
        config=records.configuration(recorded),
        folder=folder,
        result=recorded["result"],
        history=recorded["history"],
        seconds=recorded["seconds"],
        sets=recorded["scores"],
    )


def _psnr(found: Sequence[Recorded]) -> dict[str, dict[str, float]]:
    """PSNR on Y by label and set, of the rows that were measured."""
    return {
        recorded["label"]: {name: entry["mean"]["trained"]["psnr_y"] for name, entry in recorded["scores"].items()}
        for recorded in found
    }


def _scores_by_set(found: Sequence[Recorded]) -> dict[str, list[dict[str, Any]]]:
    """Means of every set, of the rows that have it; benchmarks with published values first, held-out images last."""
    names = dict.fromkeys(name for recorded in found for name in recorded["scores"])
    ordered = sorted(names, key=lambda name: (name not in LITERATURE["SRResNet"], name == "held-out"))
    return {name: [r["scores"][name]["mean"] for r in found if name in r["scores"]] for name in ordered}


def _headline(found: Sequence[Recorded]) -> list[list[str]]:
    """Header and a line for each row, beside bicubic and what was published."""
    sets = _scores_by_set(found)
    known = found[0]["config"]["scale"] == 4
    published: dict[str, dict[str, float]] = {}
    for name, entries in comparison.PUBLISHED.items() if known else ():
        for label, values in entries.items():
            published.setdefault(label, {})[name] = values["psnr_y"]
    lines = {
        comparison.BICUBIC: {name: means[0]["bicubic"]["psnr_y"] for name, means in sets.items()},
        **{f"**{label}**": values for label, values in _psnr(found).items()},
        **published,
        **{f"literature: {label}": values for label, values in LITERATURE.items() if known},
    }
    table = [["", *sets]]
    for label, values in lines.items():
        table.append([label, *(f"{values[name]:.2f}" if name in values else "" for name in sets)])
    return table


def _distances(found: Sequence[Recorded]) -> list[str]:
    """How far the best row of each benchmark set is from the literature."""
    lines = []
    for name, target in LITERATURE["SRResNet"].items() if found[0]["config"]["scale"] == 4 else ():
        values = {label: row[name] for label, row in _psnr(found).items() if name in row}
        if values:
            label = max(values, key=lambda label: values[label])
            lines.append(
                f"On {name}, {label} has {values[label]:.2f} dB, {values[label] - target:+.2f} dB against the "
                "literature's network, trained for 10^6 steps on ImageNet."
            )
    return lines


def _spread(seeds: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Of each choice of BatchNorm: PSNR of every seed by set, their mean and how far apart they are."""
    lines = []
    for batch_norm in (True, False):
        same = [
            r
            for r in seeds
            if r["config"]["model"]["batch_norm"] is batch_norm and "mse" in r["config"]["train"]["loss"]
        ]
        for name, means in _scores_by_set(same).items():
            values = [mean["trained"]["psnr_y"] for mean in means]
            lines.append(
                {
                    "set": name,
                    "batch_norm": batch_norm,
                    "values": values,
                    "mean": statistics.fmean(values),
                    "spread": max(values) - min(values),
                }
            )
    return lines


def _crops(found: Sequence[Recorded], folder: str, benchmarks: Path) -> bytes:
    """The same crops of bicubic, all rows and the truth."""
    scale, shown = found[0]["config"]["scale"], []
    with tempfile.TemporaryDirectory() as place:
        for name, stem in CROPS:
            images = sources.find_benchmark(name, str(benchmarks / name), scale, place)
            image = next((image for image in images if image.name == stem), None)
            if image is None:
                raise UserError(f"{benchmarks / name} has no image {stem}, expected the set's usual names")
            hr, lr, _ = scoring.load_pair(image.hr, image.lr, scale, 10**8)
            versions = {comparison.BICUBIC: scoring.bicubic_image(lr, scale)}
            scores = {}
            for recorded in found:
                net = from_weights(read_weights(records.weights(folder, recorded["label"])))
                versions[recorded["label"]] = upscaling.upscale_image(net, lr)
            for label, version in versions.items():
                score = scoring.score_image(version, hr, scale)
                scores[label] = {"psnr_y": score.psnr_y, "ssim_y": score.ssim_y}
            urls = {}
            for number, (label, version) in enumerate({**versions, report.TRUTH: hr}.items()):
                urls[label] = f"{place}/{name}-{stem}-{number}.png"
                Image.fromarray(version).save(urls[label])
            shown.append(report.Shown(name, stem, urls, scores))
    return report.crops_figure(shown, [*versions, report.TRUTH])
