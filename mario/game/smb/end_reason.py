"""Why an episode ended."""

from __future__ import annotations

from enum import IntEnum


class EndReason(IntEnum):
    """Why an episode ended; the native batch has the same numbers."""

    RUNNING = 0
    FLAG = 1
    DEATH = 2
    TIME_OUT = 3  # the game's own clock
    TRUNCATED = 4  # step limit or stuck limit

    @property
    def label(self) -> str:
        """The name in `info` and in the records of training episodes, such as ``time_out``."""
        return self.name.lower()

    @property
    def is_terminal(self) -> bool:
        """Whether the game itself ended the episode."""
        return self in (EndReason.FLAG, EndReason.DEATH, EndReason.TIME_OUT)
