"""The kinds of observation, and the kind of each task."""

from __future__ import annotations

#: Every kind of observation. A task uses the one at the end of its name, or else the first.
OBSERVATIONS: tuple[str, ...] = ("pixels",)


def split_task(task: str) -> tuple[str, str]:
    """Split a task's name: ``"1-1-tiles"`` plays ``"1-1"`` and observes ``"tiles"``."""
    for kind in OBSERVATIONS[1:]:
        if task.endswith(f"-{kind}"):
            return task.removesuffix(f"-{kind}"), kind
    return task, OBSERVATIONS[0]
