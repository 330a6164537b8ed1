"""When the policy is scored, and which checkpoint of it is the best."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mario.config.checkpoints import SelectionConfig
from mario.training.checkpoint import CheckpointContent, list_checkpoints
from mario.training.checkpoint_retention import RunCheckpoints
from mario.training.result import SelectionScore
from mario.training.selection import Selection
from mario.training.sinks import SinkSet
from tests.support.training_runs import Listener


class Scored:
    """A selection every 100 steps, whose scores the test gives."""

    def __init__(self, folder: Path, *, units: int = 4) -> None:
        self.folder, self.stop, self.listener = folder, threading.Event(), Listener()
        sinks = SinkSet([self.listener])
        self.checkpoints = RunCheckpoints(folder, 2, sinks)
        settings = SelectionConfig(every_steps=100, units=units)
        self.selection = Selection(settings, self.checkpoints, sinks, self.stop)

    def run(self, steps: int, score: float | None) -> None:
        result = None if score is None else SelectionScore(score, {"clears": 1.0})
        self.selection.run(
            steps, lambda: result, lambda found: CheckpointContent({"score": found.score}, {}, {})
        )

    def is_due(self, steps: int, *, finished: bool = False) -> bool:
        return self.selection.is_due(steps, finished=finished)


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return Scored(tmp_path)


def test_it_is_due_at_multiples_and_at_the_end(scored: Scored, tmp_path: Path) -> None:
    assert [scored.is_due(steps) for steps in (64, 128)] == [False, True]
    scored.run(128, 0.5)
    assert [scored.is_due(steps) for steps in (192, 256)] == [False, True]
    assert scored.is_due(130, finished=True)
    assert not Scored(tmp_path, units=0).is_due(500, finished=True)


def test_only_a_higher_score_is_a_new_best(scored: Scored) -> None:
    for steps, score in ((100, 0.3), (200, 0.3), (300, 0.7), (400, 0.5)):
        scored.run(steps, score)
    assert [(s.score, s.best_score, s.is_best) for s in scored.listener.selections] == [
        (0.3, 0.3, True), (0.3, 0.3, False), (0.7, 0.7, True), (0.5, 0.7, False),
    ]  # fmt: skip
    assert scored.listener.selections[0].details == {"clears": 1.0}
    assert scored.checkpoints.best is not None
    assert (scored.checkpoints.best.total_steps, scored.checkpoints.best.score) == (300, 0.7)
    # What no checkpoint names is gone.
    assert [p.name for p in list_checkpoints(scored.folder / "best")] == ["steps-000000000300"]


def test_a_selection_that_a_stop_interrupts_is_due_again(scored: Scored) -> None:
    scored.stop.set()
    scored.run(100, None)
    assert scored.is_due(100)
    assert not scored.listener.selections


def test_nothing_to_score_by_waits_for_the_next_time(scored: Scored) -> None:
    scored.run(100, None)
    assert not scored.is_due(100)
    assert not scored.listener.selections


def test_a_best_that_cannot_be_written_is_none(scored: Scored) -> None:
    scored.run(100, 0.1)
    best = scored.folder / "best"
    best.rename(scored.folder / "aside")
    best.write_text("in the way")
    scored.run(200, 0.9)
    best.unlink()
    (scored.folder / "aside").rename(best)
    scored.run(300, 0.5)
    assert [(s.score, s.is_best) for s in scored.listener.selections] == [
        (0.1, True), (0.9, False), (0.5, True),
    ]  # fmt: skip
    assert [incident.kind for incident in scored.listener.incidents] == ["checkpoint_failed"]
    assert scored.checkpoints.best is not None
    assert scored.checkpoints.best.score == 0.5
