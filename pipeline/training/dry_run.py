"""The dry run of a training: its plan as text, from the configuration and a few measured steps."""

from __future__ import annotations

import tempfile

from pipeline import cluster, terminal
from pipeline.data.patchset import PatchSet
from pipeline.networks import features
from pipeline.networks.weights import count_parameters
from pipeline.settings import Config, architecture
from pipeline.training.driver import make_trainer, run_trainer
from pipeline.training.initial import check_initial, locate_initial
from pipeline.training.methods import find_method
from pipeline.training.planning import sample_order
from pipeline.training.runs import training_folder
from pipeline.training.schedule import learning_rate


def describe_plan(config: Config, patch_set: PatchSet) -> str:
    """Plan a training on the cluster without making it.

    Returns:
        Lines of text, with the measured time of a step and the measured memory of a worker.

    Raises:
        UserError: if the configuration does not fit the patch set or the cluster.
    """
    find_method(config)
    config = locate_initial(config)
    check_initial(config)
    folder = training_folder(config, patch_set)
    order = sample_order(config, patch_set)
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = features.prepare_terms(config).model_copy(update={"home": scratch})
        trainer = make_trainer(elsewhere, patch_set, folder, plan_only=True)
        with terminal.stage("", "the workers start and measure a step"):
            plan = run_trainer(trainer, folder)
    workers, resources = cluster.training_resources(config)
    settings, gpu = config.train, "GPU" in resources
    share = max(order.shares(0, settings.global_batch, workers))
    micro = min(plan.micro_batch, share)
    epoch = order.epoch_length
    assert plan.step_s is not None
    assert plan.memory_mb is not None
    length = plan.steps * settings.global_batch / epoch
    has_norms = getattr(config.model, "batch_norm", False)
    title = architecture(config.model).title
    facts = {
        "network": f"{title} x{config.scale}, {count_parameters(config.scale, config.model):,} parameters",
        "patch set": f"{patch_set.url}: {patch_set.tiles:,} tiles of {patch_set.tile}",
        "an epoch": f"{epoch:,} patches of {config.data.crop}, {epoch / settings.global_batch:.1f} steps",
        "length": f"{plan.steps:,} steps of global batch {settings.global_batch}: {length:.2f} epochs",
        "workers": f"{workers} on {'GPU' if gpu else 'CPU'}, {int(resources['CPU'])} cores each",
        "micro-batch": f"{micro}{' (found)' if settings.micro_batch == 'auto' else ''}, accumulated "
        f"{-(-share // micro)} times by each worker",
        "BatchNorm": f"statistics span a worker's micro-batch of {micro}" if has_norms else "none",
        "learning rate": f"{learning_rate(round(settings.warmup * plan.steps), plan.steps, settings):.2e} at its peak",
        "precision": f"{plan.precision}{', compiled' if plan.compiled else ''}"
        f"{', activations recomputed' if settings.recompute else ''}",
        "memory": f"about {plan.memory_mb:,.0f} MB a worker",
        "a step": f"{plan.step_s:.2f} s, {settings.global_batch / plan.step_s:.1f} patches/s (measured)",
        "time": f"about {terminal.duration(plan.steps * plan.step_s)}, without validation and start",
        **({"note": plan.note} if plan.note else {}),
        "training": folder,
    }
    return "\n".join(f"{key:14}{value}" for key, value in facts.items())
