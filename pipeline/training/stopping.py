"""Ending a training early, so that its cores are free at once."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from pipeline import storage
from pipeline.settings import Config, UserError

_ABORT_TIMEOUT_S = 120
"""Ray Train gives workers 5 s to end by themselves; a busy machine takes longer for everything."""


class StopTraining(SystemExit):
    """Ends a training before its last step. As a SystemExit it marks the training's MLflow run as KILLED."""


class OutOfTime(SystemExit):
    """Ends a command whose time is over, with exit code 0. As a SystemExit it marks MLflow runs as KILLED.

    Args:
        step: number of finished steps; None if the training did not start.
        total: number of steps of the training; None if it is not known.
    """

    def __init__(self, step: int | None = None, total: int | None = None) -> None:
        super().__init__(0)
        self.step, self.total = step, total

    def sentence(self, config: Config) -> str:
        """Return what happened, and what to do, as a sentence."""
        where = "before its first step" if self.step is None else f"at step {self.step} of {self.total}"
        return describe_stop(f"training stopped {where}", config)


def describe_stop(what: str, config: Config) -> str:
    """Return the sentence for work that `cluster.stop_after` stopped; `what` says what was stopped where."""
    return f"{what} after {config.cluster.stop_after}, as cluster.stop_after says: rerun the same command to resume"


def check_time(stop_at: float | None) -> None:
    """Check that a training may still start.

    Args:
        stop_at: Unix time after which training stops; None for no limit.

    Raises:
        OutOfTime: if it has passed.
    """
    if stop_at is not None and time.time() >= stop_at:
        raise OutOfTime


PERMANENT = (UserError, storage.DamagedFileError)
"""Errors of a worker that no restart mends."""


class _FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Restarts lost workers as configured, but not after an error that no restart mends."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(failure, PERMANENT) for failure in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class StoppableTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that another thread can stop.

    The placement group that holds a training's cores belongs to the Ray job, so it outlives the processes of the
    training. Ray Train removes it when the training ends by itself, or on an interrupt in the main thread. If the
    processes are killed, only Ray Train's PlacementGroupCleaner can remove it. The cleaner needs Ray's dashboard, and
    if several Rays run on the machine, it may ask the wrong one.

    Args:
        local: true for a Ray of this command alone, which has no dashboard: the cleaner is left out.
        arguments: those of a TorchTrainer without datasets.
    """

    _controller: Any = None
    _stopped = False

    def __init__(self, *arguments: Any, local: bool, **named: Any) -> None:
        self._local = local
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
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self._local else (DatasetsCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        """Do as the method of Ray 2.60 that this replaces, but keep the controller, and use `_FailurePolicy`."""
        arguments["failure_policy"] = _FailurePolicy(self.run_config.failure_config)
        node = ray.get_runtime_context().get_node_id()
        actor_class = ray.remote(
            num_cpus=0,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: node},
            runtime_env={"env_vars": get_env_vars_to_propagate()},
        )(TrainController)
        self._controller = actor_class.remote(**arguments)
        if self._stopped:
            raise StopTraining("the training was stopped before it started")
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())
