"""The checkpoints of a run: the last ones to resume from, and the best one by selection."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from mario.config.run_states import CheckpointKind
from mario.errors import CheckpointError
from mario.files import clear_unfinished
from mario.training.checkpoint import (
    CheckpointContent,
    CheckpointInfo,
    checkpoint_name,
    discard,
    list_checkpoints,
    prune,
    read_checkpoint,
    read_values,
    verify_checkpoint,
    write_checkpoint,
)
from mario.training.result import BestCheckpoint
from mario.training.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER
from mario.training.sinks import CheckpointWritten, Incident, SinkSet

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Holds, writes and prunes the checkpoints of one run, and reports them to the sinks.

    Attributes:
        last: the last checkpoint that was written or resumed from.
        best: the best policy so far; None before the first.
        held_steps: agent steps of the resume point in memory; 0 before the first.
    """

    def __init__(self, folder: Path, keep: int, sinks: SinkSet) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: the run's.
            keep: how many checkpoints remain to resume from.
            sinks: receive each checkpoint and each failure.
        """
        self.last: Path | None = None
        self.best: BestCheckpoint | None = None
        self.held_steps = 0
        self._held: CheckpointContent | None = None
        self._folder = folder
        self._keep = keep
        self._sinks = sinks
        self._written_steps = -1

    def skipped(self, error: CheckpointError) -> None:
        """Report a broken checkpoint."""
        self._sinks.on_incident(Incident("checkpoint_skipped", str(error)))

    def resume_from(
        self, path: Path, total_steps: int, best: tuple[str, int, float] | None
    ) -> None:
        """Take over the checkpoints of a resumed run.

        Args:
            path: the checkpoint that it resumes from.
            total_steps: agent steps at that checkpoint.
            best: name, steps and score of the best one, as that checkpoint has it.
        """
        # Never written again: while a checkpoint is replaced there is none of that name.
        self.last, self._written_steps = path, total_steps
        folder = self._folder / BEST_FOLDER
        for found in list_checkpoints(folder):
            # Selected after the checkpoint was taken: it will be selected again.
            if found.name > checkpoint_name(total_steps):
                discard(found)
        if best is None:
            return
        name, steps, score = best
        try:
            verify_checkpoint(folder / name)
        except CheckpointError as error:
            log.warning("the best checkpoint is lost; the next selection is the best: %s", error)
            self.skipped(error)
        else:
            self.best = BestCheckpoint(folder / name, steps, score)

    def hold(self, steps: int, content: CheckpointContent) -> None:
        """Hold the state of the run in memory, as the point to resume from.

        Args:
            steps: agent steps at that point.
            content: the run as it is then.
        """
        self._held, self.held_steps = content, steps

    @property
    def holds_point(self) -> bool:
        """Whether this attempt has a point to resume from."""
        return self._held is not None

    def read_best(self, device: torch.device | str) -> CheckpointContent | None:
        """Read the best policy; None where there is none, or where it cannot be read."""
        if self.best is None:
            return None
        try:
            return read_checkpoint(self.best.path, device)
        except CheckpointError as error:
            log.warning("no rollback, as the best checkpoint cannot be read: %s", error)
            return None

    def save_best(self, steps: int, score: float, content: CheckpointContent) -> bool:
        """Write the best checkpoint; False where the disk does not take it."""
        target = self._folder / BEST_FOLDER / checkpoint_name(steps)
        if not self._write(CheckpointKind.BEST, target, steps, content, score):
            return False
        self.best = BestCheckpoint(target, steps, score)
        self._prune_best()
        return True

    def write_held(self, *, required: bool = False) -> None:
        """Write the point to resume from, unless there is none or it is written already.

        Args:
            required: whether a disk that does not take it is an error; else it is only reported.

        Raises:
            CheckpointError: it is required, and cannot be written.
        """
        steps, content = self.held_steps, self._held
        if content is None or steps == self._written_steps:
            return
        target = self._folder / CHECKPOINTS_FOLDER / checkpoint_name(steps)
        # Episodes must be durable before a checkpoint after which they are not played again.
        if not self._sinks.flush() and not required:
            self._failed(f"{target}: not written, the episodes before it are not on the disk")
            return
        if self._write(CheckpointKind.LAST, target, steps, content, None, required=required):
            self.last, self._written_steps = target, steps
            prune(target.parent, self._keep)
            self._prune_best()

    def _prune_best(self) -> None:
        """Keep the best checkpoint, and each that a checkpoint to resume from names.

        After a kill the run is back at such a checkpoint and needs the best policy of that time,
        however many better ones were found since.
        """
        named = set() if self.best is None else {self.best.path.name}
        for checkpoint in list_checkpoints(self._folder / CHECKPOINTS_FOLDER):
            try:
                best = read_values(checkpoint)["trainer"]["best"]
            except (CheckpointError, KeyError) as error:
                # Which one it names cannot be known; it is pruned itself when newer ones exist.
                log.warning("%s: unreadable, so no best one is deleted (%s)", checkpoint, error)
                return
            if best is not None:
                named.add(best[0])
        folder = self._folder / BEST_FOLDER
        for found in list_checkpoints(folder):
            if found.name not in named:
                discard(found)
        clear_unfinished(folder)

    def _write(
        self, kind: CheckpointKind, target: Path, steps: int, content: CheckpointContent,
        score: float | None, *, required: bool = False,
    ) -> bool:  # fmt: skip
        began = time.monotonic()
        try:
            info: CheckpointInfo = write_checkpoint(target, steps, content)
        except CheckpointError as error:
            if required:
                raise
            self._failed(str(error))
            return False
        self._sinks.on_checkpoint(
            CheckpointWritten(
                kind, info.path, info.total_steps, info.sha256, info.size_bytes, score,
                time.monotonic() - began,
            )
        )  # fmt: skip
        return True

    def _failed(self, reason: str) -> None:
        log.warning("%s", reason)
        self._sinks.on_incident(Incident("checkpoint_failed", reason))
