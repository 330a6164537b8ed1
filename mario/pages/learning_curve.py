"""The learning curve of a run as ten averages over its training episodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mario.store.records import EpisodeEntry

#: Number of equal parts of a run.
_PARTS = 10


@dataclass(frozen=True)
class CurvePoint:
    """One part of a run.

    Attributes:
        steps: agent steps at the end of the part.
        episodes: training episodes that ended in the part.
        mean_furthest_px: mean furthest x of these episodes, px.
        clear_ratio: share of these episodes that reached the flag, 0 to 1.
    """

    steps: int
    episodes: int
    mean_furthest_px: float
    clear_ratio: float


def learning_curve(episodes: Iterable[EpisodeEntry], total_steps: int) -> tuple[CurvePoint, ...]:
    """Average the episodes of each tenth of a run; omit tenths in which no episode ended.

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
