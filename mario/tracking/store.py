"""The store's sink, which is always open: episodes, health, checkpoints and status of a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from mario.config.run_states import HealthState
from mario.game.smb.memory import STATE_FIELDS
from mario.store.journal_writer import StoreWriter
from mario.store.process_identity import HANG_SECONDS, HEARTBEAT_SECONDS
from mario.store.records import (
    AttemptEnd,
    AttemptStart,
    CheckpointEntry,
    EpisodeEntry,
    HealthChangeEntry,
    HealthSampleEntry,
    Heartbeat,
    SelectionEntry,
    TrainingEntry,
)
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import TrainingEpisode
from mario.training.sinks import (
    CheckpointWritten,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    TrainingSink,
    end_timeout_seconds,
    wait_until_done,
)

log = logging.getLogger(__name__)


class StoreSink(TrainingSink):
    """Writes episodes, health, checkpoints and the end of a run through the journalled writer."""

    name: ClassVar[str] = "store"

    def __init__(
        self,
        writer: StoreWriter,
        run_id: str,
        attempt: int,
        runs_dir: Path,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """Write the rows of one attempt.

        Args:
            writer: the journaled writer of the run; closed at the run's end.
            run_id: the run.
            attempt: number of the attempt in the store.
            runs_dir: checkpoint paths are stored relative to it.
            heartbeat_seconds: between two heartbeats.
            hang_seconds: without progress, after which there is no heartbeat.
        """
        self._writer = writer
        self._run_id = run_id
        self._attempt = attempt
        self._runs_dir = runs_dir
        self._heartbeat_seconds, self._hang_seconds = heartbeat_seconds, hang_seconds
        self._state: HealthState = HealthState.WARMING
        self._steps, self._heard_at = 0, time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def _put(self, rows: Sequence[TrainingEntry]) -> None:
        with self._lock:  # heartbeats come from another thread
            self._writer.put(rows)

    def _beat(self) -> None:
        """Give heartbeats, however long an update or a selection takes."""
        while not self._ended.wait(self._heartbeat_seconds):
            if time.monotonic() - self._heard_at < self._hang_seconds:
                self.beat()

    def beat(self) -> None:
        """Give a heartbeat."""
        row = Heartbeat(run_id=self._run_id, attempt=self._attempt, total_steps=self._steps)
        with self._lock:
            if not self._ended.is_set():
                self._writer.put([row])

    def on_start(self, start: RunStart) -> None:
        """Store the number of steps that the attempt starts from."""
        self._state = start.state
        self._put(
            [
                AttemptStart(
                    run_id=self._run_id, attempt=self._attempt, start_steps=start.start_steps
                )
            ]
        )
        self._steps, self._heard_at = start.start_steps, time.monotonic()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Store the episodes."""
        self._put([self._episode(record) for record in episodes])

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Store the sample, and the change of health if there is one."""
        state = health.state
        common = {
            "run_id": self._run_id,
            "update_index": sample.update,
            "attempt": self._attempt,
            "total_steps": sample.total_steps,
        }
        rows: list[TrainingEntry] = [
            HealthSampleEntry(**common, state=state, signals=sample.to_dict())  # type: ignore[arg-type]
        ]
        if health.changed:
            rows.append(
                HealthChangeEntry(
                    **common,  # type: ignore[arg-type]
                    from_state=self._state,
                    to_state=state,
                    reasons=health.reasons,
                )
            )
        self._state = state
        self._put(rows)

    def on_selection(self, selection: SelectionDone) -> None:
        """Store the score on selection seeds."""
        self._put(
            [
                SelectionEntry(
                    run_id=self._run_id,
                    total_steps=selection.total_steps,
                    attempt=self._attempt,
                    score=selection.score,
                    best_score=selection.best_score,
                    is_best=selection.is_best,
                    details=selection.details,
                    seconds=selection.seconds,
                )
            ]
        )

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Store where the checkpoint is."""
        path = checkpoint.path.resolve()
        runs_dir = self._runs_dir.resolve()
        shown = path.relative_to(runs_dir) if path.is_relative_to(runs_dir) else path
        self._put(
            [
                CheckpointEntry(
                    run_id=self._run_id,
                    kind=checkpoint.kind,
                    total_steps=checkpoint.total_steps,
                    attempt=self._attempt,
                    path=str(shown),
                    sha256=checkpoint.sha256,
                    size_bytes=checkpoint.size_bytes,
                )
            ]
        )

    def on_progress(self, progress: Progress) -> None:
        """Give a heartbeat."""
        self._steps, self._heard_at = progress.total_steps, time.monotonic()
        self.beat()

    def flush(self) -> bool:
        """Make the rows so far durable on this disk."""
        return self._writer.sync()

    def on_end(self, end: RunEnd) -> None:
        """Store the end and close the writer."""
        self._ended.set()
        self._put(
            [
                AttemptEnd(
                    run_id=self._run_id,
                    attempt=self._attempt,
                    status=end.status.stored,
                    end_steps=end.total_steps,
                    reason=end.reason or None,
                )
            ]
        )
        wait_until_done(self._writer.flush, end_timeout_seconds(end), end.stop)
        report = self._writer.close(0.0)
        if report.pending:
            log.warning(
                "the database did not take everything in time (%s); the rest is in the run's "
                "journal and is written by `mario store check --replay` or the next start",
                report.last_error or "no answer",
            )
        if report.lost:
            log.error(
                "%d rows of this attempt are lost: neither the disk of the run's journal nor "
                "memory had room; make room on the disk; `mario store check` says which episodes "
                "are missing",
                report.lost,
            )

    def _episode(self, record: TrainingEpisode) -> EpisodeEntry:
        state = {name: record.state[name] for name in STATE_FIELDS}
        return EpisodeEntry(
            run_id=self._run_id,
            env_index=record.env_index,
            episode_index=record.episode_index,
            attempt=self._attempt,
            seed=record.seed,
            level=record.level or f"{state['world']}-{state['stage']}",
            total_steps=record.total_steps,
            length_steps=record.length_steps,
            shaped_return=record.shaped_return,
            furthest_x_px=record.furthest_x_px,
            end_reason=record.end,
            flag=bool(state.pop("flag")),
            dying=bool(state.pop("dying")),
            **state,  # type: ignore[arg-type] # int each, by STATE_FIELDS
        )
