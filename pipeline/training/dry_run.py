"""The plan of a training, without making it."""

from __future__ import annotations

import tempfile

from pipeline import cluster
from pipeline.data.patchset import PatchSet
from pipeline.evaluation.tables import duration
from pipeline.networks import features
from pipeline.networks.weights import build_network
from pipeline.settings import Config
from pipeline.training import planning
from pipeline.training.driver import _outcome, _plan_of, _trainer
from pipeline.training.runs import training_name
from pipeline.training.schedule import learning_rate
from pipeline.training.worker import sample_order


def describe_plan(config: Config, patch_set: PatchSet) -> str:
    """Plan the training on the cluster without making it: what is known, and what a few measured steps tell."""
    folder = f"{config.outputs}/trainings/{training_name(config, patch_set)}"
    order = sample_order(config, patch_set)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Config(**{**features.prepare(config).model_dump(), "home": scratch})
        trainer = _trainer(trial, patch_set, folder, "dry-run", dry_run=True)
        outcome = _outcome(trainer)
    plan = planning.Plan(**_plan_of(outcome, folder))
    workers, resources = cluster.training_resources(config)
    settings, gpu = config.train, "GPU" in resources
    share = max(order.shares(0, settings.global_batch, workers))
    micro = min(plan.micro_batch, share)
    parameters = sum(p.numel() for p in build_network(config.scale, config.model, 0).parameters())
    epoch = order.epoch_length
    assert plan.step_s is not None
    assert plan.memory_mb is not None
    span = f"the {micro * workers} patches of a micro-step" if gpu else f"a worker's micro-batch of {micro}"
    length = plan.steps * settings.global_batch / epoch
    facts = {
        "network": f"SRResNet x{config.scale}, {parameters:,} parameters",
        "patch set": f"{patch_set.url}: {sum(patch_set.row_groups):,} tiles of {patch_set.tile}",
        "an epoch": f"{epoch:,} patches of {config.data.crop}, {epoch / settings.global_batch:.1f} steps",
        "length": f"{plan.steps:,} steps of global batch {settings.global_batch}: {length:.2f} epochs",
        "workers": f"{workers} on {'GPU' if gpu else 'CPU'}, {int(resources['CPU'])} cores each",
        "micro-batch": f"{micro}{' (found)' if settings.micro_batch == 'auto' else ''}, accumulated "
        f"{-(-share // micro)} times by each worker",
        "BatchNorm": f"statistics span {span}" if config.model.batch_norm else "none",
        "learning rate": f"{learning_rate(round(settings.warmup * plan.steps), plan.steps, settings):.2e} at its peak",
        "computed in": f"{'bf16' if plan.bf16 else 'fp32'}{', compiled' if plan.compiled else ''}"
        f"{', activations recomputed' if settings.recompute else ''}",
        "memory": f"about {plan.memory_mb:,.0f} MB a worker",
        "a step": f"{plan.step_s:.2f} s, {settings.global_batch / plan.step_s:.1f} patches/s (measured, not compiled)",
        "time": f"about {duration(plan.steps * plan.step_s)}, validation and start not included",
        "training": folder,
    }
    return "\n".join(f"{key:14}{value}" for key, value in facts.items())
