"""Start the replicas on Ray, and the HTTP server in front of them."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import uuid

import ray
import uvicorn
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from pipeline import cluster, terminal
from pipeline.serving.jobs import Format, ModelFacts
from pipeline.serving.metrics import Metrics
from pipeline.serving.options import ServeOptions
from pipeline.serving.replicas import ONGOING, Replica
from pipeline.serving.web import About, create_app
from pipeline.serving.workers import Workers
from pipeline.settings import Cluster, Config, UserError
from pipeline.settings.places import ray_address

_DEPLOYMENT = "Replica"
_MOST_REPLICAS = 8
"""Most replicas without GPUs, unless more are asked for, because each one holds PyTorch in memory."""
_HEALTH_CHECK_S = 2.0
"""Seconds between two looks at a replica; a lost one is replaced after at most so long."""
_SHARED_MB = 512
"""Shared memory of a local Ray, through which images and results travel."""
_SHUTDOWN_S = 10
"""Seconds that requests have to end after Ctrl-C."""


def serve_model(options: ServeOptions, listening: socket.socket) -> None:
    """Serve a model until Ctrl-C.

    Ray Serve runs, feeds and replaces the replicas. The HTTP server runs in this process instead of Ray Serve's proxy,
    because it refuses a request before it reads the image, and repeats a request whose replica was lost, where the
    proxy answers 500.

    Args:
        options: the server.
        listening: its address, from `listen`.

    Raises:
        UserError: if there is no such device, or the model cannot be loaded.
    """
    config = Config(cluster=Cluster(object_store_mb=_SHARED_MB))
    cluster.connect(config)
    name = f"upscale-{uuid.uuid4().hex[:8]}"
    try:
        with terminal.stage("", f"{options.model} is loading"):
            deployment = _Deployment(options, name)
        asyncio.run(_answer(options, deployment, listening))
    finally:
        logging.disable()  # Ray Serve tells of everything that ends
        if ray_address(config):
            serve.delete(name)
        ray.shutdown()


class _Deployment:
    """The replicas of a server, which run when this has been created."""

    def __init__(self, options: ServeOptions, name: str) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        have = ray.cluster_resources()
        gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
        if options.device == "cuda" and not gpus:
            raise UserError("the device cuda cannot be used: Ray finds no GPU; expected the device cpu")
        device = options.device or ("cuda" if gpus else "cpu")
        self.replicas = options.replicas or (gpus if device == "cuda" else min(cores, _MOST_REPLICAS))
        resources = {"num_cpus": _share(cores, self.replicas)}
        if device == "cuda":
            resources["num_gpus"] = _share(gpus, self.replicas)
        self.ongoing = ONGOING * self.replicas
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        deployment = serve.deployment(
            name=_DEPLOYMENT,
            num_replicas=self.replicas,
            ray_actor_options=resources,
            max_ongoing_requests=ONGOING,
            max_queued_requests=self.ongoing,
            health_check_period_s=_HEALTH_CHECK_S,
            graceful_shutdown_timeout_s=_SHUTDOWN_S,
            logging_config=quiet,
        )(Replica)
        threads = max(cores // self.replicas, 1)
        most_pixels = int(options.limits.megapixels * 1e6)
        bound = deployment.bind(options.model, device, options.precision, threads, most_pixels)
        self._name = name
        self.handle: DeploymentHandle = serve.run(bound, name=name, route_prefix=None)
        self.facts: ModelFacts = self.handle.facts.remote().result()
        if self.facts.fault:
            raise UserError(self.facts.fault)

    def running(self) -> int:
        """Return the number of replicas that run."""
        state = serve.status().applications[self._name].deployments[_DEPLOYMENT].replica_states
        return int(state.get("RUNNING", 0))


def _share(have: int, processes: int) -> float:
    """Return the part of a core or GPU that each process reserves, rounded down as Ray counts, so that all fit."""
    return min(1.0, math.floor(have / processes * 10_000) / 10_000)


async def _answer(options: ServeOptions, deployment: _Deployment, listening: socket.socket) -> None:
    """Answer requests until the process is interrupted."""
    limits, metrics = options.limits, Metrics()
    about = About(
        model=options.model,
        scale=deployment.facts.scale,
        device=deployment.facts.device,
        max_megabytes=limits.megabytes,
        max_megapixels=limits.megapixels,
        formats=list(Format),
    )
    workers = Workers(deployment.handle, deployment.ongoing, limits.queue, metrics)
    hosts = [options.host, "127.0.0.1", "localhost", "[::1]"] if options.is_local else []
    app = create_app(about, limits, workers, metrics, deployment.running, hosts)
    config = uvicorn.Config(app, log_level="error", access_log=False, ws="none", timeout_graceful_shutdown=_SHUTDOWN_S)
    port = listening.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(
        f"{options.model} is served at http://{host}:{port} by {deployment.replicas} "
        f"{'replica' if deployment.replicas == 1 else 'replicas'} on {about.device}; Ctrl-C ends it",
        flush=True,
    )
    await uvicorn.Server(config).serve([listening])
