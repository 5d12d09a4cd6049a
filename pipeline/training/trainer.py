"""Ray Train's trainer, changed where it would end a training too late or too soon."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.metrics import ControllerMetricsCallback, WorkerMetricsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.train.v2.api.result import Result

from pipeline.training.session import NodeLeavesError
from pipeline.training.stopping import PERMANENT, StopTraining

_ABORT_TIMEOUT_S = 120
"""Ray Train gives workers 5 s to end by themselves; a busy machine takes longer for everything."""
_START_TIMEOUT_S = constants.DEFAULT_WORKER_GROUP_START_TIMEOUT_S

_DEFAULTS_ALONE = {
    constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0",  # saves a process
    constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR: "1",  # the end of the training is seen sooner
}
_DEFAULTS_ON_A_CLUSTER = {constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR: "1"}
"""Environment variables of Ray Train's processes, unless the user has set them."""


@dataclass(frozen=True)
class Patience:
    """How long a training waits for the nodes that its workers need."""

    wait_s: float
    """Seconds to wait for nodes that are added by hand."""
    promised: bool
    """True if an autoscaler starts nodes: the training then waits for them as long as it takes."""


class FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Restarts lost workers as configured, waits for nodes with patience, and ends after what no restart mends.

    Ray Train counts the failures to start workers over the whole training, each after a time-out of a minute. So a
    training that loses node after node, and waits for each replacement, would end at the third time-out.

    Args:
        failure_config: the limits of failures.
        patience: how long to wait for nodes; None for a local Ray, to which none comes.
    """

    def __init__(self, failure_config: ray.train.FailureConfig, patience: Patience | None) -> None:
        super().__init__(failure_config)
        self._patience = patience
        self._waiting_since = self._failed_at = -math.inf

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether the workers are started again after an error."""
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        if any(isinstance(failure, PERMANENT) for failure in failures):
            return FailureDecision.RAISE
        if any(isinstance(failure, NodeLeavesError) for failure in failures):
            return FailureDecision.RETRY  # it is no failure, so it is not counted
        cause = training_failed_error.controller_failure if isinstance(training_failed_error, ControllerError) else None
        if self._patience and isinstance(cause, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError):
            promised = self._patience.promised and isinstance(cause, WorkerGroupStartupTimeoutError)
            if promised or self._seconds_waited() < self._patience.wait_s:
                return FailureDecision.RETRY
        return super().make_decision(training_failed_error)

    def _seconds_waited(self) -> float:
        """Return for how long the workers have not been started; failures far apart had a start between them."""
        timeout = float(os.environ.get(constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, _START_TIMEOUT_S))
        now = monotonic()
        if now - self._failed_at > 2 * timeout:
            self._waiting_since = now - timeout
        self._failed_at = now
        return now - self._waiting_since


class _ScalingPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Counts no worker on a node that is about to be taken away: Ray would wait in vain for such a worker to start."""

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        leaving = ray._private.state.state.get_draining_nodes()
        staying = {node: resources for node, resources in reserved_resources.items() if node not in leaving}
        return int(super()._count_possible_workers(staying))


class _Controller(TrainController):  # type: ignore[misc]
    """Keeps no snapshot of the reported checkpoints, because the workers find their checkpoints by themselves.

    Ray Train would end a training when the snapshot cannot be written, when another version of Ray wrote it, or when
    one of its checkpoints was removed.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._checkpoint_manager._write_state_to_storage = lambda: None


class StoppableTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that another thread can stop.

    The placement group that holds a training's cores belongs to the Ray job, so it outlives the processes of the
    training. Ray Train removes it when the training ends by itself, or on an interrupt in the main thread. If the
    processes are killed, only Ray Train's PlacementGroupCleaner can remove it. The cleaner needs Ray's dashboard, and
    if several Rays run on the machine, it may ask the wrong one.

    On a cluster, Ray Train also watches for nodes that are about to be taken away, and reports metrics.

    Args:
        patience: how long the training waits for nodes; None for a Ray of this command alone. It has no dashboard, so
            the cleaner is left out.
        arguments: those of a TorchTrainer without datasets.
    """

    _controller: Any = None
    _stopped = False

    def __init__(self, *arguments: Any, patience: Patience | None, **named: Any) -> None:
        self._patience = patience
        super().__init__(*arguments, **named)

    def stop(self) -> None:
        """End the workers and free their cores; `fit`, in another thread, then raises a RayActorError.

        Raises:
            GetTimeoutError: if Ray Train does not react.
        """
        self._stopped = True
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayActorError):  # the controller ends with the training
                ray.get(self._controller.abort.remote(), timeout=_ABORT_TIMEOUT_S)

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out what starts a process for each training without use: several seconds of a core."""
        unused: tuple[type, ...] = (DatasetsCallback,)
        if self._patience is None:
            unused = (*unused, PlacementGroupCleanerCallback, ControllerMetricsCallback, WorkerMetricsCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        """Do as the method of Ray 2.60 that this replaces, but keep the controller, and use the policies above."""
        arguments["failure_policy"] = FailurePolicy(self.run_config.failure_config, self._patience)
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = _ScalingPolicy(self.scaling_config)
        node = ray.get_runtime_context().get_node_id()
        defaults = _DEFAULTS_ALONE if self._patience is None else _DEFAULTS_ON_A_CLUSTER
        actor_class = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: node},
            runtime_env={"env_vars": defaults | constants.get_env_vars_to_propagate()},
        )(_Controller)
        self._controller = actor_class.remote(**arguments)
        if self._stopped:
            raise StopTraining("the training was stopped before it started")
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())
