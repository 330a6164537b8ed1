"""Where training reports to: a small Protocol, and the set that no sink can break a run from.

The sinks themselves (store, MLflow, Prometheus, TensorBoard, Weights & Biases) are wired in
`mario.jobs`; training knows only this.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import CheckpointKind, HealthState, RunStatus
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import TrainingEpisode

log = logging.getLogger(__name__)

#: How long a sink may wait for its server when a run ends; what it did not take by then stays in
#: the run's journal. A run that was told to end does so within 10 s, its checkpoint included.
_PATIENCE_SECONDS, _PATIENCE_SECONDS_INTERRUPTED = 20.0, 2.0
#: How often whoever waits looks whether the run was told to end meanwhile.
_LOOK_SECONDS = 0.1
#: What a sink may take beyond that to let go of threads, sockets and files.
_LETTING_GO_SECONDS = 2.0


@dataclass(frozen=True)
class RunStart:
    """A run begins or goes on.

    Attributes:
        config: the experiment.
        run_dir: the run's folder.
        start_steps: agent steps done before; more than 0 when the run is resumed.
        attempt: 1 for the first start, one more for each resume.
        hardware: device, threads, precision and number of parameters.
        state: what the collapse detector said last, in the attempt before.
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
        seconds: how long it took.
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
    """Something that a run survives and somebody should see.

    Attributes:
        kind: the run went back to its best checkpoint; a checkpoint could not be written, or was
            broken and skipped; a sink failed.
        reason: for people.
        sink: of `sink_failed`, the sink's name.
    """

    kind: Literal["rollback", "checkpoint_failed", "checkpoint_skipped", "sink_failed"]
    reason: str
    sink: str = ""


@dataclass(frozen=True)
class SelectionDone:
    """The policy was judged on selection seeds.

    Attributes:
        total_steps: agent steps of the run.
        score: its score, higher is better.
        best_score: the best score of the run so far, this one included.
        is_best: whether this is the best one.
        details: further numbers for people.
        seconds: how long it took.
    """

    total_steps: int
    score: float
    best_score: float
    is_best: bool
    details: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far the run is.

    Attributes:
        total_steps: agent steps done.
        target_steps: agent steps to do.
        steps_per_second: rate since this attempt began, rollout and update.
        seconds_left: at that rate; None before there is one.
        episodes: episodes finished in the whole run.
        mean_furthest_px: over the last 100 episodes of all environments; None before the first.
        mean_return: likewise, shaped.
        state: what the collapse detector says.
        scalars: training numbers of the last update, by stable-baselines3's names, and how long
            it took: `time/rollout_seconds` and `time/update_seconds`.
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
    """The run, or this attempt at it, is over.

    Attributes:
        status: how it ended; `failed` where an error ended it.
        reason: for people; empty when finished.
        total_steps: agent steps done.
        stop: set as soon as the run is told to end, also while its sinks wait.
    """

    status: RunStatus
    reason: str
    total_steps: int
    stop: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


def patience_seconds(end: RunEnd) -> float:
    """How long a sink may wait for its server at a run's end; all sinks wait at the same time."""
    return (
        _PATIENCE_SECONDS_INTERRUPTED if end.status == RunStatus.INTERRUPTED else _PATIENCE_SECONDS
    )


def wait_patiently(
    done: Callable[[float], bool],
    seconds: float,
    stop: threading.Event,
    *,
    stopped_seconds: float = _PATIENCE_SECONDS_INTERRUPTED,
) -> bool:
    """Wait for a server at a run's end, and not for long once the run is told to end.

    Args:
        done: waits so many seconds at most, and says whether all is done.
        seconds: the longest wait.
        stop: set when the run is told to end.
        stopped_seconds: the longest wait from then on.

    Returns:
        Whether all is done.
    """
    deadline = time.monotonic() + seconds
    while True:
        now = time.monotonic()
        if stop.is_set():
            deadline = min(deadline, now + stopped_seconds)
        if done(max(min(deadline - now, _LOOK_SECONDS), 0.0)):
            return True
        if time.monotonic() >= deadline:
            return False


class TrainingSink(Protocol):
    """Hears what happens in a run. No method may block: slow work belongs in the sink's thread.

    Attributes:
        name: what it is called in messages and metrics.
    """

    name: ClassVar[str]

    def on_start(self, start: RunStart) -> None:
        """The run begins or goes on."""
        ...

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Episodes finished, of every environment, in order.

        After a resume some may come again: (env_index, episode_index) is their identity.
        """
        ...

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """The detector saw an update."""
        ...

    def on_selection(self, selection: SelectionDone) -> None:
        """The policy was judged on selection seeds."""
        ...

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """A checkpoint is complete on the disk."""
        ...

    def on_incident(self, incident: Incident) -> None:
        """Something went wrong, and the run goes on."""
        ...

    def on_progress(self, progress: Progress) -> None:
        """After each update."""
        ...

    def flush(self) -> bool:
        """Make what was heard durable: after this, a checkpoint that builds on it is written.

        Returns:
            False where that cannot be done now: the checkpoint waits for the next time, since a
            run resumed from it would not tell these episodes again.
        """
        ...

    def on_end(self, end: RunEnd) -> None:
        """The run is over; finish within :func:`patience_seconds`, or be left behind.

        Where `end.stop` is set meanwhile, sooner: :func:`wait_patiently` knows when.
        """
        ...


class BaseSink:
    """A sink that ignores everything; override what matters."""

    name: ClassVar[str] = "other"

    def on_start(self, start: RunStart) -> None:
        """Ignore."""

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Ignore."""

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Ignore."""

    def on_selection(self, selection: SelectionDone) -> None:
        """Ignore."""

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Ignore."""

    def on_incident(self, incident: Incident) -> None:
        """Ignore."""

    def on_progress(self, progress: Progress) -> None:
        """Ignore."""

    def flush(self) -> bool:
        """Nothing is kept, so nothing is lost."""
        return True

    def on_end(self, end: RunEnd) -> None:
        """Ignore."""


class SinkSet:
    """All sinks of a run behind one; whatever a sink raises is logged and goes no further.

    Attributes:
        failures: number of failed calls of each sink, in the order given.
    """

    def __init__(self, sinks: Sequence[TrainingSink] = ()) -> None:
        """Keep the sinks; each is called in order."""
        self._sinks = tuple(sinks)
        # Of the class, asked once: not even a sink's name may raise later.
        self._names = [getattr(type(sink), "name", type(sink).__name__) for sink in self._sinks]
        self.failures = [0] * len(self._sinks)

    def on_start(self, start: RunStart) -> None:
        """Tell all sinks."""
        self._tell("on_start", start)

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Tell all sinks."""
        self._tell("on_episodes", episodes)

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Tell all sinks."""
        self._tell("on_health", sample, health)

    def on_selection(self, selection: SelectionDone) -> None:
        """Tell all sinks."""
        self._tell("on_selection", selection)

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Tell all sinks."""
        self._tell("on_checkpoint", checkpoint)

    def on_incident(self, incident: Incident) -> None:
        """Tell all sinks."""
        self._tell("on_incident", incident)

    def on_progress(self, progress: Progress) -> None:
        """Tell all sinks."""
        self._tell("on_progress", progress)

    def flush(self) -> bool:
        """Tell all sinks; False where one of them says so (one that fails has no say)."""
        return False not in self._tell("flush")

    def on_end(self, end: RunEnd) -> None:
        """Tell all sinks at once, and wait for all of them together, not for one that hangs."""
        calls = [
            # A daemon: neither may a sink that hangs keep the process from ending.
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

        wait_patiently(
            ended, patience_seconds(end) + _LETTING_GO_SECONDS, end.stop,
            stopped_seconds=_PATIENCE_SECONDS_INTERRUPTED + _LETTING_GO_SECONDS,
        )  # fmt: skip
        for index, call in enumerate(calls):
            if call.is_alive():
                self.failures[index] += 1
                log.warning("the sink %s did not end in time; the run ends without it",
                            self._names[index])  # fmt: skip

    def _tell(self, method: str, *what: Any) -> list[Any]:
        return [self._call(index, method, *what) for index in range(len(self._sinks))]

    def _call(self, index: int, method: str, *what: Any) -> Any:
        """Tell one sink; None where it fails."""
        sink = self._sinks[index]
        try:
            return getattr(sink, method)(*what)
        except Exception as error:  # a sink may raise anything; the run goes on
            self.failures[index] += 1
            # The first failure and then ever fewer: a dead sink must not flood the log.
            if self.failures[index].bit_count() == 1:
                log.warning(
                    "%s.%s failed (%d times so far), training goes on: %s: %s",
                    type(sink).__name__, method, self.failures[index],
                    type(error).__name__, error,
                )  # fmt: skip
            if method != "on_incident":  # or two sinks that fail would tell each other for ever
                self.on_incident(Incident("sink_failed", str(error), self._names[index]))
            return None
