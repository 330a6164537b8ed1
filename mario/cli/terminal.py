"""The terminal output of training: a live progress bar, or plain lines in a log."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Self

from rich.console import Console as TerminalConsole
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from mario.config.experiment import ExperimentConfig
from mario.jobs.progress import ProgressLines, progress_numbers
from mario.training.sinks import Progress, SelectionDone

log = logging.getLogger(__name__)


class _Output(TerminalConsole):
    """Standard output that may close or fill up without ending the run."""

    def on_broken_pipe(self) -> None:
        """Go on in silence, where rich would end the process."""
        _give_up_output("its reader has closed it")

    def print(self, *objects: Any, **options: Any) -> None:
        """Print until a write fails."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            _give_up_output(error.strerror or str(error))


def say(line: str) -> None:
    """Print a line; an output that fails does not end the command."""
    try:
        print(line, flush=True)
    except OSError as error:
        _give_up_output(error.strerror or str(error))


def _give_up_output(reason: str) -> None:
    """Discard all further output: the interpreter's last flush would fail, too."""
    log.warning("standard output is given up: %s", reason)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class TrainingDisplay:
    """A live progress bar on a terminal; a line for about each tenth of the run in a log."""

    def __init__(self, config: ExperimentConfig, console: TerminalConsole | None = None) -> None:
        """Prepare the bar for an experiment."""
        self._console = console or _Output()
        self._live = self._console.is_terminal
        self._lines = ProgressLines(config.total_steps, self._say)
        self._bar = Bar(
            TextColumn(f"training {config.name}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=False,
        )
        self._task = self._bar.add_task("train", total=config.total_steps, numbers="")

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar in its last state."""
        if self._live:
            self._bar.stop()

    def progress(self, progress: Progress) -> None:
        """Show rate, mean furthest x, health and remaining time."""
        if not self._live:
            self._lines.progress(progress)
            return
        numbers = progress_numbers(progress)
        self._bar.update(self._task, completed=progress.total_steps, numbers=numbers)

    def selection(self, selection: SelectionDone) -> None:
        """Show the score on selection seeds."""
        self._lines.selection(selection)

    def _say(self, line: str) -> None:
        """Print one line unwrapped: a log is read by `grep`, and has no width to wrap to."""
        self._console.print(line, highlight=False, soft_wrap=True)
