"""Finished episodes of the training environments, and a window over the last of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import level as find_level

#: Episodes that every mean of a run is taken over.
WINDOW_EPISODES = 100
#: Episodes that a signal over recent episodes is taken over, and needs.
RECENT_EPISODES = 20
_WINDOW_ENVIRONMENT_EPISODES = 2
#: The game's clock at the start of a level, by which the protocol scores an episode.
_START_CLOCK = 400


@dataclass(frozen=True, slots=True)
class TrainingEpisode:
    """A finished episode of a training environment.

    Attributes:
        env_index: environment that played it, 0 … N − 1.
        episode_index: its number in that environment, from 0, over all resumes of the run.
        seed: the episode's seed, 0 … 2**64 − 1.
        level: ``"1-1"`` … ``"8-4"``, or None for the whole game.
        shaped_return: sum of the rewards trained on, scaling included.
        length_steps: agent steps.
        length_frames: controllable console frames.
        furthest_x_px: furthest x reached.
        end: why it ended: the label of an :class:`~mario.game.smb.end_reason.EndReason`.
        total_steps: agent steps of all environments of the run when it ended.
        state: the game's 13 values at the end, by name.
    """

    env_index: int
    episode_index: int
    seed: int
    level: str | None
    shaped_return: float
    length_steps: int
    length_frames: int
    furthest_x_px: int
    end: str
    total_steps: int
    state: dict[str, int]

    @property
    def cleared(self) -> bool:
        """Whether Mario reached the flag."""
        return self.end == EndReason.FLAG.label


class EpisodeWindow:
    """The last episodes of a run, of every environment."""

    def __init__(self, environments: int) -> None:
        """Start empty."""
        self.finished = 0
        self.seen = 0
        self.returns: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self.furthest_px: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self.scores: deque[float] = deque(maxlen=WINDOW_EPISODES)
        self._by_environment: list[deque[float]] = [
            deque(maxlen=_WINDOW_ENVIRONMENT_EPISODES) for _ in range(environments)
        ]
        self._begun_before: set[int] = set()

    def add(self, episode: TrainingEpisode) -> None:
        """Add an episode."""
        self.seen += 1
        if episode.env_index in self._begun_before:
            self._begun_before.remove(episode.env_index)
            return
        self.returns.append(episode.shaped_return)
        self.furthest_px.append(float(episode.furthest_x_px))
        self.scores.append(_score(episode))
        self._by_environment[episode.env_index].append(float(episode.furthest_x_px))

    def roll_back(self) -> None:
        """Forget the episodes of the policy before a rollback, including those that still run.

        The counts stay. The scores stay as well: where they choose the best checkpoint, the mean
        of the first few episodes after a rollback would be chance.
        """
        for window in (self.returns, self.furthest_px, *self._by_environment):
            window.clear()
        self._begun_before = set(range(len(self._by_environment)))

    def environments_furthest_px(self) -> tuple[float, ...]:
        """Mean furthest x of each environment's last episodes, NaN before its first."""
        return tuple(float(np.mean(v)) if v else math.nan for v in self._by_environment)

    def mean_return(self) -> float | None:
        """Mean shaped return; None before the first episode."""
        return _mean(self.returns)

    def mean_furthest_px(self) -> float | None:
        """Mean furthest x; None before the first episode."""
        return _mean(self.furthest_px)

    def recent(self) -> tuple[list[float], list[float]]:
        """Returns and furthest x of the last 20 episodes (all, while there are fewer)."""
        return list(self.returns)[-RECENT_EPISODES:], list(self.furthest_px)[-RECENT_EPISODES:]

    def mean_score(self) -> float | None:
        """Mean score; None before the first episode."""
        return _mean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """The whole window, as JSON types."""
        return {
            "finished": self.finished,
            "seen": self.seen,
            "returns": list(self.returns),
            "furthest_px": list(self.furthest_px),
            "scores": list(self.scores),
            "by_environment": [list(values) for values in self._by_environment],
            "begun_before": sorted(self._begun_before),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.finished, self.seen = values["finished"], values["seen"]
        for name in ("returns", "furthest_px", "scores"):
            window = getattr(self, name)
            window.clear()
            window.extend(values[name])
        for window, saved in zip(self._by_environment, values["by_environment"], strict=True):
            window.clear()
            window.extend(saved)
        # Checkpoints of earlier versions do not have it.
        self._begun_before = set(values.get("begun_before", ()))


def _mean(values: deque[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _score(episode: TrainingEpisode) -> float:
    """Score a training episode as `mario-eval-v1` does: 0 … 1."""
    if episode.cleared:
        return 0.5 + 0.5 * min(episode.state["time_left"] / _START_CLOCK, 1.0)
    if episode.level is None:
        return 0.0
    return 0.5 * min(episode.furthest_x_px / find_level(episode.level).length_px, 1.0)
