"""What a person watches while a policy trains: one live line, and one line for each selection."""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console as TerminalConsole
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from mario.config.experiment import ExperimentConfig
from mario.training.sinks import Progress, SelectionDone

log = logging.getLogger(__name__)

#: Where nobody watches live (a log file), one line about every so many shares of the run.
_LOG_SHARE = 0.1


class _Output(TerminalConsole):
    """Standard output, which may go away or be full: a run goes on without it."""

    def on_broken_pipe(self) -> None:
        """Go on in silence, where rich would end the process."""
        _give_up_output("nobody reads it any more")

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as long as somebody takes it."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            _give_up_output(error.strerror or str(error))


def say(line: str) -> None:
    """Print a line; one that nobody takes changes nothing of what was done."""
    try:
        print(line, flush=True)
    except OSError as error:
        _give_up_output(error.strerror or str(error))


def _give_up_output(reason: str) -> None:
    """Send what is still to be printed nowhere: the interpreter's last flush would fail, too."""
    log.warning("standard output is given up: %s", reason)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class TrainingDisplay:
    """A live progress bar on a terminal; a line now and then in a log."""

    def __init__(self, config: ExperimentConfig, console: TerminalConsole | None = None) -> None:
        """Prepare the bar for an experiment."""
        self._console = console or _Output()
        self._live = self._console.is_terminal
        self._total = config.total_steps
        self._next_log = 0.0
        self._bar = Bar(
            TextColumn(f"training {config.name}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=False,
        )
        self._task = self._bar.add_task("train", total=self._total, numbers="")

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it was last."""
        if self._live:
            self._bar.stop()

    def progress(self, progress: Progress) -> None:
        """Show rate, mean furthest x, health and time left."""
        far = progress.mean_furthest_px
        left = progress.seconds_left
        numbers = ", ".join(
            [
                f"{progress.steps_per_second:,.0f} steps/s",
                f"mean furthest x {far:.0f} px" if far is not None else "no episode yet",
                *([progress.state] if progress.state.suspicious else []),
                *([f"{_minutes(left)} left"] if left is not None else []),
            ]
        )
        if self._live:
            self._bar.update(self._task, completed=progress.total_steps, numbers=numbers)
            return
        share = progress.total_steps / self._total
        if share >= self._next_log or progress.total_steps >= self._total:
            self._next_log = share + _LOG_SHARE
            self._say(f"{share:4.0%} {numbers}")

    def selection(self, selection: SelectionDone) -> None:
        """Say what the policy was worth on selection seeds."""
        details = selection.details
        self._say(
            f"selection at {selection.total_steps:,} steps: score {selection.score:.3f}, "
            f"furthest x {details.get('mean_furthest_px', 0):.0f} px, "
            f"cleared {details.get('clear_rate', 0):.0%} of {details.get('units', 0):.0f} units"
            + (" (best so far)" if selection.is_best else "")
        )

    def _say(self, line: str) -> None:
        """Print one line as one line: a log is read by `grep`, and has no width to wrap it to."""
        self._console.print(line, highlight=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
