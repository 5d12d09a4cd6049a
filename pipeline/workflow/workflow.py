"""Run the whole workflow: prepare a patch set, train, evaluate and write a report, tracked in MLflow.

Each stage reuses what an earlier run finished, so the same command resumes an interrupted workflow.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from pipeline import cluster, storage, tracking
from pipeline.data import benchmark_sets, patchset, preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scores as scores_module
from pipeline.evaluation import tables
from pipeline.evaluation.scores import Scores
from pipeline.reporting import report
from pipeline.settings import Config
from pipeline.training import driver, runs
from pipeline.training.methods import find_method


@dataclass(frozen=True)
class _Finished:
    """The content of finished.json, which marks a workflow that MLflow knows completely."""

    scores: str
    """Identity of the scores in the report."""


def run_workflow(config: Config) -> str:
    """Run the unfinished stages of the workflow that a configuration describes.

    Args:
        config: resolved settings.

    Returns:
        Path or URL of the folder with report.html, comparison.png and scores.json.

    Raises:
        UserError: if the images, the settings or the tracking server cannot be used, or the training fails.
    """
    start = time.monotonic()
    find_method(config)
    for name, source in config.evaluate.benchmarks.items():  # report a wrong benchmark before hours of training
        benchmark_sets.list_images(name, source, config.scale, config.downloads)
    patch_set, found = preparation.prepare(config)
    print(f"patch set {'reused' if found else 'made'}: {patch_set.url}: {patchset.describe(patch_set)}", flush=True)
    folder = f"{config.outputs}/workflows/{runs.training_name(config, patch_set)}"
    scores = _read_finished(config, patch_set, folder)
    if scores:
        print("training, evaluation and report reused: nothing has changed", flush=True)
    else:
        scores = _train_and_report(config, patch_set, folder, start)
    print(f"\n{tables.scores_table(scores)}\n\nreport: {folder}/report.html\nMLflow: {tracking.ui_command(config)}")
    return folder


def _train_and_report(config: Config, patch_set: PatchSet, folder: str, start: float) -> Scores:
    """Train, evaluate and write the report within an MLflow run; `start` is when the command started."""
    cluster.connect_ahead(config)
    with tracking.Tracker(config).run(folder, config.name, {"stage": "workflow"}) as parent:
        parent.describe({"patch_set": patch_set.name, "source": ",".join(config.source)}, config)
        trained = driver.train(config, patch_set, parent.id)
        print(f"training {'reused' if trained.found else 'finished'}: {trained.folder}", flush=True)
        scores = scores_module.evaluate(config, patch_set, trained.weights, folder)
        facts = _facts(config, patch_set, trained, time.monotonic() - start)
        comparison, page = report.write_report(folder, config, scores, trained.history(), facts)
        sent = parent.log_metrics(
            {
                f"{name}/{method}/{metric}": value
                for name, entry in scores.sets.items()
                for method, means in entry.mean.items()
                for metric, value in means.items()
            }
        )
        sent &= parent.log_file(comparison, "comparison.png") and parent.log_file(page, "report.html")
    if sent and parent.ended:
        storage.write_document(f"{folder}/finished.json", _Finished(scores.identity))
    return scores


def _read_finished(config: Config, patch_set: PatchSet, folder: str) -> Scores | None:
    """Return the scores if training, evaluation and report are finished and MLflow has them."""
    trained = runs.find_training(config, patch_set)
    marker = storage.read_document(f"{folder}/finished.json", _Finished)
    if trained is None or not trained.tracked or marker is None:
        return None
    scores = scores_module.read(config, patch_set, trained.weights, folder)
    return scores if scores and scores.identity == marker.scores else None


def _facts(config: Config, patch_set: PatchSet, trained: runs.Trained, seconds: float) -> dict[str, str]:
    """Return the values that the report states; `seconds` is the time since the command started."""
    result = trained.result
    rates = [record.metrics["train/patches_per_s"] for record in trained.history() if record.kind == "train"]
    return {
        "steps": f"{result.steps} with a global batch of {config.train.global_batch}",
        "workers": f"{result.workers} on {result.device}, {result.precision}",
        "throughput": f"{statistics.median(rates):.1f} patches/s (median)",
        "time": f"{tables.duration(seconds)} for this command",
        "patch set": f"{patch_set.name}: {patchset.describe(patch_set)}",
        "training": trained.folder,
        "source": ", ".join(config.source),
    }
