"""Run the whole workflow: prepare a patch set, train, evaluate and write a report, tracked in MLflow.

Each stage reuses what an earlier run finished, so the same command resumes an interrupted workflow.
"""

from __future__ import annotations

import statistics

from pipeline import cluster, terminal, tracking
from pipeline.data import benchmark_sets, patchset, preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import tables, trained_network
from pipeline.evaluation.scores import Scores
from pipeline.reporting import registration, report
from pipeline.reporting.comparison import log_scores
from pipeline.reporting.rows import Row
from pipeline.settings import Config
from pipeline.training import description, driver, preflight, runs
from pipeline.training.initial import check_initial
from pipeline.training.methods import find_method
from pipeline.workflow.finished import mark_finished, read_mark


def run_workflow(config: Config, stop_at: float | None = None) -> str:
    """Run the unfinished stages of the workflow that a configuration describes.

    Args:
        config: resolved settings.
        stop_at: Unix time at which the training stops with a checkpoint; None for no limit.

    Returns:
        Path or URL of the folder with report.html, comparison.png and scores.json.

    Raises:
        UserError: if the images, the settings or the tracking server cannot be used, or the training fails.
        OutOfTime: if the training stopped at `stop_at`. Nothing is evaluated then.
    """
    find_method(config)
    for name, source in config.evaluate.benchmarks.items():  # report a wrong benchmark before hours of training
        print(benchmark_sets.list_set(name, source, config.scale, config.downloads).summary(), flush=True)
    if not tracking.any_tracked(f"{config.outputs}/trainings", config.training_label):
        check_initial(config)
        preflight.check_ahead(config)
    patch_set, found = preparation.prepare(config)
    print(f"patch set {'reused' if found else 'made'}: {patch_set.url}: {patchset.describe(patch_set)}", flush=True)
    folder = f"{config.outputs}/workflows/{runs.training_name(config, patch_set)}"
    scores = _read_finished(config, patch_set, folder)
    if scores:
        print("training, evaluation and report reused: nothing has changed", flush=True)
    else:
        scores = _train_and_report(config, patch_set, folder, stop_at)
    print(f"\n{tables.scores_table(scores)}\n\nreport: {folder}/report.html\nMLflow: {tracking.ui_command(config)}")
    return folder


def _train_and_report(config: Config, patch_set: PatchSet, folder: str, stop_at: float | None) -> Scores:
    """Train, evaluate and write the report within an MLflow run."""
    cluster.connect_ahead(config)
    tracker = tracking.Tracker(config)
    with tracker.run(folder, config.name, {"stage": "workflow"}) as parent:
        parent.describe({"patch_set": patch_set.name, "source": ",".join(config.source)}, config)
        description.log_patch_set(parent, config, patch_set)
        trained = driver.train(config, patch_set, parent.id, stop_at=stop_at)
        print(f"training {'reused' if trained.found else 'finished'}: {trained.folder}", flush=True)
        scores = trained_network.evaluate(config, patch_set, trained.weights, folder)
        with terminal.stage("", "writing the report and sending it to MLflow"):
            facts = _facts(config, patch_set, trained)
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
            sent &= _register(config, trained, scores, parent, tracker)
    if sent and parent.ended:
        mark_finished(folder, config, scores.identity)
    return scores


def _register(
    config: Config, trained: runs.Trained, scores: Scores, parent: tracking.TrackedRun, tracker: tracking.Tracker
) -> bool:
    """Add the scores to the model of the training, and register it; return True if MLflow has received all of it."""
    row = Row("training", "finished", config, folder=trained.folder, steps=trained.result.steps, sets=scores.sets)
    run = tracker.find_run(trained.folder, parent.id)
    if run is None or not log_scores(row, run):
        return False
    return registration.register_best(config, [row], f"of the workflow {config.name}", parent, tracker)


def _read_finished(config: Config, patch_set: PatchSet, folder: str) -> Scores | None:
    """Return the scores if training, evaluation and report are finished and MLflow has them."""
    trained = runs.find_training(config, patch_set)
    mark = read_mark(folder)
    if trained is None or not trained.tracked or mark is None or not mark.is_registered(config):
        return None
    scores = trained_network.read(config, patch_set, trained.weights, folder)
    return scores if scores and scores.identity == mark.scores else None


def _facts(config: Config, patch_set: PatchSet, trained: runs.Trained) -> dict[str, str]:
    """Return the values that the report states, which are those of the training and not of this command."""
    result, history = trained.result, trained.history()
    rates = [rate for record in history if (rate := record.metrics.get("train/patches_per_s")) is not None]
    sessions = sum(record.kind == "session" for record in history)
    return {
        "steps": f"{result.steps} with a global batch of {config.train.global_batch}",
        "workers": f"{result.workers} on {'GPU' if result.device == 'cuda' else 'CPU'}, {result.precision}",
        **({"throughput": f"{statistics.median(rates):.1f} patches/s (median)"} if rates else {}),
        "time": f"{terminal.duration(runs.seconds(history))}{f' in {sessions} sessions' if sessions > 1 else ''}",
        "finished": runs.last_day(history),
        "patch set": f"{patch_set.name}: {patchset.describe(patch_set)}",
        "training": trained.folder,
        "source": ", ".join(config.source),
    }
