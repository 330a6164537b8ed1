"""Keeps a run's checkpoints: the last one for resuming, the best one by selection."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from mario.config.run_states import CheckpointKind
from mario.errors import CheckpointError
from mario.files import clear_unfinished
from mario.training.checkpoint import (
    CheckpointContent,
    CheckpointInfo,
    checkpoint_name,
    discard,
    list_checkpoints,
    load_latest,
    prune,
    read_values,
    verify_checkpoint,
    write_checkpoint,
)
from mario.training.result import BestCheckpoint
from mario.training.sinks import CheckpointWritten, Incident, SinkSet

log = logging.getLogger(__name__)

CHECKPOINTS_FOLDER, BEST_FOLDER = "checkpoints", "best"


class CheckpointKeeper:
    """Writes, prunes and finds the checkpoints of one run, and tells the sinks.

    Attributes:
        last: the last checkpoint written or resumed from.
        best: the best policy so far; None before the first.
    """

    def __init__(self, folder: Path, keep: int, sinks: SinkSet) -> None:
        """Keep checkpoints in a run's folder.

        Args:
            folder: the run's.
            keep: how many stay.
            sinks: hear of each.
        """
        self.last: Path | None = None
        self.best: BestCheckpoint | None = None
        self._folder = folder
        self._keep = keep
        self._sinks = sinks
        self._written_steps = -1

    def newest(self) -> tuple[Path, CheckpointContent] | None:
        """The newest checkpoint that is whole, and its content; None where there is none yet.

        Raises:
            CheckpointError: there are checkpoints and none of them is whole.
        """

        def skipped(error: CheckpointError) -> None:
            self._sinks.on_incident(Incident("checkpoint_skipped", str(error)))

        return load_latest(self._folder / CHECKPOINTS_FOLDER, on_skipped=skipped)

    def go_on_from(self, path: Path, total_steps: int, best: tuple[str, int, float] | None) -> None:
        """Take up a resumed run's checkpoints.

        Args:
            path: the checkpoint that it goes on from.
            total_steps: agent steps at that checkpoint.
            best: name, steps and score of the best one, as that checkpoint has it.
        """
        # Not to be written again as it is: one that is replaced is gone for a moment.
        self.last, self._written_steps = path, total_steps
        folder = self._folder / BEST_FOLDER
        for found in list_checkpoints(folder):
            # Found after the checkpoint was taken: it will be found again.
            if found.name > checkpoint_name(total_steps):
                discard(found)
        if best is None:
            return
        name, steps, score = best
        try:
            verify_checkpoint(folder / name)
        except CheckpointError as error:
            log.warning("the next selection finds the best anew: %s", error)
            self._sinks.on_incident(Incident("checkpoint_skipped", str(error)))
        else:
            self.best = BestCheckpoint(folder / name, steps, score)

    def save_best(self, steps: int, score: float, content: CheckpointContent) -> bool:
        """Write the best checkpoint; False on a full disk: a policy that is not kept is none."""
        target = self._folder / BEST_FOLDER / checkpoint_name(steps)
        if not self._write(CheckpointKind.BEST, target, steps, content, score):
            return False
        self.best = BestCheckpoint(target, steps, score)
        self._prune_best()
        return True

    def save_last(self, steps: int, content: CheckpointContent, *, required: bool) -> None:
        """Write the point to resume from, unless it is written already.

        Args:
            steps: agent steps at that point.
            content: the run as it was then.
            required: whether a disk that does not take it is an error; else it is only said.

        Raises:
            CheckpointError: it is required, and cannot be written.
        """
        if steps == self._written_steps:
            return
        target = self._folder / CHECKPOINTS_FOLDER / checkpoint_name(steps)
        # Episodes must be durable before a checkpoint that will not play them again.
        if not self._sinks.flush() and not required:
            self._failed(f"{target}: not written, the episodes before it are not on the disk")
            return
        if self._write(CheckpointKind.LAST, target, steps, content, None, required=required):
            self.last, self._written_steps = target, steps
            prune(target.parent, self._keep)
            self._prune_best()

    def _prune_best(self) -> None:
        """Keep the best one, and each that a checkpoint names which may be gone on from.

        However many have been found since that checkpoint: after a kill the run is back at it, and
        those that it does not know of yet are no longer there.
        """
        named = set() if self.best is None else {self.best.path.name}
        for checkpoint in list_checkpoints(self._folder / CHECKPOINTS_FOLDER):
            try:
                best = read_values(checkpoint)["trainer"]["best"]
            except (CheckpointError, KeyError) as error:
                # What it names cannot be known; it goes itself when newer ones have come.
                log.warning("%s: no best checkpoint is deleted meanwhile (%s)", checkpoint, error)
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
