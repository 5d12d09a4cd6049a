"""Make a patch set with the pipeline's own functions, in a pool of processes instead of Ray."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from pipeline.data import patchset, sources
from pipeline.data.inventory import InspectionTask, inspect
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.shard_plan import ShardSpec, plan_shards
from pipeline.data.shards import make_shard
from pipeline.data.split import split_images
from pipeline.settings import Config

_NAME = "patches"


def make_patch_set(config: Config) -> PatchSet:
    """Make the patch set of a configuration in its home, or open it if it was made there before.

    Raises:
        UserError: if a source holds no usable images.
        OSError: if a shard cannot be stored.
    """
    url = f"{config.outputs}/{_NAME}"
    if Path(patchset.manifest_url(url)).exists():
        return patchset.load(url)
    limit = sources.byte_limit(config.preprocess.max_pixels)
    tasks = [InspectionTask(image, limit) for image in sources.list_images(config.source, config.downloads)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.patches"])
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        train, holdout, rejected = split_images(config, list(pool.map(inspect, tasks, chunksize=8)))
        specs = [*plan_shards(config, train, held_out=False), *plan_shards(config, holdout, held_out=True)]
        shards = list(pool.map(_make, specs, [url] * len(specs)))
    manifest = Manifest(
        name=_NAME,
        scale=config.scale,
        tile=config.preprocess.tile,
        settings=config.preprocess,
        shards=[shard for spec, shard in zip(specs, shards, strict=True) if not spec.held_out],
        holdout=[shard for spec, shard in zip(specs, shards, strict=True) if spec.held_out],
        rejected=rejected,
    )
    patch_set = PatchSet(url, manifest)
    patch_set.save()
    return patch_set


def _make(spec: ShardSpec, url: str) -> Shard:
    return make_shard(spec, f"{url}/{spec.file}", None)
