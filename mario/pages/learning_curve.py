"""The learning curve of a run in a few numbers: what flows and pages show of many episodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mario.store.records import EpisodeEntry

#: Shares of a run that the curve is cut into.
_PARTS = 10


@dataclass(frozen=True)
class CurvePoint:
    """One share of a run.

    Attributes:
        steps: agent steps at its end.
        episodes: training episodes that ended in it.
        mean_furthest_px: their mean furthest x.
        clear_ratio: share of them that reached the flag, 0 to 1.
    """

    steps: int
    episodes: int
    mean_furthest_px: float
    clear_ratio: float


def learning_curve(episodes: Iterable[EpisodeEntry], total_steps: int) -> tuple[CurvePoint, ...]:
    """Cut a run into tenths and average each; tenths in which no episode ended are left out.

    Args:
        episodes: the run's training episodes, in any order.
        total_steps: agent steps of the whole run, > 0.
    """
    parts: dict[int, list[EpisodeEntry]] = {}
    for episode in episodes:
        part = min(_PARTS - 1, _PARTS * max(0, episode.total_steps - 1) // total_steps)
        parts.setdefault(part, []).append(episode)
    return tuple(
        CurvePoint(
            steps=total_steps * (part + 1) // _PARTS,
            episodes=len(rows),
            mean_furthest_px=sum(row.furthest_x_px for row in rows) / len(rows),
            clear_ratio=sum(row.end_reason == "flag" for row in rows) / len(rows),
        )
        for part, rows in sorted(parts.items())
    )
