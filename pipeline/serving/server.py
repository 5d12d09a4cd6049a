"""Start the replicas on Ray, and the HTTP server in front of them."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
import uuid

import ray
import uvicorn
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, LoggingConfig

from pipeline import cluster, terminal
from pipeline.networks.sources import ModelKind
from pipeline.serving.jobs import Format, ModelFacts
from pipeline.serving.metrics import Metrics
from pipeline.serving.models import ServedModel, checksum
from pipeline.serving.options import ServeOptions
from pipeline.serving.replicas import ONGOING, Replica
from pipeline.serving.web import About, create_app
from pipeline.serving.workers import Workers
from pipeline.settings import Cluster, Config, UserError
from pipeline.settings.places import ray_address
from pipeline.storage import one_line, redact

_DEPLOYMENT = "Replica"
_MOST_REPLICAS = 8
"""Most replicas without GPUs, unless more are asked for, because each one holds PyTorch in memory."""
_HEALTH_CHECK_S = 2.0
"""Seconds between two looks at a replica; a lost one is replaced after at most so long."""
_SHARED_MB = 512
"""Shared memory of a local Ray, through which images and results travel."""
_LOOK_S = 0.2
"""Seconds between two looks at replicas that start."""
_START_S = 300
"""Seconds that the replicas have to start, on a cluster also to get their resources."""
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
        UserError: if there is no such device, the model cannot be loaded, or the replicas do not start.
    """
    model = ServedModel(options.model, checksum(options.model))
    config = Config(cluster=Cluster(object_store_mb=_SHARED_MB))
    cluster.connect(config)
    name = f"upscale-{uuid.uuid4().hex[:8]}"
    try:
        with terminal.stage("", f"{model.name} is loading"):
            deployment = _Deployment(options, model, name)
        asyncio.run(_answer(options, model, deployment, listening))
    finally:
        logging.disable()  # Ray Serve tells of everything that ends
        if ray_address(config):
            serve.delete(name)
        ray.shutdown()


class _Deployment:
    """The replicas of a server, which run when this has been created."""

    def __init__(self, options: ServeOptions, model: ServedModel, name: str) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        have = ray.cluster_resources()
        gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
        if options.device == "cuda" and not gpus:
            raise UserError("the device cuda cannot be used: Ray finds no GPU; expected the device cpu")
        device = options.device or ("cuda" if gpus and _can_use_gpus(options.model.kind) else "cpu")
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
        bound = deployment.bind(model, device, options.precision, threads, most_pixels)
        self._name = name
        self.handle: DeploymentHandle
        # `serve.run` would wait for resources without a limit.
        (self.handle,) = serve.run_many(
            [serve.RunTarget(bound, name=name, route_prefix=None)], wait_for_applications_running=False
        )
        self._wait(resources)
        self.facts: ModelFacts = self.handle.facts.remote().result()
        if self.facts.fault:
            raise UserError(self.facts.fault)

    def _wait(self, resources: dict[str, float]) -> None:
        """Wait until all replicas run."""
        ends = time.monotonic() + _START_S
        while (application := serve.status().applications[self._name]).status != ApplicationStatus.RUNNING:
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                reason = redact(one_line(application.message, 300))
                raise UserError(f"the replicas cannot start ({reason}): expected processes that Ray Serve can run")
            if time.monotonic() > ends:
                needs = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
                raise UserError(
                    f"the replicas did not start within {_START_S} seconds: expected {self.replicas} times {needs} on "
                    "the Ray cluster that nothing else uses (--replicas)"
                )
            time.sleep(_LOOK_S)

    def running(self) -> int:
        """Return the number of replicas that run."""
        state = serve.status().applications[self._name].deployments[_DEPLOYMENT].replica_states
        return int(state.get("RUNNING", 0))


def _share(have: int, processes: int) -> float:
    """Return the part of a core or GPU that each process reserves, rounded down as Ray counts, so that all fit.

    No process can reserve parts of several cores or GPUs, so 3 processes on 2 GPUs reserve a half each.
    """
    return math.floor(10_000 / math.ceil(processes / max(have, 1))) / 10_000


def _can_use_gpus(kind: ModelKind) -> bool:
    """Tell whether the installed packages can compute a model on a GPU."""
    if kind is not ModelKind.ONNX:
        return True
    try:
        import onnxruntime  # here, because it belongs to an extra
    except ImportError:
        return False  # the replica says what is missing
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


async def _answer(options: ServeOptions, model: ServedModel, deployment: _Deployment, listening: socket.socket) -> None:
    """Answer requests until the process is interrupted."""
    limits, metrics = options.limits, Metrics()
    about = About(
        model=model.name,
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
        f"{model.name} is served at http://{host}:{port} by {deployment.replicas} "
        f"{'replica' if deployment.replicas == 1 else 'replicas'} on {about.device}; Ctrl-C ends it",
        flush=True,
    )
    await uvicorn.Server(config).serve([listening])
