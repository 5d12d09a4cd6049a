#!/usr/bin/env python
"""The whole workflow: pictures to patch set, training, evaluation, report; tracked in MLflow.

`python -m pipeline.run --config configs/demo.yaml`, or on a cluster `ray job submit --working-dir . pipeline/run.py`.
Every stage finds what was finished before, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and __package__ in (None, ""):
    # Started as a script: Python put pipeline/ on the path, whose modules are not meant to be imported bare.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import cluster, evaluate, patchset, preprocess, report, sources, storage, tracking, train
from pipeline.commandline import command, parse_with
from pipeline.config import Config
from pipeline.patchset import PatchSet


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.run`."""
    config, _ = parse_with({}, argv, "run", "Preprocess, train, evaluate and report.", tracking.fetch_config)
    run(config)


def run(config: Config) -> str:
    """Run what isn't finished yet of the workflow that the configuration describes.

    Returns:
        Path or URL of the folder with report.html, comparison.png and scores.json.
    """
    start = time.monotonic()
    for name, source in config.evaluate.benchmarks.items():  # a mistake shows before the work, not after it
        sources.find_benchmark(name, source, config.scale, config.downloads)
    patch_set, found = preprocess.prepare(config)
    print(f"patch set {'reused' if found else 'made'}: {patch_set.url}: {patchset.describe(patch_set)}", flush=True)
    folder = f"{config.outputs}/workflows/{train.training_name(config, patch_set)}"
    scores = _finished(config, patch_set, folder)
    if scores:
        print("training, evaluation and report reused: nothing has changed", flush=True)
    else:
        cluster.connect_ahead(config)
        with tracking.Tracker(config).run(folder, config.name, {"stage": "workflow"}) as parent:
            parent.describe({"patch_set": patch_set.name, "source": ",".join(config.source)}, config)
            trained = train.train(config, patch_set, parent.id)
            print(f"training {'reused' if trained.found else 'finished'}: {trained.folder}", flush=True)
            scores = evaluate.find(config, patch_set, trained.weights, folder) or evaluate.evaluate(
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
    print(f"\n{evaluate.table(scores)}\n\nreport: {folder}/report.html\nMLflow: {tracking.ui_command(config)}")
    return folder


def _finished(config: Config, patch_set: PatchSet, folder: str) -> evaluate.Scores | None:
    """The scores, if training, evaluation and report were all finished before, and MLflow has them."""
    trained = train.find(config, patch_set)
    marker = storage.read_json(f"{folder}/finished.json")
    if trained is None or not trained.tracked or marker is None:
        return None
    scores = evaluate.find(config, patch_set, trained.weights, folder)
    return scores if scores and scores["identity"] == marker["scores"] else None


def _facts(config: Config, patch_set: PatchSet, trained: train.Trained, seconds: float) -> dict[str, str]:
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


if __name__ == "__main__":
    from pipeline import run as module  # by its name, so that Ray's workers import what they run

    module.main()
