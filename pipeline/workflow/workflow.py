"""The whole workflow: images to patch set, training, evaluation, report; tracked in MLflow.

`python -m pipeline.run --config configs/demo.yaml`, or on a cluster `ray job submit --working-dir . pipeline/run.py`.
Every stage finds what was finished before, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import statistics
import time

from pipeline import cluster, storage, tracking
from pipeline.data import patchset, preparation, sources
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scores as scores_module
from pipeline.evaluation import tables
from pipeline.reporting import report
from pipeline.settings import Config
from pipeline.training import driver, runs


def run(config: Config) -> str:
    """Run what isn't finished yet of the workflow that the configuration describes.

    Returns:
        Path or URL of the folder with report.html, comparison.png and scores.json.
    """
    start = time.monotonic()
    for name, source in config.evaluate.benchmarks.items():  # a mistake shows before the work, not after it
        sources.find_benchmark(name, source, config.scale, config.downloads)
    patch_set, found = preparation.prepare(config)
    print(f"patch set {'reused' if found else 'made'}: {patch_set.url}: {patchset.describe(patch_set)}", flush=True)
    folder = f"{config.outputs}/workflows/{runs.training_name(config, patch_set)}"
    scores = _finished(config, patch_set, folder)
    if scores:
        print("training, evaluation and report reused: nothing has changed", flush=True)
    else:
        cluster.connect_ahead(config)
        with tracking.Tracker(config).run(folder, config.name, {"stage": "workflow"}) as parent:
            parent.describe({"patch_set": patch_set.name, "source": ",".join(config.source)}, config)
            trained = driver.train(config, patch_set, parent.id)
            print(f"training {'reused' if trained.found else 'finished'}: {trained.folder}", flush=True)
            scores = scores_module.find(config, patch_set, trained.weights, folder) or scores_module.evaluate(
                config, patch_set, trained.weights, folder
            )
            facts = _facts(config, patch_set, trained, time.monotonic() - start)
            comparison, page = report.write_report(folder, config, scores, trained.history(), facts)
            sent = parent.log_metrics(
                {
                    f"{name}/{method}/{metric}": value
                    for name, entry in scores["sets"].items()
                    for method, means in entry["mean"].items()
                    for metric, value in means.items()
                }
            )
            sent &= parent.log_file(comparison, "comparison.png") and parent.log_file(page, "report.html")
        if sent and parent.ended:
            storage.write_json(f"{folder}/finished.json", {"scores": scores["identity"]})
    print(f"\n{tables.table(scores)}\n\nreport: {folder}/report.html\nMLflow: {tracking.ui_command(config)}")
    return folder


def _finished(config: Config, patch_set: PatchSet, folder: str) -> scores_module.Scores | None:
    """The scores, if training, evaluation and report were all finished before, and MLflow has them."""
    trained = runs.find(config, patch_set)
    marker = storage.read_json(f"{folder}/finished.json")
    if trained is None or not trained.tracked or marker is None:
        return None
    scores = scores_module.find(config, patch_set, trained.weights, folder)
    return scores if scores and scores["identity"] == marker["scores"] else None


def _facts(config: Config, patch_set: PatchSet, trained: runs.Trained, seconds: float) -> dict[str, str]:
    result = trained.result
    rates = [r["metrics"]["train/patches_per_s"] for r in trained.history() if r["kind"] == "train"]
    return {
        "steps": f"{result['steps']} of global batch {config.train.global_batch}",
        "workers": f"{result['workers']} on {result['device']}, {'bf16' if result['bf16'] else 'fp32'}",
        "throughput": f"{statistics.median(rates):.1f} patches/s (median)",
        "time": f"{seconds / 60:.1f} minutes for what this command did",
        "patch set": f"{patch_set.name}: {patchset.describe(patch_set)}",
        "training": trained.folder,
        "source": ", ".join(config.source),
    }
