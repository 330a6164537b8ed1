"""The contract of a sink, which receives the events of a run, and the set of a run's sinks.

The sinks themselves (store, MLflow, Prometheus, TensorBoard, Weights & Biases) are in
`mario/tracking`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import CheckpointKind, HealthState, RunStatus
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import TrainingEpisode

log = logging.getLogger(__name__)

#: How long a sink may wait for its server when a run ends; what the server does not take by then
#: stays in the run's journal. A stopped run ends within 10 s, its checkpoint included.
_END_SECONDS, _END_SECONDS_STOPPED = 20.0, 2.0
#: How often a waiting sink checks whether the run is stopped.
_POLL_SECONDS = 0.1
#: What a sink may take beyond that to close threads, sockets and files.
_CLEANUP_SECONDS = 2.0


@dataclass(frozen=True)
class RunStart:
    """A run begins or is resumed.

    Attributes:
        config: the experiment.
        run_dir: the run's folder.
        start_steps: agent steps of earlier attempts; more than 0 when the run is resumed.
        attempt: 1 for the first start, one more for each resume.
        hardware: device, threads, precision and number of parameters.
        state: the collapse detector's last state in the previous attempt.
    """

    config: ExperimentConfig
    run_dir: Path
    start_steps: int
    attempt: int
    hardware: dict[str, Any] = field(default_factory=dict)
    state: HealthState = HealthState.WARMING


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint is complete on the disk.

    Attributes:
        kind: `last` (for resuming) or `best` (by selection).
        path: its folder.
        total_steps: agent steps of the run.
        sha256: its digest.
        size_bytes: its size.
        score: for `best`, the selection score, higher is better.
        seconds: time that writing took.
    """

    kind: CheckpointKind
    path: Path
    total_steps: int
    sha256: str
    size_bytes: int
    score: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Incident:
    """A problem that the run survives.

    Attributes:
        kind: the run returned to its best checkpoint; a checkpoint was not written; a broken one
            was skipped; a sink failed.
        reason: an explanation.
        sink: of `sink_failed`, the sink's name.
    """

    kind: Literal["rollback", "checkpoint_failed", "checkpoint_skipped", "sink_failed"]
    reason: str
    sink: str = ""


@dataclass(frozen=True)
class SelectionDone:
    """The policy was scored on selection seeds.

    Attributes:
        total_steps: agent steps of the run.
        score: its score, higher is better.
        best_score: the best score of the run so far, this one included.
        is_best: whether this is the best one.
        details: further numbers for a person.
        seconds: time that scoring took.
    """

    total_steps: int
    score: float
    best_score: float
    is_best: bool
    details: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        total_steps: agent steps done.
        target_steps: agent steps to do.
        steps_per_second: rate since this attempt began, rollout and update.
        seconds_left: at that rate; None before there is one.
        episodes: episodes finished in the whole run.
        mean_furthest_px: over the last 100 episodes of all environments; None before the first.
        mean_return: likewise, shaped.
        state: the collapse detector's state.
        scalars: numbers of the last update by stable-baselines3's names, and its duration:
            `time/rollout_seconds` and `time/update_seconds`.
    """

    total_steps: int
    target_steps: int
    steps_per_second: float
    seconds_left: float | None
    episodes: int
    mean_furthest_px: float | None
    mean_return: float | None
    state: HealthState
    scalars: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEnd:
    """An attempt at a run ends.

    Attributes:
        status: `failed` where an error ended it.
        reason: an explanation; empty when finished.
        total_steps: agent steps done.
        stop: set when the run is stopped, also while its sinks wait.
    """

    status: RunStatus
    reason: str
    total_steps: int
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


def end_timeout_seconds(end: RunEnd) -> float:
    """Seconds that a sink may wait for its server at a run's end; all sinks wait in parallel."""
    return _END_SECONDS_STOPPED if end.status == RunStatus.INTERRUPTED else _END_SECONDS


def wait_until_done(
    done: Callable[[float], bool],
    seconds: float,
    stop: threading.Event,
    *,
    stopped_seconds: float = _END_SECONDS_STOPPED,
) -> bool:
    """Wait for a server at a run's end, and more briefly once the run is stopped.

    Args:
        done: waits for at most so many seconds; returns whether everything is done.
        seconds: the longest wait.
        stop: set when the run is stopped.
        stopped_seconds: the longest wait from then on.

    Returns:
        Whether everything is done.
    """
    deadline = time.monotonic() + seconds
    while True:
        now = time.monotonic()
        if stop.is_set():
            deadline = min(deadline, now + stopped_seconds)
        if done(max(min(deadline - now, _POLL_SECONDS), 0.0)):
            return True
        if time.monotonic() >= deadline:
            return False


class TrainingSink:
    """Receives the events of a run; a subclass overrides the methods of those that it needs.

    No method may block: slow work belongs in the sink's own thread.

    Attributes:
        name: the sink's name in messages and metrics.
    """

    name: ClassVar[str] = "other"

    def on_start(self, start: RunStart) -> None:
        """The run begins or is resumed."""

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Episodes of all environments finished; in order.

        After a resume some may be sent again: (env_index, episode_index) identifies an episode.
        """

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """The detector judged an update."""

    def on_selection(self, selection: SelectionDone) -> None:
        """The policy was scored on selection seeds."""

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """A checkpoint is complete on the disk."""

    def on_incident(self, incident: Incident) -> None:
        """A problem occurred, and the run continues."""

    def on_progress(self, progress: Progress) -> None:
        """An update is done."""

    def flush(self) -> bool:
        """Make every event so far durable: the checkpoint that follows builds on them.

        Returns:
            False where that is impossible now. Then the checkpoint is not written, as a run that
            is resumed from it would not send these episodes again.
        """
        return True

    def on_end(self, end: RunEnd) -> None:
        """The attempt ends; a sink that takes longer than :func:`end_timeout_seconds` is abandoned.

        When `end.stop` is set meanwhile, less time is left; :func:`wait_until_done` observes it.
        """


class SinkSet:
    """Calls all sinks of a run; what a sink raises is logged and does not reach the run.

    Attributes:
        failures: number of failed calls of each sink, in the order given.
    """

    def __init__(self, sinks: Sequence[TrainingSink] = ()) -> None:
        """Call these sinks, in this order."""
        self._sinks = tuple(sinks)
        # Read once and from the class: not even a sink's name may raise later.
        self._names = [getattr(type(sink), "name", type(sink).__name__) for sink in self._sinks]
        self.failures = [0] * len(self._sinks)

    def on_start(self, start: RunStart) -> None:
        """Call all sinks."""
        self._call_all("on_start", start)

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Call all sinks."""
        self._call_all("on_episodes", episodes)

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Call all sinks."""
        self._call_all("on_health", sample, health)

    def on_selection(self, selection: SelectionDone) -> None:
        """Call all sinks."""
        self._call_all("on_selection", selection)

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Call all sinks."""
        self._call_all("on_checkpoint", checkpoint)

    def on_incident(self, incident: Incident) -> None:
        """Call all sinks."""
        self._call_all("on_incident", incident)

    def on_progress(self, progress: Progress) -> None:
        """Call all sinks."""
        self._call_all("on_progress", progress)

    def flush(self) -> bool:
        """Call all sinks; False where one returns False (one that raises does not count)."""
        return False not in self._call_all("flush")

    def on_end(self, end: RunEnd) -> None:
        """Call all sinks in parallel, and wait for them together, but not for one that hangs."""
        calls = [
            # Daemons: a sink that hangs must not keep the process from exiting.
            threading.Thread(target=self._call, args=(index, "on_end", end), daemon=True)
            for index in range(len(self._sinks))
        ]
        for call in calls:
            call.start()

        def ended(seconds: float) -> bool:
            deadline = time.monotonic() + seconds
            for call in calls:
                call.join(max(deadline - time.monotonic(), 0.0))
            return not any(call.is_alive() for call in calls)

        wait_until_done(
            ended, end_timeout_seconds(end) + _CLEANUP_SECONDS, end.stop,
            stopped_seconds=_END_SECONDS_STOPPED + _CLEANUP_SECONDS,
        )  # fmt: skip
        for index, call in enumerate(calls):
            if call.is_alive():
                self.failures[index] += 1
                log.warning("the sink %s did not end in time; the run ends without it",
                            self._names[index])  # fmt: skip

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        return [self._call(index, method, *arguments) for index in range(len(self._sinks))]

    def _call(self, index: int, method: str, *arguments: Any) -> Any:
        """Call one sink; None where it raises."""
        sink = self._sinks[index]
        try:
            return getattr(sink, method)(*arguments)
        except Exception as error:  # a sink may raise anything; the run continues
            self.failures[index] += 1
            # The 1st, 2nd, 4th, 8th … failure: a broken sink must not flood the log.
            if self.failures[index].bit_count() == 1:
                log.warning(
                    "%s.%s failed (%d times so far), training continues: %s: %s",
                    type(sink).__name__, method, self.failures[index],
                    type(error).__name__, error,
                )  # fmt: skip
            if method != "on_incident":  # else two sinks that fail would call each other forever
                self.on_incident(Incident("sink_failed", str(error), self._names[index]))
            return None
