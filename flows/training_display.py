"""Choose who shows the progress of training: the command that runs a flow, or the flow's log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from mario.config.experiment import ExperimentConfig
from mario.jobs.progress import ProgressLines
from mario.training.sinks import Progress, SelectionDone


class ProgressDisplay(Protocol):
    """Shows a run while it trains."""

    def progress(self, progress: Progress) -> None:
        """Show progress, after each update."""
        ...

    def selection(self, selection: SelectionDone) -> None:
        """Show a score on selection seeds."""
        ...


OpenDisplay = Callable[[ExperimentConfig], AbstractContextManager[ProgressDisplay]]
_open_display: ContextVar[OpenDisplay | None] = ContextVar("open_display", default=None)


@contextmanager
def showing_with(open_display: OpenDisplay | None) -> Iterator[None]:
    """Let flows that are called in this block show training with a display of the caller's."""
    token = _open_display.set(open_display)
    try:
        yield
    finally:
        _open_display.reset(token)


def training_display(
    config: ExperimentConfig, say: Callable[[str], None]
) -> AbstractContextManager[ProgressDisplay]:
    """Open the caller's display; without one, report lines to `say`."""
    open_display = _open_display.get()
    if open_display is None:
        return nullcontext(ProgressLines(config.total_steps, say))
    return open_display(config)
