"""The results page of the documentation, written from the records of finished trainings."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image
from pydantic import JsonValue

from pipeline.data import benchmark_sets
from pipeline.evaluation import scoring
from pipeline.evaluation.scores import HELD_OUT, Metrics
from pipeline.networks import upscaling
from pipeline.networks.weights import load_network
from pipeline.reporting import cards, comparison, cost, pages, plane, records, report
from pipeline.reporting.records import TrainingRecord
from pipeline.reporting.rows import Row
from pipeline.settings import UserError


@dataclass(frozen=True)
class Literature:
    """Scores of a paper, at x4."""

    label: str
    network: str
    """Value of `model.name` of the records that it is shown beside."""
    psnr_y: Metrics
    """PSNR (Y) in dB by set."""


LITERATURE = (
    Literature("SRResNet", "srresnet", {"Set5": 32.05, "Set14": 28.49, "BSD100": 27.58}),
    Literature("SRResNet with VGG22", "srresnet", {"Set5": 30.51, "Set14": 27.19}),
    Literature("SRCNN 9-5-5, luma", "srcnn", {"Set5": 30.48, "Set14": 27.50, "BSD100": 26.90}),
)
"""Tables 1 and 2 of Ledig et al. 2017 (arXiv:1609.04802) for SRResNet, and Dong et al. 2015 (arXiv:1501.00092) for
SRCNN."""

CROPS = (("Set5", "butterfly"), ("Set14", "comic"), ("Set14", "zebra"))
"""Sets and images whose crops are shown."""


@dataclass(frozen=True)
class Spread:
    """Scores of trainings that differ only in their seed, on one set."""

    network: str
    """Label of the network's variant, such as "nobn"."""
    set: str
    values: list[float]
    """PSNR (Y) in dB of each seed."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def width(self) -> float:
        """Difference between the highest and the lowest value."""
        return max(self.values) - min(self.values)


def write_page(
    found: Sequence[TrainingRecord],
    seeds: Sequence[TrainingRecord],
    folder: str,
    out: Path,
    benchmarks: Path | None,
    earlier: str | None = None,
) -> None:
    """Write results.md and its drawings, and with benchmark images also results-crops.png and result.png.

    result.png shows only the record with the highest PSNR on held-out images.

    Args:
        found: the records.
        seeds: records of short trainings with other seeds; may be empty.
        folder: path or URL of the records, for their weights.
        out: folder to write to.
        benchmarks: folder of Set5/ and Set14/, or None to leave the crops as they are.
        earlier: path or URL of the records of an earlier edition, which only the figure of costs shows.

    Raises:
        UserError: if a benchmark image is missing.
    """
    initial = {record.label: records.initial_record(folder, record) for record in found}
    rows = [_with_start(record_row(record), initial[record.label]) for record in found]
    before = _earlier_rows(earlier) if earlier else []
    configs = {record.label: records.configuration(record) for record in found}
    first = configs[found[0].label]
    spreads = _spreads(seeds)
    points = plane.list_points(rows)
    drawing = plane.draw_plane(points)
    costs = cost.draw_costs([*rows, *before])
    page = pages.render(
        "results.md.j2",
        records=found,
        configs=configs,
        scale=first.scale,
        network=cards.describe_network(*configs.values()),
        folder=folder,
        headline=comparison.markdown(_headline(found)),
        distances=_distances(found),
        scores=comparison.markdown(comparison.score_table(rows)),
        efforts=comparison.markdown(comparison.cell_table(rows)),
        note=comparison.NOTE,
        perceptual=_perceptual(found),
        plane=comparison.markdown(plane.plane_table(points)) if drawing else "",
        spreads=spreads,
        pairs=[(a, b) for a, b in itertools.combinations(spreads, 2) if a.set == b.set],
        short_steps=seeds[0].result.steps if seeds else 0,
        best=comparison.best(rows),
        initial=initial,
        costs=costs,
        earlier=bool(before),
    )
    (out / "results.md").write_text(page)
    curves = report.curves({record.label: record.history for record in found}, None)
    (out / "results-curves.svg").write_text(curves)
    for name, svg in (("results-plane.svg", drawing), ("results-cost.svg", costs)):
        if svg:
            (out / name).write_text(svg)
    if benchmarks:
        best = comparison.best_row(rows, "psnr_y")
        one = [record for record in found if best and record.label == best.label]
        for name, shown in (("results-crops.png", found), ("result.png", one)):
            (out / name).write_bytes(_crops(shown, folder, benchmarks))


def record_row(record: TrainingRecord, folder: str = "") -> Row:
    """Return the record of a finished training as a row of a comparison.

    Args:
        record: the record.
        folder: path or URL of the training, if it was restored.
    """
    return Row(
        record.label,
        "finished",
        records.configuration(record),
        folder=folder,
        steps=record.result.steps,
        history=record.history,
        seconds=record.seconds,
        threads=record.threads if record.result.device == "cpu" else 0,
        gpus=record.result.workers if record.result.device == "cuda" else 0,
        variants=record.variants,
        parts=record.parts,
        sets=record.scores,
    )


def _earlier_rows(folder: str) -> list[Row]:
    """Return the rows of an earlier edition, which their titles name."""
    found = records.read_all(folder)
    rows = [_with_start(record_row(record), records.initial_record(folder, record)) for record in found]
    return [replace(row, label=records.earlier_label(row.label)) for row in rows]


def _with_start(row: Row, initial: TrainingRecord | None) -> Row:
    """Return a row with the hours of the weights that it started from, if both ran on cores or both on GPUs."""
    start = record_row(initial) if initial else None
    hours = start.hours if start and bool(start.gpus) == bool(row.gpus) else None
    return replace(row, earlier_hours=hours or 0.0)


def _psnr(found: Sequence[TrainingRecord]) -> dict[str, Metrics]:
    """Return the PSNR (Y) of each record by label and set."""
    return {
        record.label: {name: entry.mean["trained"]["psnr_y"] for name, entry in record.scores.items()}
        for record in found
    }


def _set_names(found: Sequence[TrainingRecord]) -> list[str]:
    """Return the sets that were scored: those with published values first, held-out images last."""
    names = dict.fromkeys(name for record in found for name in record.scores)
    return sorted(names, key=lambda name: (name not in LITERATURE[0].psnr_y, name == HELD_OUT))


def _scale(found: Sequence[TrainingRecord]) -> int:
    return records.configuration(found[0]).scale


def _headline(found: Sequence[TrainingRecord]) -> list[list[str]]:
    """Return a header and a row for bicubic, for each record, and for each published result."""
    sets = _set_names(found)
    known = _scale(found) == 4
    networks = {records.configuration(record).model.name for record in found}
    bicubic = {
        name: next(record.scores[name].mean["bicubic"]["psnr_y"] for record in found if name in record.scores)
        for name in sets
    }
    rows = {
        comparison.BICUBIC: bicubic,
        **{f"**{label}**": values for label, values in _psnr(found).items()},
        **{entry.label: entry.psnr_y for entry in comparison.PUBLISHED if known},
        **{f"literature: {entry.label}": entry.psnr_y for entry in LITERATURE if known and entry.network in networks},
    }
    table = [["", *sets]]
    for label, values in rows.items():
        table.append([label, *(f"{values[name]:.2f}" if name in values else "" for name in sets)])
    return table


def _distances(found: Sequence[TrainingRecord]) -> list[str]:
    """Return a sentence for each benchmark set that compares the best record with the literature."""
    lines = []
    for name, target in LITERATURE[0].psnr_y.items() if _scale(found) == 4 else ():
        values = {label: row[name] for label, row in _psnr(found).items() if name in row}
        if values:
            label = max(values, key=lambda label: values[label])
            lines.append(
                f"On {name}, {label} reaches {values[label]:.2f} dB. That is {values[label] - target:+.2f} dB against "
                "the network of the literature, which was trained for 10^6 steps on ImageNet."
            )
    return lines


@dataclass(frozen=True)
class _Pretrained:
    """An objective that needs pretrained weights, and their file."""

    labels: list[str]
    """Trainings with this objective."""
    objective: str
    file: str
    sha256: str


def _perceptual(found: Sequence[TrainingRecord]) -> list[_Pretrained]:
    """Describe each different objective that uses pretrained weights."""
    labels: dict[tuple[str, str, str], list[str]] = {}
    for record in found:
        config = records.configuration(record)
        for term in config.train.pretrained():
            file, sha256 = (_train_section(known, term)["weights"] for known in (record.config, record.identity))
            described = (cards.describe_objective(config), str(file), str(sha256))
            labels.setdefault(described, []).append(record.label)
    return [_Pretrained(of, *described) for described, of in labels.items()]


def _train_section(settings: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    """Return the section `train.NAME` of settings as a record holds them."""
    section = settings["train"][name]  # type: ignore[index, call-overload]
    assert isinstance(section, dict)
    return section


def _spreads(seeds: Sequence[TrainingRecord]) -> list[Spread]:
    """Gather the PSNR of the MSE trainings by set and by variant of the network."""
    values: dict[tuple[str, str], list[float]] = {}
    for record in seeds:
        config = records.configuration(record)
        if "mse" in config.train.loss:
            for name in _set_names([record]):
                values.setdefault((name, config.model.label), []).append(_psnr([record])[record.label][name])
    ordered = _set_names(seeds)
    keys = sorted(values, key=lambda key: (ordered.index(key[0]), key[1]))
    return [Spread(label, name, values[name, label]) for name, label in keys]


def _crops(found: Sequence[TrainingRecord], folder: str, benchmarks: Path) -> bytes:
    """Draw the same crops of bicubic, all records and the ground truth."""
    scale, shown = _scale(found), []
    nets = {record.label: load_network(records.weights(folder, record.label)) for record in found}
    with tempfile.TemporaryDirectory() as place:
        for name, stem in CROPS:
            images = benchmark_sets.list_images(name, str(benchmarks / name), scale, place)
            image = next((image for image in images if image.name == stem), None)
            if image is None:
                raise UserError(f"{benchmarks / name} has no image {stem}, expected the usual names of {name}")
            hr, lr, _ = scoring.load_pair(image.hr, image.lr, scale, 10**8)
            versions = {comparison.BICUBIC: scoring.bicubic_image(lr, scale)}
            versions |= {label: upscaling.upscale_image(net, lr) for label, net in nets.items()}
            scores = {label: asdict(scoring.score_image(sr, hr, scale)) for label, sr in versions.items()}
            urls = {}
            for number, (label, version) in enumerate({**versions, report.TRUTH: hr}.items()):
                urls[label] = f"{place}/{name}-{stem}-{number}.png"
                Image.fromarray(version).save(urls[label])
            shown.append(report.load_shown(name, stem, urls, scores))
    return report.crops_figure(shown, [comparison.BICUBIC, *nets, report.TRUTH])
