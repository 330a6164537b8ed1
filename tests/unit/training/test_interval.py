"""When something is due that happens at every multiple of a number of steps."""

from __future__ import annotations

from mario.training.interval import StepInterval


def test_it_is_due_at_the_first_boundary_at_or_after_each_multiple() -> None:
    interval = StepInterval(100)
    due = []
    for steps in range(0, 420, 32):  # boundaries do not meet the multiples
        if interval.is_due(steps):
            due.append(steps)
            interval.advance(steps)
    assert due == [128, 224, 320, 416]


def test_multiples_that_one_boundary_passes_count_once() -> None:
    interval = StepInterval(10)
    interval.advance(57)
    assert interval.next_steps == 60


def test_it_may_be_due_at_the_start() -> None:
    assert StepInterval(100, at_start=True).is_due(0)
    assert not StepInterval(100).is_due(0)
