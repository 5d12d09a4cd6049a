"""A worker's part of a training: the events that end it early, and its reports to Ray Train.

Ray Train watches the nodes, and tells every worker when one of them is about to be taken away, such as a spot machine.
The workers then write a checkpoint and end, and Ray Train starts them again on the nodes that stay. The workers tell
Ray Train of their checkpoints, which its `Result` then names. Resuming depends on nothing of this.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline import terminal
from pipeline.training.checkpoints import TrainingState
from pipeline.training.job import TrainJob
from pipeline.training.ranks import Ranks

_ASK_EVERY_S = 2.0
"""Seconds between two questions: a notice comes at least half a minute ahead, and a question takes a millisecond."""

_REPORT_EVERY_S = 10.0
"""Seconds between two reports: Ray Train takes one from each worker every two seconds, and a worker waits for that."""


class NodeLeavesError(Exception):
    """Ends the workers after their checkpoint, because one of their nodes is about to be taken away.

    Args:
        step: number of finished steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"a node is about to be taken away: the training resumes from step {step} without it")
        self.step = step

    def __reduce__(self) -> tuple[type[NodeLeavesError], tuple[int]]:
        return type(self), (self.step,)


class Session:
    """A worker's part of a training, from the start of the workers to their end.

    All ranks call each method at the same steps.

    Args:
        ranks: this process among the ranks.
        stop_at: Unix time after which the training writes a checkpoint and ends; None for no limit.
        is_told: tells whether this rank knows that a node is about to be taken away; None if nobody watches the nodes.
        report: tells Ray Train of a whole checkpoint; None outside of Ray Train.
        observe_checkpoint: is told the seconds that each checkpoint took to write; None if nobody reads metrics.
    """

    def __init__(
        self,
        ranks: Ranks,
        stop_at: float | None = None,
        is_told: Callable[[], bool] | None = None,
        report: Callable[[TrainingState], None] | None = None,
        observe_checkpoint: Callable[[float], None] | None = None,
    ) -> None:
        self._ranks, self._stop_at, self._is_told, self._report = ranks, stop_at, is_told, report
        self.observe_checkpoint = observe_checkpoint
        self._must_leave = False
        self._asked_at = time.monotonic()
        self._asked_after: int | None = None
        self._ask_after = 0
        self._pending: TrainingState | None = None
        self._reported_at = time.monotonic()

    def is_time_up(self, logged: bool) -> bool:
        """Tell whether the training has to end early; several ranks ask each other only at a record.

        Args:
            logged: whether the last step is followed by a record.
        """
        if self._stop_at is None or (self._ranks.world_size > 1 and not logged):
            return False
        return self._ranks.gather(time.time() >= self._stop_at)[0]

    def must_leave(self, done: int) -> bool:
        """Tell whether a node of the training is about to be taken away.

        The ranks ask each other about every two seconds. Rank 0 measures how many steps that is, because ranks that
        asked after different steps would wait for each other.

        Args:
            done: number of finished steps.
        """
        if self._is_told is None or self._must_leave or done < self._ask_after:
            return self._must_leave
        now = time.monotonic()
        answers = self._ranks.gather_numbers([float(self._is_told()), now - self._asked_at])
        self._must_leave = any(told for told, _ in answers)
        # A training that resumes has made one step since this process started, however many are finished.
        steps = 1 if self._asked_after is None else done - self._asked_after
        seconds_a_step = answers[0][1] / max(steps, 1)
        self._asked_at, self._asked_after = now, done
        self._ask_after = done + max(int(_ASK_EVERY_S / max(seconds_a_step, 1e-6)), 1)
        return self._must_leave

    def add_checkpoint(self, state: TrainingState) -> None:
        """Report the previous checkpoint, unless a report was made just now, and remember one that is being written."""
        due = time.monotonic() - self._reported_at >= _REPORT_EVERY_S
        if self._report and self._pending and self._ranks.gather(due)[0]:
            self._tell(self._report, self._pending)
        self._pending = state

    def end(self) -> None:
        """Report the last checkpoint, which is whole by now."""
        if self._report and self._pending:
            self._tell(self._report, self._pending)

    def _tell(self, report: Callable[[TrainingState], None], state: TrainingState) -> None:
        import ray.exceptions

        self._pending, self._reported_at = None, time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):  # a node was lost, and Ray Train restarts the workers
            report(state)


def ray_session(ranks: Ranks, job: TrainJob) -> Session:
    """Return the session of a worker that Ray Train has started, and let the worker print as the driver does."""
    from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR

    from pipeline.cluster import metrics  # here, because it imports Ray

    terminal.print_json(job.log and replace(job.log, stage="train", worker=str(ranks.rank)))
    watched = os.environ.get(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0").lower() in ("1", "true")
    observe = partial(metrics.observe_checkpoint, job.folder.rpartition("/")[2])
    return Session(ranks, job.stop_at, _is_told if watched else None, _report, observe)


def _is_told() -> bool:
    """Tell whether Ray Train has told this worker that a node leaves.

    `ray.train.get_preemption_info` would ask rank 0 alone, through another process, and wait for all ranks.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _report(state: TrainingState) -> None:
    """Tell Ray Train of a checkpoint that stays where it is."""
    import ray.train

    place = ray.train.get_context().get_storage()
    best = {"best_step": state.best.step, state.best.metric: state.best.value} if state.best else {}
    ray.train.report(
        {"step": state.step, "skipped": state.skips.total, **best},
        checkpoint=ray.train.Checkpoint(
            f"{place.experiment_fs_path}/checkpoints/{state.step:09d}", place.storage_filesystem
        ),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )
