"""Make a patch set with the pipeline's own functions, in a pool of processes instead of Ray."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from pipeline import storage
from pipeline.data import patchset, sources
from pipeline.data.inspected import InspectedImages
from pipeline.data.inventory import InspectionTask, inspect
from pipeline.data.manifest import Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.shard_plan import ShardPlan, ShardSpec
from pipeline.data.shards import make_shard
from pipeline.data.split import split_images
from pipeline.settings import Config
from pipeline.storage import fingerprint


def make_patch_set(config: Config) -> PatchSet:
    """Make the patch set of a configuration in its home, or open it if it was made there before, as `preparation` does.

    Raises:
        UserError: if a source holds no usable images.
        OSError: if a shard cannot be stored.
    """
    # Many processes may ask for the same patch set, and listing the images takes seconds.
    known = (
        f"{config.outputs}/patchsets/{fingerprint(config.model_dump(include={'source', 'scale', 'preprocess'}))}.txt"
    )
    if content := storage.read(known):
        return patchset.load(content.decode())
    limit = sources.byte_limit(config.preprocess.max_pixels)
    tasks = [InspectionTask(image, limit) for image in sources.list_images(config.source, config.downloads)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.patches"])
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        images = InspectedImages.of(pool.map(inspect, tasks, chunksize=8))
        train, holdout, rejected = split_images(config, images)
        plan = ShardPlan(config, images, train, holdout)
        name = plan.name_patch_set(rejected)
        url = f"{config.outputs}/patchsets/{name}"
        shards = enumerate(pool.map(_make, plan, [url] * len(plan)))
        patch_set = patchset.assemble(url, name, config.scale, config.preprocess, shards, plan.trained, rejected)
    patch_set = patch_set.save()
    storage.write(known, url.encode())
    return patch_set


def _make(spec: ShardSpec, url: str) -> Shard:
    return make_shard(spec, f"{url}/{spec.file}", None)
