"""Multiples of a number of agent steps: when a checkpoint, a selection or a boundary is due."""

from __future__ import annotations


class StepInterval:
    """Something that is due at every multiple of a number of agent steps.

    Multiples, so that a resumed run does the same at the same steps.

    Attributes:
        next_steps: agent steps from which on it is due.
    """

    def __init__(self, every_steps: int, *, at_start: bool = False) -> None:
        """Begin.

        Args:
            every_steps: agent steps between two times, ≥ 1.
            at_start: whether it is due at step 0 as well.
        """
        self._every_steps = every_steps
        self.next_steps = 0 if at_start else every_steps

    def is_due(self, steps: int) -> bool:
        """Whether it is due after so many agent steps."""
        return steps >= self.next_steps

    def advance(self, steps: int) -> None:
        """Make it due at the first multiple after `steps`."""
        self.next_steps = (steps // self._every_steps + 1) * self._every_steps
