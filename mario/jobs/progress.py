"""Training progress as lines of text, for a log or a terminal."""

from __future__ import annotations

from collections.abc import Callable

from mario.training.sinks import Progress, SelectionDone

#: Progress is reported about once in this share of the run.
_LINE_SHARE = 0.1


def progress_numbers(progress: Progress) -> str:
    """Describe rate, mean furthest x, health and remaining time."""
    far, left = progress.mean_furthest_px, progress.seconds_left
    return ", ".join(
        [
            f"{progress.steps_per_second:,.0f} steps/s",
            f"mean furthest x {far:.0f} px" if far is not None else "no episode yet",
            *([progress.state] if progress.state.suspicious else []),
            *([f"{_minutes(left)} left"] if left is not None else []),
        ]
    )


def selection_line(selection: SelectionDone) -> str:
    """Describe the score of a policy on selection seeds."""
    details = selection.details
    return (
        f"selection at {selection.total_steps:,} steps: score {selection.score:.3f}, "
        f"furthest x {details.get('mean_furthest_px', 0):.0f} px, "
        f"cleared {details.get('clear_rate', 0):.0%} of {details.get('units', 0):.0f} units"
        + (" (best so far)" if selection.is_best else "")
    )


class ProgressLines:
    """Reports training as lines: one for about each tenth of the run, one for each selection."""

    def __init__(self, total_steps: int, say: Callable[[str], None]) -> None:
        """Report a run of so many agent steps to `say`, a line a call."""
        self._total_steps = total_steps
        self._say = say
        self._next_share = 0.0

    def progress(self, progress: Progress) -> None:
        """Report progress where a line is due."""
        share = progress.total_steps / self._total_steps
        if share >= self._next_share or progress.total_steps >= self._total_steps:
            self._next_share = share + _LINE_SHARE
            self._say(f"{share:4.0%} {progress_numbers(progress)}")

    def selection(self, selection: SelectionDone) -> None:
        """Report the score on selection seeds."""
        self._say(selection_line(selection))


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
